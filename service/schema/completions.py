"""What can be asked of ``POST /v1/completions``, and what its answers look like (OpenAI's legacy completions)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, WithJsonSchema, model_validator

from model.tokenizer import utf8
from service.schema.base import Int64, Strict

DEFAULT_MAX_TOKENS = 256
MAX_STOPS = 16
MAX_BIASES = 1024
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
    if any("\ufffd" in stop for stop in stops):
        raise ValueError("U+FFFD stands for bytes that are no text, so none can be waited for by it")
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


def _prompts(value: object) -> object:
    """One prompt or a list of them, each a string or ids -> a list of prompts. ValueError says what it is not."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError("must be a string, a list of strings, a list of ids, or a list of lists of ids; none is empty")
    if all(type(item) is int for item in value):
        return [value]
    if all(isinstance(item, str) for item in value):
        return value
    if all(isinstance(item, list) and all(type(token) is int for token in item) for item in value):
        return value
    raise ValueError("must be a string, a list of strings, a list of ids, or a list of lists of ids")


def _logit_bias(value: object) -> object:
    """JSON has no integers as names: ids in digits -> ids. ValueError for any other name."""
    if value is None or not isinstance(value, dict):
        return value
    if len(value) > MAX_BIASES:
        raise ValueError(f"at most {MAX_BIASES} ids, {len(value)} are given")
    for name in value:
        if not (isinstance(name, str) and name.isascii() and name.isdecimal() and len(name) < 10):
            raise ValueError("its names must be ids in decimal digits")
    biases = {int(name): bias for name, bias in value.items()}
    if len(biases) < len(value):
        raise ValueError("an id is given twice")
    return biases


_ids = {"type": "array", "items": {"type": "integer", "minimum": 0}}
Prompts = Annotated[
    list[str] | list[list[int]],
    BeforeValidator(_prompts),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                {**_ids, "minItems": 1},
                {"type": "array", "items": _ids, "minItems": 1},
            ]
        }
    ),
]
LogitBias = Annotated[
    dict[int, Annotated[float, Field(ge=-100, le=100)]] | None,
    BeforeValidator(_logit_bias),
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "object",
                    "propertyNames": {"pattern": "^[0-9]{1,9}$"},
                    "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
                    "maxProperties": MAX_BIASES,
                },
                {"type": "null"},
            ]
        }
    ),
]


def _not_here(value: bool | None) -> bool | None:
    if value:
        raise ValueError("padding against guesses of length is not done here: false or null")
    return value


class StreamOptions(Strict):
    """Options of a stream."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Annotated[bool | None, AfterValidator(_not_here)] = None


class CompletionRequest(Strict):
    """The body. ``max_tokens: null`` with ``stream: true`` is a stream without an end of its own."""

    model: str
    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=0)] | None = DEFAULT_MAX_TOKENS
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    # bounds, so that no logit overflows
    repetition_penalty: Annotated[float, Field(ge=1e-3, le=1e3)] | None = None
    logit_bias: LogitBias = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    best_of: Annotated[int, Field(ge=1, le=20)] | None = None
    seed: Int64 | None = None
    stop: Stops = None
    ignore_eos: bool | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    suffix: None = None

    @model_validator(mode="after")
    def check(self) -> Self:
        """Fields that need each other."""
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: needs stream: true")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens: 0 is for scoring and needs echo: true")
        if self.best_of is not None and self.best_of < self.num_choices:
            raise ValueError(f"best_of: {self.best_of} is less than n, which is {self.num_choices}")
        if self.stream and self.samples > self.num_choices:
            raise ValueError("best_of: a stream cannot choose afterwards; best_of above n needs stream: false")
        return self

    @property
    def num_choices(self) -> int:
        """Of each prompt."""
        return self.n or 1

    @property
    def samples(self) -> int:
        """Drawn for each prompt; the best are its choices."""
        return self.best_of or self.num_choices

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

    def body(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """An answer or chunk with its choices."""
        return {**self.model_dump(), "object": "text_completion", "choices": choices}


def choice(
    index: int, text: str, logprobs: dict[str, Any] | None, reason: Literal["stop", "length"] | None, seed: int
) -> dict[str, Any]:
    """One choice of an answer or chunk."""
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason, "seed": seed}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
