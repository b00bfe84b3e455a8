"""Windows of a corpus, pictures of a set.

What a step reads depends on (seed, step) alone, so that a run resumes exactly.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.images import ImageSet
from model.pixels import PixelCodec
from model.tokenizer import Tokenizer

Ids = NDArray[np.int32]
Examples = tuple[Tensor, Tensor]  # inputs and targets (N, T) int64


class Source(Protocol):
    """What a trainer reads."""

    def batch(self, step: int, size: int) -> Examples:
        """The examples of a step."""
        ...


class Material(NamedTuple):
    """What a run learns from, what it is measured on, and the hash that says which corpus that is."""

    source: Source
    validation: Examples
    sha256: str


def encode(part: str | bytes, tokenizer: Tokenizer) -> Ids:
    """The ids of one split."""
    if isinstance(part, bytes):  # byte ids are the bytes
        return np.frombuffer(part, np.uint8).astype(np.int32)
    return np.array(tokenizer.encode(part), np.int32)


def side_by_side(ids: Ids, length: int, most: int) -> Examples:
    """The first ``most`` ids as windows of ``length`` side by side; of one window where there are fewer."""
    length = min(length, len(ids) - 1)
    count = max(1, min(most, len(ids) - 1) // length)
    wide = torch.from_numpy(ids).long()
    return wide[: count * length].view(count, length), wide[1 : count * length + 1].view(count, length)


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

    def batch(self, step: int, size: int) -> Examples:
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


def examples(images: NDArray[np.uint8], conditions: NDArray[np.int64]) -> Examples:
    """Images (N, H, W, 3) and their conditions (N) -> the condition and all values but the last; all values."""
    targets = torch.from_numpy(images.reshape(len(images), -1).astype(np.int64))
    return torch.cat([torch.from_numpy(conditions)[:, None], targets[:, :-1]], 1), targets


def conditions(pictures: ImageSet, codec: PixelCodec) -> NDArray[np.int64]:
    """The condition of each picture: its label and its style."""
    styles = [codec.styles[i] if codec.styles else "" for i in pictures.style]
    labels = [codec.labels[i] for i in pictures.label]
    return np.array([codec.condition(*pair) for pair in zip(labels, styles, strict=True)])


class Pictures:
    """Random pictures: mirrored where that is as good, a little brighter or darker, now and then with less said."""

    def __init__(self, pictures: ImageSet, codec: PixelCodec, brightness: int, any_share: float, seed: int) -> None:
        self.pictures, self.codec, self.brightness, self.any_share, self.seed = (
            pictures,
            codec,
            brightness,
            any_share,
            seed,
        )
        self.flips = pictures.flips

    def batch(self, step: int, size: int) -> Examples:
        """Inputs and targets (size, H W 3) int64 of a step."""
        rng = np.random.Generator(np.random.Philox(key=np.array([self.seed & (2**64 - 1), step], np.uint64)))
        chosen = rng.integers(0, len(self.pictures.images), size)
        images = self.pictures.images[chosen]
        mirrored = self.flips[chosen] & (rng.random(size) < 0.5)
        images = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
        change = rng.integers(-self.brightness, self.brightness + 1, size)[:, None, None, None]
        images = np.clip(images.astype(np.int64) + change, 0, 255).astype(np.uint8)
        hidden = rng.random((2, size)) < self.any_share
        labels = np.where(hidden[0], 0, self.pictures.label[chosen] + 1)
        styles = np.where(hidden[1] | (not self.codec.styles), 0, self.pictures.style[chosen] + 1)
        first = self.codec.condition()
        return examples(images, first + labels * (len(self.codec.styles) + 1) + styles)
