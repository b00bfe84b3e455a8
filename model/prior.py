"""A frozen n-gram prior beside a network of characters: what a training text says of the next one, by counting.

    p(c) = (1 - g) softmax(logits)(c) + g q(c)

q is an interpolated Kneser-Ney model (Kneser and Ney 1995; Chen and Goodman 1998, section 4.1.6, with one discount):
the longest context of up to N characters that was seen, mixed with all shorter ones. The gate g depends on the length
of that context alone. A step reads at most N + 1 short lists, so its cost does not depend on the position, and what it
must remember is the last N tokens.

Counts come from the training split. The gates are fitted where the counts saw nothing: on the validation split.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

FILE = "prior.safetensors"
MAX_ORDER = 8
DISCOUNT = 0.8  # of each count
PRUNED_FROM = 4  # characters of context: shorter contexts are kept however rare
UNIT = 65536.0  # stored probabilities are whole multiples of 1 / UNIT
LOAD = 0.8  # of the table's places, at most
GATE_ROUNDS = 60
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
        hashes, mask = _finish(_hashes(contexts.astype(np.int64))), np.int64(len(self.keys) - 1)
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


def _finish(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """murmur3's last step: every bit of the sum counts for every bit of the hash."""
    with np.errstate(over="ignore"):
        value = (value ^ (value >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
        value = (value ^ (value >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return value ^ (value >> np.uint64(33))


def _hashes(contexts: NDArray[np.int64]) -> NDArray[np.uint64]:
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
    _check(prior, path.name)
    return prior


def _check(prior: Prior, name: str) -> None:
    places, letters = len(prior.keys), len(prior.alphabet)
    if not 1 <= prior.order <= MAX_ORDER or not ((prior.gates >= 0) & (prior.gates < 1)).all():
        raise ValueError(f"{name}: gates are 2 to {MAX_ORDER + 1} numbers from 0 to below 1")
    if not places or places & (places - 1) or not {places} == {len(prior.first), len(prior.count), len(prior.left)}:
        raise ValueError(f"{name}: the table's columns differ in length, or it is no power of two")
    if prior.keys.all():
        raise ValueError(f"{name}: the table has no empty place, so that a search would not end")
    if len(prior.letters) != len(prior.shares) or not 1 <= letters <= 256:
        raise ValueError(f"{name}: entries or alphabet have impossible lengths")
    ends = prior.first.astype(np.int64) + prior.count
    if (ends[prior.keys > 0] > len(prior.letters)).any() or (prior.letters >= letters).any():
        raise ValueError(f"{name}: an entry lies outside the table")
    if prior.alphabet.min() < 0 or len(np.unique(prior.alphabet)) != letters:
        raise ValueError(f"{name}: the alphabet has a token twice, or none")
    empty = prior.find([])
    if empty < 0 or (prior.next([])[0] <= 0).any():
        raise ValueError(f"{name}: the empty context must know the whole alphabet")


def count(ids: Ids, order: int, least: int) -> Prior:
    """Count a text. Contexts of PRUNED_FROM tokens and more are kept from ``least`` occurrences on; gates are 0.

    ValueError for a text of more than 256 different tokens.
    """
    if not 1 <= order <= MAX_ORDER:
        raise ValueError(f"order must be 1 to {MAX_ORDER}, it is {order}")
    alphabet, letters = np.unique(ids, return_inverse=True)
    if len(alphabet) > 256:
        raise ValueError(f"a prior knows at most 256 different tokens, the text has {len(alphabet)}")
    nodes = [_nodes(ids, letters, length, order, least) for length in range(order + 1)]
    sizes = np.concatenate([node.sizes for node in nodes])
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    hashes = _finish(np.concatenate([node.hashes for node in nodes]))
    places = 1 << max(1, math.ceil(math.log2(len(hashes) / LOAD)))
    where, keys = _placed(hashes, places)

    def column(values: NDArray[np.int64]) -> NDArray[np.int64]:
        table = np.zeros(places, np.int64)
        table[where] = values
        return table

    return Prior(
        gates=np.zeros(order + 1, np.float32),
        alphabet=alphabet.astype(np.int32),
        keys=keys,
        first=column(first).astype(np.uint32),
        count=column(sizes).astype(np.uint16),
        left=column(np.concatenate([node.left for node in nodes])).astype(np.uint16),
        letters=np.concatenate([node.letters for node in nodes]).astype(np.uint8),
        shares=np.concatenate([node.shares for node in nodes]).astype(np.uint16),
    )


@dataclass(frozen=True, slots=True)
class _Nodes:
    """All contexts of one length: their entries stand one after the other."""

    hashes: NDArray[np.uint64]  # (K)
    sizes: NDArray[np.int64]  # (K) entries
    left: NDArray[np.int64]  # (K)
    letters: NDArray[np.int64]  # (E)
    shares: NDArray[np.int64]  # (E)


def _nodes(ids: Ids, letters: NDArray[np.int64], length: int, order: int, least: int) -> _Nodes:
    """Below the longest contexts what counts is not how often a token came, but after how many different ones."""
    longer = length < order
    places = np.arange(length + longer, len(ids))
    windows = np.lib.stride_tricks.sliding_window_view(ids, length + longer + 1)[:, :-1].astype(np.int64)
    if longer:
        with np.errstate(over="ignore"):
            whole = _finish(_hashes(windows)) * MULTIPLY + letters[places].astype(np.uint64)
        _, once = np.unique(whole, return_index=True)
        places, windows = places[once], windows[once, 1:]
    hashes, following = _hashes(windows), letters[places]
    sort = np.lexsort((following, hashes))
    hashes, following = hashes[sort], following[sort]
    new_node = np.concatenate([[True], hashes[1:] != hashes[:-1]])
    new_entry = new_node | np.concatenate([[True], following[1:] != following[:-1]])
    starts = np.flatnonzero(new_entry)
    counts = np.diff(np.concatenate([starts, [len(hashes)]]))
    node = np.cumsum(new_node)[starts] - 1
    totals = np.bincount(node, counts).astype(np.int64)
    if length >= PRUNED_FROM:
        kept = totals >= least
        starts, counts, node = starts[kept[node]], counts[kept[node]], (np.cumsum(kept) - 1)[node[kept[node]]]
        first_rows = np.flatnonzero(new_node)[kept]
        totals = totals[kept]
    else:
        first_rows = np.flatnonzero(new_node)
    discount = DISCOUNT if length else 0.0
    shares = np.floor((counts - discount) / totals[node] * UNIT).astype(np.int64)
    if not length:  # nothing is left to a shorter context, and every token must have a share
        shares = np.maximum(shares, 1)
        shares[shares.argmax()] += int(UNIT) - int(shares.sum())
    shares = shares.clip(0, int(UNIT) - 1)
    left = (UNIT - np.bincount(node, shares, len(totals))).astype(np.int64)
    return _Nodes(hashes[first_rows], np.bincount(node, minlength=len(totals)), left, following[starts], shares)


def _placed(hashes: NDArray[np.uint64], places: int) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
    """Where each context stands, and the keys of the table: the first free place from its own on."""
    table = [0] * places
    where = np.zeros(len(hashes), np.int64)
    for i, value in enumerate(hashes.tolist()):
        place = value & (places - 1)
        while table[place]:
            place = (place + 1) & (places - 1)
        table[place] = value >> 32 or 1
        where[i] = place
    return where, np.array(table, np.uint32)


def fit_gates(prior: Prior, bits: NDArray[np.float64], ids: Ids, start: int) -> Prior:
    """The gates under which ids[start:], of which a network alone needs ``bits``, are likeliest (by EM)."""
    q, longest = prior.targets(ids, start)
    p = np.exp2(-bits)
    gates = np.full(prior.order + 1, 0.2)
    seen = np.bincount(longest, minlength=prior.order + 1)
    for _ in range(GATE_ROUNDS):
        gate = gates[longest]
        of_prior = gate * q / ((1 - gate) * p + gate * q)
        gates = (np.bincount(longest, of_prior, prior.order + 1) + 0.2) / (seen + 1)
    return replace(prior, gates=gates.astype(np.float32))
