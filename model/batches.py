"""Windows of a corpus. What a step reads depends on (seed, step) alone, so that a run resumes exactly."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.tokenizer import Tokenizer

Ids = NDArray[np.int32]


def encode(part: str | bytes, tokenizer: Tokenizer) -> Ids:
    """The ids of one split."""
    if isinstance(part, bytes):  # byte ids are the bytes
        return np.frombuffer(part, np.uint8).astype(np.int32)
    return np.array(tokenizer.encode(part), np.int32)


class Windows:
    """Random windows of ``length`` inputs and targets; some start where a stream starts, at the begin symbol."""

    def __init__(self, ids: Ids, length: int, tokenizer: Tokenizer, begin_share: float, seed: int) -> None:
        """ValueError where the corpus is shorter than one window."""
        if len(ids) < length + 1:
            raise ValueError(
                f"the training split has {len(ids)} ids, a window needs {length + 1}: use a shorter length"
            )
        self.ids, self.length, self.begin, self.share, self.seed = ids, length, tokenizer.begin, begin_share, seed
        newline = tokenizer.encode("\n")
        after = np.flatnonzero(ids[: len(ids) - length - 1] == newline[0]) + 1 if len(newline) == 1 else ids[:0]
        # what follows an empty line is the nearest to a beginning that plain text has
        empty = after[np.isin(after - 1, after)]
        self.starts = next((s for s in (empty, after) if len(s)), np.zeros(1, np.int64))

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (size, length) int64 of a step."""
        rng = np.random.Generator(np.random.Philox(key=np.array([self.seed & (2**64 - 1), step], np.uint64)))
        offsets = rng.integers(0, len(self.ids) - self.length, size)
        beginning = rng.random(size) < self.share
        offsets = np.where(beginning, self.starts[rng.integers(0, len(self.starts), size)], offsets)
        windows = self.ids[offsets[:, None] + np.arange(self.length + 1)].astype(np.int64)
        # a beginning is shifted by one: begin, then the text
        inputs = np.where(beginning[:, None], np.roll(windows[:, :-1], 1, axis=1), windows[:, :-1])
        inputs[beginning, 0] = self.begin
        targets = np.where(beginning[:, None], windows[:, :-1], windows[:, 1:])
        return torch.from_numpy(inputs), torch.from_numpy(targets)
