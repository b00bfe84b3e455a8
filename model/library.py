"""Models in process: ``model.load("shakespeare")``. Text in; text, tokens, log-probabilities and states out."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.automaton import stops
from model.checkpoint import Checkpoint
from model.runtime.base import Draw, Job, Runtime, StateError, Stop
from model.runtime.choice import Wanted, open_runtime
from model.sampling import SamplingParams

PROBE = 0  # the slot that looks ahead for others
HASH_BYTES = 32


class Text:
    """A text model and ``num_streams`` places for streams. Not for several threads at once."""

    def __init__(self, checkpoint: Checkpoint, runtime: Runtime) -> None:
        self.name, self.tokenizer, self.runtime = checkpoint.name, checkpoint.tokenizer, runtime
        self.free = list(range(1, runtime.num_slots))

    def stream(self, state: bytes | None = None) -> Stream:
        """A new stream, or one that goes on from an exported state.

        RuntimeError where no place is free, StateError where the bytes are no state of this model.
        """
        if not self.free:
            raise RuntimeError(f"all {self.runtime.num_slots - 1} streams are in use: close one")
        slot = self.free.pop()
        try:
            return Stream(self, slot, state)
        except StateError:
            self.free.append(slot)
            raise


class Stream:
    """One text that grows.

    Its last token is consumed with the next draw, so that no step is made for nothing; all that was fed before it once,
    by the next ``write``, ``logits``, ``logprobs``, ``export`` or ``fork``.
    """

    def __init__(self, model: Text, slot: int, state: bytes | None) -> None:
        self._model, self._place = model, slot
        self._ends: list[object] | None = None  # what the last draws could end by: a stop may have begun
        self._pending = [model.tokenizer.begin]  # known and not yet consumed; never empty
        if state is None:
            model.runtime.reset(slot)
        else:
            self._restore(state)

    @property
    def _slot(self) -> int:
        if self._place == PROBE:
            raise RuntimeError("the stream is closed")
        return self._place

    @property
    def position(self) -> int:
        """Tokens of the stream, the begin symbol included."""
        return self._model.runtime.position(self._slot) + len(self._pending)

    def feed(self, text: str) -> None:
        """Add text. ValueError for unpaired surrogates."""
        self._pending += self._model.tokenizer.encode(text)
        self._ends = None  # a stop is in what was drawn

    def write(
        self,
        max_tokens: int,
        *,
        params: SamplingParams | None = None,
        stop: Sequence[str] = (),
        ignore_end: bool = False,
    ) -> list[int]:
        """Draw up to ``max_tokens`` tokens; they are part of the stream. Decode them with ``model.tokenizer``.

        A stop string may begin in one call and end in the next, if that has the same ones. NothingToDrawError where
        ``params`` forbid every token; the stream is as it was.
        """
        tokenizer, runtime = self._model.tokenizer, self._model.runtime
        automaton = stops(tokenizer.token_bytes, [s.encode() for s in stop], tokenizer.end, ignore_end=ignore_end)
        draw, ends = Draw(params or SamplingParams(), max_tokens, automaton), [*stop, ignore_end]
        runtime.copy(self._slot, [PROBE])
        if ends != self._ends:
            runtime.restart_automaton(self._slot)
        try:
            (done,) = runtime.run([Job(self._slot, self._pending, draw=draw)])
            done.check_drawn()
        except ValueError:
            runtime.copy(PROBE, [self._slot])
            raise
        self._pending = done.drawn[-1:]
        self._ends = None if done.stopped is Stop.ACCEPT else ends
        return done.drawn

    def _settle(self) -> None:
        """Consume what is known but for the last token: once, however often one looks ahead from there."""
        if len(self._pending) > 1:
            self._model.runtime.run([Job(self._slot, self._pending[:-1])])
            self._pending = self._pending[-1:]

    def logits(self) -> NDArray[np.float32]:
        """Of the next token (V,); the stream stays where it is."""
        self._settle()
        self._model.runtime.copy(self._slot, [PROBE])
        (done,) = self._model.runtime.run([Job(PROBE, self._pending, logits="last")])
        assert done.logits is not None
        return done.logits

    def logprobs(self, text: str) -> list[float]:
        """Log-probability (natural) of each token of ``text``, were it next; the stream stays where it is."""
        targets = self._model.tokenizer.encode(text)
        if not targets:
            return []
        self._settle()
        self._model.runtime.copy(self._slot, [PROBE])
        (done,) = self._model.runtime.run([Job(PROBE, [*self._pending, *targets[:-1]], targets)])
        return done.target_logprobs

    def export(self) -> bytes:
        """The stream as bytes: go on from them in any process that has the same model.

        The length of the head, the head (the last token, what a stop that has begun belongs to), the runtime's state,
        sha256 of all of it.
        """
        self._settle()
        head = json.dumps([self._pending, self._ends], separators=(",", ":")).encode()
        content = struct.pack("<I", len(head)) + head + self._model.runtime.export(self._slot)
        return content + hashlib.sha256(content).digest()

    def fork(self) -> Stream:
        """Another stream with the same past. RuntimeError where no place is free."""
        self._settle()
        slot, other = self._slot, self._model.stream()
        self._model.runtime.copy(slot, [other._slot])
        other._pending, other._ends = list(self._pending), self._ends
        return other

    def close(self) -> None:
        """Give the place back."""
        if self._place != PROBE:
            self._model.free.append(self._place)
            self._place = PROBE

    def _restore(self, state: bytes) -> None:
        content, digest = state[:-HASH_BYTES], state[-HASH_BYTES:]
        try:
            (size,) = struct.unpack_from("<I", content)
            pending, ends = json.loads(content[4 : 4 + size])
        except (struct.error, ValueError, TypeError, RecursionError) as error:
            raise StateError("these bytes are no exported stream") from error
        if hashlib.sha256(content).digest() != digest:
            raise StateError("the stream is damaged, or of another version: its hash differs")
        known = range(self._model.runtime.vocab_size)
        if not isinstance(pending, list) or not pending or not all(type(t) is int and t in known for t in pending):
            raise StateError("the stream's last tokens are none of this model's")
        if ends is not None and not isinstance(ends, list):
            raise StateError("these bytes are no exported stream")
        self._model.runtime.restore(self._slot, content[4 + size :])
        self._pending, self._ends = pending, ends


def load(
    name: str | Path, *, num_streams: int = 8, threads: int = 0, runtime: Wanted = "auto",
    checkpoints: Path = Path("checkpoints"),
) -> Text:  # fmt: skip
    """A text model by its folder, or by its name under ``checkpoints``.

    CheckpointError where there is none, or one of images; RuntimeMissingError where nothing can run it.
    """
    folder = Path(name)
    checkpoint = Checkpoint(folder if (folder / "config.json").exists() else checkpoints / name)
    _ = checkpoint.tokenizer  # an image model is refused before its weights are read
    return Text(checkpoint, open_runtime(checkpoint, num_streams + 1, threads=threads, wanted=runtime))
