"""Text -> tokens -> text: incomplete UTF-8 is held back, and so is whatever might become a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from model.tokenizer import IncrementalDecoder, Tokenizer
from service import errors


def encode(tokenizer: Tokenizer, prompt: str, limit: int) -> list[int]:
    """A prompt as ids. ApiError for unpaired surrogates, and for more than ``limit`` tokens."""
    if len(prompt) > limit:  # a token is at most a character: this costs no encoding
        raise errors.invalid(f"prompt: {len(prompt)} characters, at most {limit} tokens are taken", "prompt")
    try:
        ids = tokenizer.encode(prompt)
    except ValueError as error:  # unpaired surrogates
        raise errors.invalid(f"prompt: {error}", "prompt") from None
    if len(ids) > limit:
        raise errors.invalid(f"prompt: {len(ids)} tokens, at most {limit} are taken", "prompt")
    return ids


class TextAssembler:
    """One stream's text. What it gives out is never taken back."""

    def __init__(self, token_bytes: list[bytes], stops: Sequence[str]) -> None:
        self._decoder = IncrementalDecoder(token_bytes)
        self._stops = stops
        self._held = ""

    def feed(self, ids: list[int]) -> str:
        """The text that is certain after these ids."""
        self._held += self._decoder.feed(ids)
        # the longest end of the text that begins a stop
        keep = max((self._begun(stop) for stop in self._stops), default=0)
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return certain

    def _begun(self, stop: str) -> int:
        for length in range(min(len(stop), len(self._held)), 0, -1):
            if self._held.endswith(stop[:length]):
                return length
        return 0

    def finish(self, *, stopped: bool) -> str:
        """The rest; without the stop string, where one ended the text. Of several, the one that began first."""
        rest = self._held + self._decoder.finish()
        self._held = ""
        if stopped:
            found = [stop for stop in self._stops if rest.endswith(stop)]
            if found:
                return rest[: len(rest) - len(max(found, key=len))]
        return rest
