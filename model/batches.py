"""Windows of a corpus, pictures of a set.

What a step reads depends on (seed, step) alone, so that a run resumes exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.images import ImageSet
from model.match import Ids
from model.pixels import PixelCodec, Pixels, fit_loosely, plain
from model.tokenizer import Bytes, Tokenizer

Examples = tuple[Tensor, Tensor]  # inputs and targets (N, T) int64
IGNORED = -100  # a target that is not learned and not scored (the default of torch's cross_entropy)
PIECE = 1 << 20  # characters
# Of both sides alike, and half as much of each alone, by natural logarithm; pixels of the reduced picture.
STRETCH, MOVE = 0.08, 0.5
MOVED_ASIDE = 0.25  # of the redrawn: others keep their middle, and so their symmetry
HIDDEN_TOGETHER = 0.5  # of the pictures whose label is left out, those whose name is left out, too


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


def counted_by(tokenizer: Tokenizer, corpus: str | bytes) -> str | bytes:
    """A corpus in what the tokenizer counts, characters or bytes: it is split by position."""
    return corpus.encode() if isinstance(tokenizer, Bytes) and isinstance(corpus, str) else corpus


def encode(part: str | bytes, tokenizer: Tokenizer) -> Ids:
    """The ids of one split. ValueError where a text is no UTF-8 and the tokenizer reads characters."""
    if isinstance(part, bytes) and not isinstance(tokenizer, Bytes):
        raise ValueError("the corpus is not UTF-8, and this model reads characters")
    if isinstance(part, bytes):  # byte ids are the bytes
        return np.frombuffer(part, np.uint8).astype(np.int32)
    # in pieces: a list of ids takes ten times the room of an array
    pieces = [tokenizer.encode(part[at : at + PIECE]) for at in range(0, len(part), PIECE)]
    return np.concatenate([np.array(piece, np.int32) for piece in pieces] or [np.zeros(0, np.int32)])


def side_by_side(ids: Ids, length: int, most: int) -> Examples:
    """The first ``most`` ids as windows of ``length`` side by side; of one window where there are fewer."""
    length = min(length, len(ids) - 1)
    count = max(1, min(most, len(ids) - 1) // length)
    wide = torch.from_numpy(ids).long()
    return wide[: count * length].view(count, length), wide[1 : count * length + 1].view(count, length)


class Windows:
    """Random windows of ``length`` inputs and targets; some start where a stream starts, at the begin symbol.

    ``carry`` windows of a row follow one another in the text, a step each, before it starts at another place.
    """

    def __init__(
        self, ids: Ids, length: int, tokenizer: Tokenizer, begin_share: float, seed: int, carry: int = 1
    ) -> None:
        """ValueError where the corpus is shorter than the windows that follow one another."""
        self.span = length * carry
        if len(ids) < self.span + 1:
            raise ValueError(
                f"the training split has {len(ids)} ids, a window needs {self.span + 1}: use a shorter length"
            )
        self.ids, self.length, self.begin, self.share, self.seed = ids, length, tokenizer.begin, begin_share, seed
        self.carry = carry
        newline = tokenizer.encode("\n")
        after = np.flatnonzero(ids[: len(ids) - self.span - 1] == newline[0]) + 1 if len(newline) == 1 else ids[:0]
        # what follows an empty line is the nearest to a beginning that plain text has
        empty = after[np.isin(after - 1, after)]
        self.starts = next((s for s in (empty, after) if len(s)), np.zeros(1, np.int64))

    def batch(self, step: int, size: int) -> Examples:
        """Inputs and targets (size, length) int64 of a step."""
        row, window = divmod(step, self.carry)
        rng = np.random.Generator(np.random.Philox(key=np.array([self.seed & (2**64 - 1), row], np.uint64)))
        offsets = rng.integers(0, len(self.ids) - self.span, size)
        beginning = rng.random(size) < self.share
        # a beginning is shifted by one: begin, then the text
        offsets = np.where(beginning, self.starts[rng.integers(0, len(self.starts), size)] - 1, offsets)
        places = offsets[:, None] + window * self.length + np.arange(self.length + 1)
        ids = self.ids[places.clip(min=0)].astype(np.int64)
        if window == 0:
            ids[beginning, 0] = self.begin
        return torch.from_numpy(ids[:, :-1]), torch.from_numpy(ids[:, 1:])


class Mixture:
    """Windows of two corpora in a step: a share of the second's, until some step."""

    def __init__(self, windows: Windows, extra: Windows, share: float, until: int) -> None:
        self.windows, self.extra, self.share, self.until = windows, extra, share, until

    def batch(self, step: int, size: int) -> Examples:
        """Inputs and targets (size, length) int64 of a step; rows that continue stay in their corpus."""
        begun = step - step % self.windows.carry
        count = round(self.share * size) if begun < self.until else 0
        if not count:
            return self.windows.batch(step, size)
        both = self.extra.batch(step, count), self.windows.batch(step, size - count)
        inputs, targets = (torch.cat(parts) for parts in zip(*both, strict=True))
        return inputs, targets


def examples(images: NDArray[np.uint8], prompts: NDArray[np.int64]) -> Examples:
    """Images (N, H, W, 3) and their prompts (N, 1 + P): condition and name -> inputs and targets (N, P + H W 3).

    Inputs are the prompt and all values but the last, targets all values; a name is no target.
    """
    values = torch.from_numpy(images.reshape(len(images), -1).astype(np.int64))
    given = torch.from_numpy(prompts)
    spelled = torch.full_like(given[:, 1:], IGNORED)
    return torch.cat([given, values[:, :-1]], 1), torch.cat([spelled, values], 1)


def prompts(pictures: ImageSet, codec: PixelCodec) -> NDArray[np.int64]:
    """What each picture is told by (N, 1 + P): its label, its style and, where the model reads names, its first one."""
    styles = [pictures.styles[i] if codec.styles and pictures.styles else "" for i in pictures.style]
    labels = [pictures.labels[i] for i in pictures.label]
    named = [spelled(aliases[:1], codec)[0] for aliases in pictures.aliases]
    conditions = [codec.condition(*pair) for pair in zip(labels, styles, strict=True)]
    return np.array([[condition, *name] for condition, name in zip(conditions, named, strict=True)])


def spelled(aliases: Sequence[str], codec: PixelCodec) -> list[list[int]]:
    """The ids of names, the ends of long ones cut off; of no name where there is none or the model reads none."""
    length = codec.raster.name_length
    return [codec.spell(plain(name)[:length]) for name in aliases if length] or [codec.spell("")]


class Pictures:
    """Random pictures: mirrored where that is as good, a little brighter or darker, now and then with less said.

    A share ``redrawn_share`` of them is reduced anew from ``detailed`` (N, H', W', 3), the same in a larger size, a
    little stretched or moved: their edges fall on pixels in another way each time.
    """

    def __init__(
        self, pictures: ImageSet, codec: PixelCodec, brightness: int, any_share: float, nameless_share: float,
        seed: int, detailed: Pixels | None = None, redrawn_share: float = 0.0,
    ) -> None:  # fmt: skip
        self.pictures, self.codec, self.brightness, self.seed = pictures, codec, brightness, seed
        self.detailed, self.redrawn_share = detailed, redrawn_share
        self.any_share, self.nameless_share = any_share, nameless_share
        self.flips = pictures.flips
        self.names = [np.array(spelled(aliases, codec), np.int64) for aliases in pictures.aliases]

    def batch(self, step: int, size: int) -> Examples:
        """Inputs and targets (size, P + H W 3) int64 of a step; P places of a name."""
        rng = np.random.Generator(np.random.Philox(key=np.array([self.seed & (2**64 - 1), step], np.uint64)))
        chosen = rng.integers(0, len(self.pictures.images), size)
        images = self._redrawn(step, chosen)
        mirrored = self.flips[chosen] & (rng.random(size) < 0.5)
        images = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
        change = rng.integers(-self.brightness, self.brightness + 1, size)[:, None, None, None]
        images = np.clip(images.astype(np.int64) + change, 0, 255).astype(np.uint8)
        hidden = rng.random((2, size)) < self.any_share
        labels = np.where(hidden[0], 0, self.pictures.label[chosen] + 1)
        styles = np.where(hidden[1] | (not self.codec.styles), 0, self.pictures.style[chosen] + 1)
        first = self.codec.condition()
        conditions = first + labels * (len(self.codec.styles) + 1) + styles
        # some are told neither, as a guide is
        share = np.where(hidden[0], max(self.nameless_share, HIDDEN_TOGETHER), self.nameless_share)
        which, nameless = rng.random(size), rng.random(size) < (share if self.nameless_share else 0.0)
        named = np.stack([self.names[i][int(x * len(self.names[i]))] for i, x in zip(chosen, which, strict=True)])
        named = np.where(nameless[:, None], np.array(self.codec.spell(""), np.int64), named)
        return examples(images, np.concatenate([conditions[:, None], named], 1))

    def _redrawn(self, step: int, chosen: NDArray[np.int64]) -> Pixels:
        """Pictures (size, H, W, 3), some of them reduced anew."""
        images = self.pictures.images[chosen]
        if self.detailed is None:
            return images
        # its own numbers, so that all else is drawn as without it
        rng = np.random.Generator(np.random.Philox(key=np.array([~self.seed & (2**64 - 1), step], np.uint64)))
        for place in np.flatnonzero(rng.random(len(chosen)) < self.redrawn_share):
            stretch = np.exp(rng.uniform(-STRETCH, STRETCH) + rng.uniform(-STRETCH, STRETCH, 2) / 2)
            move = rng.uniform(-MOVE, MOVE, 2) * (rng.random() < MOVED_ASIDE, 1)
            images[place] = fit_loosely(self.detailed[chosen[place]], images.shape[1], stretch, move)
        return images
