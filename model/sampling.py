"""What a draw is: one token from one row of logits. Plain numpy, the oracle of every runtime.

A draw depends on (seed, sample number, position) and on nothing else: its random number is Philox4x32-10 (Salmon et
al. 2011) of the counter (position, sample, 0) under the key seed. So what runs beside a stream, how its prompt
was chunked and whether it was resumed cannot change its text.

The order is fixed: penalties, bias, mask, temperature, top-k, top-p, min-p. Ties go to the lowest id.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
FORBIDDEN_BIAS = -100.0  # a bias of -100 means never, however large the logit


class NothingToDrawError(ValueError):
    """Every token is forbidden, or the logits are not numbers."""

    def __init__(self) -> None:
        super().__init__("no token may be drawn: every one is forbidden, or the logits are not numbers")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to draw; the defaults draw from the model as it is."""

    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0  # (0, 1]: the smallest set of likeliest tokens that reaches this probability
    top_k: int = 0  # 0: off
    min_p: float = 0.0  # [0, 1]: of the likeliest token's probability
    frequency_penalty: float = 0.0  # subtracted for each time that a token was generated
    presence_penalty: float = 0.0  # subtracted once for a token that was generated
    repetition_penalty: float = 1.0  # divides the logit (multiplies a negative one) of every token seen
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0  # int64
    sample: int = 0  # number of the sample within its prompt


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10: four 32-bit words of randomness."""
    a, b, c, d = counter
    k, m = key
    for _ in range(10):
        left, right = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (right >> 32) ^ b ^ k, right & 0xFFFFFFFF, (left >> 32) ^ d ^ m, left & 0xFFFFFFFF
        k, m = (k + 0x9E3779B9) & 0xFFFFFFFF, (m + 0xBB67AE85) & 0xFFFFFFFF
    return a, b, c, d


def uniform(seed: int, sample: int, position: int) -> float:
    """53 random bits as a number in [0, 1)."""
    counter = (position & 0xFFFFFFFF, position >> 32, sample & 0xFFFFFFFF, 0)
    high, low, _, _ = philox(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    return ((high << 21) | (low >> 11)) * 2.0**-53


def log_softmax(logits: NDArray[np.float32]) -> Floats:
    """The model's own log-probabilities (..., V), natural logarithms."""
    wide = logits.astype(np.float64)
    shifted: Floats = wide - wide.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def likeliest(logits: NDArray[np.float32], count: int) -> list[list[tuple[int, float]]]:
    """Of each row of logits (n, V): the likeliest tokens with their log-probabilities; of equals the lowest id."""
    known = log_softmax(logits)
    left, rows = known.copy(), np.arange(len(known))
    found = []
    for _ in range(min(count, known.shape[-1])):  # few are asked for: a sort would take longer
        found.append(left.argmax(-1))
        left[rows, found[-1]] = -np.inf
    if not found:
        return [[] for _ in rows]
    order = np.stack(found, -1)
    values = np.take_along_axis(known, order, -1)
    return [list(zip(ids, row, strict=True)) for ids, row in zip(order.tolist(), values.tolist(), strict=True)]


def penalised(
    logits: NDArray[np.float32] | Floats, params: SamplingParams, counts: NDArray[np.int32], seen: NDArray[np.bool_]
) -> Floats:
    """Penalties and bias: logits (V), how often each token was generated (V), whether it was seen at all (V)."""
    scores: Floats = logits.astype(np.float64)
    if params.repetition_penalty != 1.0:
        factor = np.where(scores > 0, 1 / params.repetition_penalty, params.repetition_penalty)
        scores = np.where(seen, scores * factor, scores)
    if params.frequency_penalty or params.presence_penalty:
        scores = scores - params.frequency_penalty * counts - params.presence_penalty * (counts > 0)
    for token, bias in params.logit_bias.items():
        scores[token] = -math.inf if bias <= FORBIDDEN_BIAS else scores[token] + bias
    return scores


def truncate(scores: Floats, params: SamplingParams) -> Floats:
    """Probabilities (V), not normalised, after temperature, top-k, top-p and min-p; 0 for what is cut."""
    weights: Floats = np.exp((scores - scores.max()) / params.temperature)
    if not (params.top_k or params.top_p < 1 or params.min_p):
        return weights
    order = np.argsort(-weights, kind="stable")  # stable: of equals the lowest id comes first
    ranked = weights[order]
    keep = ranked > 0
    if params.top_k:
        keep[params.top_k :] = False
    if params.top_p < 1:
        before = np.cumsum(ranked * keep) - ranked
        keep &= before < params.top_p * (ranked * keep).sum()
    if params.min_p:
        keep &= ranked >= params.min_p * ranked[0]
    keep[0] = True
    cut = np.zeros_like(weights)
    cut[order[keep]] = ranked[keep]
    return cut


def draw(scores: Floats, params: SamplingParams, position: int) -> int:
    """One token from penalised, masked scores (V). NothingToDrawError where none may be drawn."""
    best = int(scores.argmax())
    if not math.isfinite(scores[best]):  # argmax finds a NaN first
        raise NothingToDrawError
    if params.temperature == 0:
        return best
    cumulative = np.cumsum(truncate(scores, params))
    total = cumulative[-1]
    # the product may round up to the total, which no token reaches beyond
    target = min(uniform(params.seed, params.sample, position) * total, np.nextafter(total, 0))
    return int(np.searchsorted(cumulative, target, side="right"))
