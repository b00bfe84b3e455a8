"""What a network learns after training, from the validation split: how sure to be, and what a match is worth.

A network that has read its training text several times is too sure of itself on any other. One factor of its logits
(temperature scaling; Guo et al. 2017, arXiv 1706.04599) mends that, and is multiplied into the last norm. The masses
of the match model are fitted together with it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.match import Ids, Match

ROUNDS, SETTLED = 300, 2e-3  # at most, and the relative change of every mass at which the rounds end
LEAP = 1.8  # a round's step, on the logarithms: the bound's own, 1, gets there in twice as many
TINY = 1e-7  # a mass is multiplied, and divided by
LEAST, MOST, NARROW = 0.5, 1.5, 0.01  # the factors that are tried, and how near the best one is found
GOLDEN = (5**0.5 - 1) / 2
EXTRA_HITS, EXTRA_MATCHES = 1.0, 8.0  # given to every length beside what was seen: a rare one is not believed too much


class Fit(NamedTuple):
    """A factor of the logits, the match model, and the bits a token that they give."""

    factor: float
    match: Match | None
    bits: float


def target_bits(
    logits: NDArray[np.float32], targets: NDArray[np.int64], factor: float, rows: int = 4096
) -> NDArray[np.float64]:
    """Bits of targets (n) under logits (n, V) times a factor."""
    bits = np.zeros(len(targets))
    for at in range(0, len(targets), rows):
        scores = logits[at : at + rows].astype(np.float64) * factor
        scores -= scores.max(1, keepdims=True)
        own = scores[np.arange(len(scores)), targets[at : at + rows]]
        bits[at : at + rows] = np.log2(np.exp(scores).sum(1)) - own / np.log(2)
    return bits


class Evidence(NamedTuple):
    """What the matches of each of n tokens said, by length (L): how many there were, and how many were right."""

    matched: NDArray[np.float64]  # (n, L)
    hits: NDArray[np.float64]  # (n, L)


def evidence(match: Match, ids: Ids, start: int) -> Evidence:
    """Of ids[start:], after all that stands before."""
    lengths, right = match.matches(ids, start)
    shape = (len(lengths), len(match.masses))
    places = np.arange(len(lengths))[:, None] * shape[1] + lengths

    def counted(which: NDArray[np.bool_]) -> NDArray[np.float64]:
        return np.bincount(places[which], minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)

    return Evidence(counted(lengths >= 0), counted((lengths >= 0) & right))


def fit_masses(match: Match, bits: NDArray[np.float64], seen: Evidence) -> Match:
    """The masses under which the tokens are likeliest, of which a network alone needs ``bits`` (n).

    A round maximises a bound of the logarithm of the likelihood that is a sum of one term a mass and touches it at the
    masses of the round before (Jensen's inequality for the numerator, a tangent for the denominator), and then goes
    ``LEAP`` times as far.
    """
    p, masses = np.maximum(np.exp2(-bits), TINY), np.maximum(match.masses, TINY)
    for _ in range(ROUNDS):
        numerator, denominator = p + seen.hits @ masses, 1 + seen.matched @ masses
        right, all_ = masses * ((1 / numerator) @ seen.hits), (1 / denominator) @ seen.matched
        change = ((right + EXTRA_HITS) / (all_ + EXTRA_MATCHES) / masses) ** LEAP
        masses = masses * change
        if abs(change - 1).max() < SETTLED:
            break
    return Match.model_validate({**match.model_dump(), "masses": [round(float(mass), 7) for mass in masses]})


def is_at_limit(factor: float) -> bool:
    """Whether a better one may lie beyond those that are tried."""
    return not LEAST + 2 * NARROW < factor < MOST - 2 * NARROW


def fit(logits: NDArray[np.float32], ids: Ids, start: int, match: Match | None) -> Fit:
    """The best factor of the logits (n, V) of ids[start:], and the masses beside it; by golden section.

    ValueError where a logit is no number.
    """
    if not np.isfinite(logits).all():
        raise ValueError("the network's logits are no numbers: there is nothing to calibrate")
    seen = evidence(match, ids, start) if match is not None else None
    targets = ids[start:].astype(np.int64)

    def at(factor: float, near: Match | None) -> Fit:
        bits = target_bits(logits, targets, factor)
        if near is None or seen is None:
            return Fit(factor, None, float(bits.mean()))
        found = fit_masses(near, bits, seen)
        mass = np.array(found.masses)
        mixed = np.log2(1 + seen.matched @ mass) - np.log2(np.exp2(-bits) + seen.hits @ mass)
        return Fit(factor, found, float(mixed.mean()))

    low, high = LEAST, MOST
    unscaled = at(1.0, match)
    left = at(high - GOLDEN * (high - low), unscaled.match)
    right = at(low + GOLDEN * (high - low), left.match)
    while high - low > NARROW:
        if left.bits < right.bits:
            high, right = right.factor, left
            left = at(high - GOLDEN * (high - low), right.match)
        else:
            low, left = left.factor, right
            right = at(low + GOLDEN * (high - low), left.match)
    return min(unscaled, left, right, key=lambda found: found.bits)
