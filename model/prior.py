"""A frozen n-gram prior beside a network of characters: what a training text says of the next one, by counting.

    p(c) = (1 - g) softmax(logits)(c) + g q(c)

q is an interpolated Kneser-Ney model (Kneser and Ney 1995; Chen and Goodman 1998, section 4.1.6, with one discount):
the longest context of up to N characters that was seen, mixed with all shorter ones. The gate g depends on the length
of that context alone. A step reads at most N + 1 short lists, so its cost does not depend on the position, and what it
must remember is the last N tokens.

model/counting.py makes one from a text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

FILE = "prior.safetensors"
MAX_ORDER = 8
UNIT = 65536.0  # stored probabilities are whole multiples of 1 / UNIT
MULTIPLY = np.uint64(0x9E3779B97F4A7C15)

Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Prior:
    """A hash table of contexts, open addressing: place = low bits of the hash, key = its high half (0: empty)."""

    gates: NDArray[np.float32]  # (N + 1) g by the length of the longest context that was seen
    alphabet: NDArray[np.int32]  # (A) the tokens that q knows
    keys: NDArray[np.uint32]  # (S), S a power of two
    first: NDArray[np.uint32]  # (S) the context's first entry
    count: NDArray[np.uint16]  # (S) its entries
    left: NDArray[np.uint16]  # (S) what it leaves to the next shorter context, in 1 / UNIT
    letters: NDArray[np.uint8]  # (E) places in the alphabet
    shares: NDArray[np.uint16]  # (E) in 1 / UNIT; those of a context and what it leaves are 1 together

    @property
    def order(self) -> int:
        """N."""
        return len(self.gates) - 1

    def find(self, context: Sequence[int]) -> int:
        """The place of a context, its newest token last; -1 where it was not seen."""
        return int(self._find(np.array([context], np.int32).reshape(1, -1))[0])

    def next(self, context: Sequence[int]) -> tuple[NDArray[np.float64], int]:
        """q (A) after a context (the newest token last), and the length of the longest part of it that was seen."""
        q = np.zeros(len(self.alphabet))
        longest = 0
        for length in range(min(self.order, len(context)) + 1):
            place = self.find(context[len(context) - length :])
            if place < 0:
                break
            longest = length
            entries = slice(int(self.first[place]), int(self.first[place]) + int(self.count[place]))
            q *= self.left[place] / UNIT
            q[self.letters[entries]] += self.shares[entries] / UNIT
        return q, longest

    def mixed(self, logits: NDArray[np.float32], context: Sequence[int]) -> NDArray[np.float32]:
        """The logits (V) of a network and of the prior together: logarithms of p."""
        scores = logits.astype(np.float64)
        logs = scores - scores.max()
        logs -= math.log(np.exp(logs).sum())
        q, longest = self.next(context)
        gate = float(self.gates[longest])
        known = np.log((1 - gate) * np.exp(logs[self.alphabet]) + gate * q)
        logs += math.log(1 - gate)
        logs[self.alphabet] = known
        mixed: NDArray[np.float32] = logs.astype(np.float32)
        return mixed

    def mixed_bits(self, bits: NDArray[np.float64], ids: Ids, start: int) -> NDArray[np.float64]:
        """Bits of ids[start:] with the prior, from a network's bits of them."""
        q, longest = self.targets(ids, start)
        gate = self.gates.astype(np.float64)[longest]
        mixed: NDArray[np.float64] = -np.log2((1 - gate) * np.exp2(-bits) + gate * q)
        return mixed

    def targets(self, ids: Ids, start: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """q of each of ids[start:] after what stands before it, and the length of its longest context."""
        letter = np.full(int(max(ids.max(), self.alphabet.max())) + 1, -1)
        letter[self.alphabet] = np.arange(len(self.alphabet))
        wanted, places = letter[ids[start:]], np.arange(start, len(ids))
        # entries stand by context, and by letter within one: (context, letter) is in order, and can be searched
        used = np.flatnonzero(self.keys)
        used = used[np.argsort(self.first[used], kind="stable")]
        rank = np.zeros(len(self.keys), np.int64)
        rank[used] = np.arange(len(used))
        known = np.repeat(np.arange(len(used)), self.count[used]) * 256 + self.letters
        q, longest, alive = np.zeros(len(places)), np.zeros(len(places), np.int64), np.ones(len(places), np.bool_)
        for length in range(self.order + 1):
            alive = alive & (places >= length)
            rows = np.flatnonzero(alive)
            found = self._find(ids[places[rows, None] + np.arange(-length, 0)])
            alive[rows[found < 0]] = False
            rows, found = rows[found >= 0], found[found >= 0]
            longest[rows] = length
            asked = rank[found] * 256 + wanted[rows]
            entry = np.searchsorted(known, asked).clip(max=len(known) - 1)
            shares = np.where((known[entry] == asked) & (wanted[rows] >= 0), self.shares[entry], 0)
            q[rows] = q[rows] * (self.left[found] / UNIT) + shares / UNIT
        return q, longest

    def _find(self, contexts: Ids) -> NDArray[np.int64]:
        """``find`` for contexts (N, o)."""
        hashes, mask = finish(hashes_of(contexts.astype(np.int64))), np.int64(len(self.keys) - 1)
        key = np.maximum(hashes >> np.uint64(32), np.uint64(1)).astype(np.uint32)
        place = (hashes & np.uint64(mask)).astype(np.int64)
        found, open_ = np.full(len(contexts), -1), np.arange(len(contexts))
        while len(open_):
            here = self.keys[place[open_]]
            found[open_[here == key[open_]]] = place[open_[here == key[open_]]]
            open_ = open_[(here != 0) & (here != key[open_])]
            place[open_] = (place[open_] + 1) & mask
        return found

    def columns(self) -> dict[str, NDArray[np.generic]]:
        """All arrays by name."""
        return {name: getattr(self, name) for name in self.__slots__}

    def save(self) -> bytes:
        """As safetensors."""
        return safetensors.numpy.save(self.columns())


def finish(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """murmur3's last step: every bit of the sum counts for every bit of the hash."""
    with np.errstate(over="ignore"):
        value = (value ^ (value >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
        value = (value ^ (value >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return value ^ (value >> np.uint64(33))


def hashes_of(contexts: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Of contexts (N, o), the newest token last: a polynomial from the newest to the oldest; not finished."""
    value = np.full(len(contexts), contexts.shape[1] + 1, np.uint64)
    with np.errstate(over="ignore"):
        for column in range(contexts.shape[1] - 1, -1, -1):
            value = value * MULTIPLY + contexts[:, column].astype(np.uint64) + np.uint64(1)
    return value


def load(path: Path) -> Prior:
    """A stored prior. ValueError names what is wrong with it: a runtime follows its offsets."""
    try:
        arrays = safetensors.numpy.load_file(path)
        prior = Prior(**arrays)
    except (safetensors.SafetensorError, TypeError) as error:
        raise ValueError(f"{path.name} is no stored prior: {error}") from error
    kinds = {"gates": np.float32, "alphabet": np.int32, "keys": np.uint32, "first": np.uint32, "letters": np.uint8}
    for name in Prior.__slots__:
        if getattr(prior, name).dtype != kinds.get(name, np.uint16) or getattr(prior, name).ndim != 1:
            raise ValueError(f"{path.name}: {name} has another type or shape than a prior's")
    check(prior, path.name)
    return prior


def check(prior: Prior, name: str) -> None:
    """ValueError for a prior whose table leads nowhere, or says two things of one context."""
    places, letters = len(prior.keys), len(prior.alphabet)
    if not 1 <= prior.order <= MAX_ORDER or not ((prior.gates >= 0) & (prior.gates < 1)).all():
        raise ValueError(f"{name}: gates are 2 to {MAX_ORDER + 1} numbers from 0 to below 1")
    if not places or places & (places - 1) or not {places} == {len(prior.first), len(prior.count), len(prior.left)}:
        raise ValueError(f"{name}: the table's columns differ in length, or it is no power of two")
    if prior.keys.all():
        raise ValueError(f"{name}: the table has no empty place, so that a search would not end")
    if len(prior.letters) != len(prior.shares) or not 1 <= letters <= 256:
        raise ValueError(f"{name}: entries or alphabet have impossible lengths")
    used = np.flatnonzero(prior.keys)
    used = used[np.argsort(prior.first[used], kind="stable")]
    first, count = prior.first[used].astype(np.int64), prior.count[used].astype(np.int64)
    if not np.array_equal(first, np.cumsum(count) - count) or count.sum() != len(prior.letters):
        raise ValueError(f"{name}: the contexts' entries do not stand one after the other")
    if (prior.letters >= letters).any():
        raise ValueError(f"{name}: an entry's letter lies outside the alphabet")
    rising = np.diff(np.repeat(np.arange(len(used)), count) * 256 + prior.letters) > 0
    if not rising.all():
        raise ValueError(f"{name}: a context has a letter twice, or out of order")
    if prior.alphabet.min() < 0 or len(np.unique(prior.alphabet)) != letters:
        raise ValueError(f"{name}: the alphabet has a token twice, or none")
    empty = prior.find([])
    if empty < 0 or (prior.next([])[0] <= 0).any():
        raise ValueError(f"{name}: the empty context must know the whole alphabet")
