"""What can be asked of ``POST /v1/completions``, and what its answers look like (OpenAI's legacy completions)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
StopString = Annotated[str, Field(min_length=1, max_length=1024)]
MAX_STOPS = 16


class Strict(BaseModel):
    """No coercion, no NaN, no unknown fields; null means absent."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class StreamOptions(Strict):
    """Options of a stream."""

    include_usage: bool | None = None


class CompletionRequest(Strict):
    """The body. ``max_tokens: null`` with ``stream: true`` is a stream without an end of its own."""

    model: str
    prompt: str
    max_tokens: Annotated[int, Field(ge=1)] | None = 256
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Int64 | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def check(self) -> Self:
        """Fields that need each other."""
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self

    @property
    def unlimited(self) -> bool:
        """An explicit null of max_tokens, streamed."""
        return self.max_tokens is None and bool(self.stream)

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [] if self.stop is None else [self.stop] if isinstance(self.stop, str) else self.stop


class Head(BaseModel):
    """What every answer of one request begins with."""

    id: str
    created: int
    model: str
    system_fingerprint: str

    def choice(self, text: str, seed: int, reason: Literal["stop", "length"] | None) -> dict[str, Any]:
        """One answer or chunk with one choice."""
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": reason, "seed": seed}
        return self.body([choice])

    def body(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """An answer or chunk with its choices."""
        return {**self.model_dump(), "object": "text_completion", "choices": choices}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
