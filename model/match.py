"""A match model beside a network of characters: a stream looks up what followed its last characters before.

    p(c) = (softmax(z)(c) + m(c)) / (1 + sum(m)),    m(c) = sum of mass[l] over the matches that c followed

A match is a place in the last ``window`` tokens before which the stream read the same l >= ``shortest`` tokens as now;
the newest ``most`` of them count. Compressors call this a match model (Mahoney, PAQ), language modelling a cache (Kuhn
and De Mori 1990; Grave et al. 2016, arXiv 1612.04426). AFT's sums forget who followed whom; these tokens say it. They
are part of a stream's state and its size is fixed: a step costs the same at every position.

model/calibration.py fits the masses.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

MAX_TOKEN = 2**16 - 1  # tokens are remembered in 16 bits

Ids = NDArray[np.int32]  # a text, as a tokenizer reads it
Recent = NDArray[np.uint16]  # the last tokens of a stream, oldest first


class Match(BaseModel):
    """The shape and the masses of a match model; a part of config.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    window: Annotated[int, Field(ge=1, le=2**20)]  # tokens that a stream remembers
    shortest: Annotated[int, Field(ge=1, le=32)]  # tokens that must agree
    most: Annotated[int, Field(ge=1, le=64)]  # matches that count, the newest first
    masses: Annotated[  # by length of the match from ``shortest`` on; the last is that of all longer ones, too
        list[Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]], Field(min_length=1, max_length=64)
    ]

    @property
    def longest(self) -> int:
        """The length from which on matches are alike."""
        return self.shortest + len(self.masses) - 1

    @property
    def state_bytes(self) -> int:
        """Of the tokens that a stream remembers."""
        return 2 * self.window

    @classmethod
    def unfitted(cls, window: int = 4096, shortest: int = 2, longest: int = 20, most: int = 8) -> Match:
        """A shape whose masses model/calibration.py is to fit. ValueError where no length of a match is left."""
        if longest < shortest:
            raise ValueError(f"the longest match, {longest}, is shorter than the shortest, {shortest}")
        return cls(window=window, shortest=shortest, most=most, masses=[0.1] * (longest - shortest + 1))

    def find(self, recent: Recent) -> dict[int, float]:
        """m by token, from what the stream has read; the token whose newest match is newest first."""
        recent = recent[max(0, len(recent) - self.window) :]
        if len(recent) <= self.shortest:
            return {}
        places = np.arange(len(recent) - 1, self.shortest - 1, -1)  # of the tokens that may have followed a match
        for age in range(1, self.shortest + 1):
            places = places[recent[places - age] == recent[-age]]
        masses: dict[int, float] = {}
        for place in places[: self.most].tolist():
            length = self.shortest
            while length < min(self.longest, place) and recent[place - length - 1] == recent[-length - 1]:
                length += 1
            token = int(recent[place])
            masses[token] = masses.get(token, 0.0) + self.masses[length - self.shortest]
        return masses

    def mixed(self, logits: NDArray[np.float32], recent: Recent) -> NDArray[np.float32]:
        """The logits (V) of p from those of a network: only those of tokens that followed a match differ."""
        found = self.find(recent)
        mixed = logits.copy()
        if found:
            scores = logits.astype(np.float64)
            largest = scores.max()
            log_sum = largest + np.log(np.exp(scores - largest).sum())
            tokens = list(found)
            mixed[tokens] = np.log(np.exp(scores[tokens] - log_sum) + np.array(list(found.values()))) + log_sum
        return mixed

    def mixed_bits(self, bits: NDArray[np.float64], ids: Ids, start: int) -> NDArray[np.float64]:
        """Bits of ids[start:] in one stream that has read all before, from a network's bits of them."""
        lengths, right = self.matches(ids, start)
        mass = np.where(lengths >= 0, np.array(self.masses)[lengths], 0.0)
        mixed: NDArray[np.float64] = np.log2(1 + mass.sum(1)) - np.log2(np.exp2(-bits) + (mass * right).sum(1))
        return mixed

    def matches(self, ids: Ids, start: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """For each of ids[start:] (n, most): the length of its matches less ``shortest`` (-1: none), who was right."""
        count, least = len(ids) - start, self.shortest
        lengths, right = np.full((count, self.most), -1), np.zeros((count, self.most), np.bool_)
        if len(ids) < least:
            return lengths, right
        grams = np.lib.stride_tricks.sliding_window_view(ids, least)
        # places sorted by the tokens before them, then by age: the matches of a place stand just before it
        _, kind = np.unique(grams, axis=0, return_inverse=True)
        kind = kind.reshape(-1)  # numpy 2.0 gives it a second axis
        order = np.argsort(kind, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        targets = np.arange(start, len(ids))
        for j in range(self.most):
            rows = np.flatnonzero(targets >= least)
            own = targets[rows] - least
            at = rank[own] - 1 - j
            # the gram of a place begins ``least`` before it
            there = (at >= 0) & (kind[order[at.clip(min=0)]] == kind[own])
            rows, places = rows[there], order[at[there]] + least
            near = places - least >= targets[rows] - self.window
            rows, places = rows[near], places[near]
            lengths[rows, j] = self._lengths(ids, places, targets[rows]) - least
            right[rows, j] = ids[places] == ids[targets[rows]]
        return lengths, right

    def _lengths(self, ids: Ids, places: NDArray[np.int64], targets: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many tokens before the places are those before the targets, ``shortest`` of which are known to be."""
        lengths = np.full(len(places), self.shortest)
        going = np.arange(len(places))
        for length in range(self.shortest, self.longest):
            before = places[going] - length - 1
            going = going[before >= np.maximum(targets[going] - self.window, 0)]
            going = going[ids[places[going] - length - 1] == ids[targets[going] - length - 1]]
            lengths[going] = length + 1
        return lengths
