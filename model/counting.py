"""From a text to an n-gram prior: count, prune, put into a table; fit the gates.

The gates are fitted where the counts saw nothing: on the validation split, with counts of the training split.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model.prior import MAX_ORDER, MULTIPLY, UNIT, Ids, Prior, finish, hashes_of

DISCOUNT = 0.8  # of each count
PRUNED_FROM = 4  # characters of context: shorter contexts are kept however rare
LOAD = 0.8  # of the table's places, at most
GATE_ROUNDS = 60


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
    hashes = finish(np.concatenate([node.hashes for node in nodes]))
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
            whole = finish(hashes_of(windows)) * MULTIPLY + letters[places].astype(np.uint64)
        _, once = np.unique(whole, return_index=True)
        places, windows = places[once], windows[once, 1:]
    hashes, following = hashes_of(windows), letters[places]
    if not length:  # a token that only begins the text follows nothing, and is known all the same
        once = np.setdiff1d(np.arange(int(letters.max()) + 1), following)
        hashes, following = np.resize(hashes, len(hashes) + len(once)), np.concatenate([following, once])
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
