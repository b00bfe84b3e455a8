"""What can be asked of ``POST /v1/completions``, and what its answers look like (OpenAI's legacy completions)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from model.tokenizer import utf8

Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
MAX_STOPS = 16
MAX_STOP_BYTES = 1024  # of all together: the automaton has about so many states, each a row of the vocabulary


def _stops(value: object) -> object:
    """A string or a list of strings -> a list. ValueError names the limit."""
    stops = [value] if isinstance(value, str) else value
    if stops is None:
        return None
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ValueError("must be a string or a list of strings, none of them empty")
    if len(stops) > MAX_STOPS:
        raise ValueError(f"at most {MAX_STOPS} strings, {len(stops)} are given")
    size = sum(len(utf8(stop)) for stop in stops)
    if size > MAX_STOP_BYTES:
        raise ValueError(f"at most {MAX_STOP_BYTES} bytes in all, {size} are given")
    return stops


Stops = Annotated[
    list[str] | None,
    BeforeValidator(_stops),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": MAX_STOPS},
                {"type": "null"},
            ]
        }
    ),
]


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
    stop: Stops = None
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
        return self.stop or []


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
