"""Log-probabilities in OpenAI's legacy shape: four lists, one entry a token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from model.runtime.base import Top
from model.tokenizer import IncrementalDecoder, Tokenizer


class Vocabulary(NamedTuple):
    """What a choice's log-probabilities need of a tokenizer."""

    names: Sequence[str]
    token_bytes: Sequence[bytes]
    lengths: Sequence[int]  # code points; -1 for what is no text by itself


@lru_cache(maxsize=16)
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """Of a tokenizer; made once."""
    return Vocabulary(
        token_names(tokenizer), tokenizer.token_bytes, [_length(written) for written in tokenizer.token_bytes]
    )


def _length(written: bytes) -> int:
    try:
        return len(written.decode())
    except UnicodeDecodeError:
        return -1


def token_names(tokenizer: Tokenizer) -> list[str]:
    """What each id is called: its text; no two alike, but those that write nothing, which are "".

    An id that writes part of a character, or what another one writes too, is called by its bytes: ``bytes:\\xc3``.
    """
    names = [written.decode(errors="replace") for written in tokenizer.token_bytes]
    last = {name: token for token, name in enumerate(names)}  # a character's id stands behind the byte's
    return [
        name if not written or (last[name] == token and "\ufffd" not in name) else f"bytes:{_escaped(written)}"
        for token, (name, written) in enumerate(zip(names, tokenizer.token_bytes, strict=True))
    ]


def _escaped(written: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in written)


@dataclass(slots=True)
class Logprobs:
    """Of one choice, in the order of its text."""

    vocabulary: Vocabulary
    num_top: int
    offset: int = 0  # code points of the returned text before the next token
    tokens: list[str] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)
    top: list[dict[str, float] | None] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    _decoder: IncrementalDecoder = field(init=False)

    def __post_init__(self) -> None:
        self._decoder = IncrementalDecoder(list(self.vocabulary.token_bytes))

    def add(self, token: int, logprob: float | None, likeliest: Top) -> None:
        """One token; ``None`` where the model gave it no probability: the first of an echo."""
        names, length, broken = self.vocabulary.names, self.vocabulary.lengths[token], 0
        if length < 0 or self._decoder.incomplete:
            text = self._decoder.feed([token])
            # an incomplete character that this token does not go on is U+FFFD before it
            own = len(IncrementalDecoder([self.vocabulary.token_bytes[token]]).feed([0]))
            length = len(text)
            broken = max(length - own, 0) if text.startswith("\ufffd") else 0
        self.tokens.append(names[token])
        self.values.append(logprob)
        self.offsets.append(self.offset + broken)
        if logprob is None:
            self.top.append(None)
        else:
            beside: dict[str, float] = {}
            for likely, value in likeliest:
                beside.setdefault(names[likely], value)
            # the token itself stands there too, with the very number that it has
            self.top.append({**beside, names[token]: logprob})
        self.offset += length

    def end_echo(self) -> None:
        """What is incomplete at the end of a prompt is U+FFFD, whatever is drawn after it."""
        self.offset += len(self._decoder.finish())

    def take(self) -> dict[str, Any]:
        """What was added since the last time."""
        taken = {
            "tokens": self.tokens,
            "token_logprobs": self.values,
            "top_logprobs": self.top if self.num_top else None,
            "text_offset": self.offsets,
        }
        self.tokens, self.values, self.top, self.offsets = [], [], [], []
        return taken
