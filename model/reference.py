"""The equation as float64 loops: slow, plain, and the oracle of every other form. Imported by tests only.

Letters: T positions, C channels, s window. Everything is numpy float64, one head, no batch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def bias_matrix(window: Array, decay: float, length: int) -> Array:
    """b (T, T) from window weights by position (T, s): b[t, t'] = window[t, t - t'] inside, minus decay (t - t')."""
    bias = np.zeros((length, length))
    for t in range(length):
        for past in range(t + 1):
            offset = t - past
            inside = window[t, offset] if offset < window.shape[1] else 0.0
            bias[t, past] = inside - decay * offset
    return bias


def average(k: Array, v: Array, bias: Array) -> Array:
    """sum_{t'<=t} exp(k + b) v / sum_{t'<=t} exp(k + b); k (T, C) or (T, 1), v (T, C), b (T, T) -> (T, C). Eq. 2."""
    k = np.broadcast_to(k, v.shape)
    y = np.zeros_like(v)
    for t in range(v.shape[0]):
        for c in range(v.shape[1]):
            exponents = k[: t + 1, c] + bias[t, : t + 1]
            weights = np.exp(exponents - exponents.max())
            y[t, c] = weights @ v[: t + 1, c] / weights.sum()
    return y


def aft(q: Array, k: Array, v: Array, bias: Array) -> Array:
    """sigmoid(q_t) * the weighted average: the whole of Eq. 2, before the output projection."""
    return average(k, v, bias) / (1.0 + np.exp(-q))


def recurrence(k: Array, v: Array, window: Array, decay: float) -> Array:
    """The same average by a state of fixed size, one position at a time: the oracle where T x T is too much.

    Holds exponents, not exponentials (``log_den`` is the logarithm of the sum of the keys that left the window), so
    no frame is needed; ``mean`` is their weighted average of values.
    """
    k = np.broadcast_to(k, v.shape)
    length, size = v.shape[0], window.shape[1]
    y = np.zeros_like(v)
    log_den = np.full(v.shape[1], -np.inf)
    mean = np.zeros(v.shape[1])
    for t in range(length):
        log_den = log_den - decay
        if t >= size:  # one key leaves the window
            leaving = k[t - size] - decay * size
            total = np.logaddexp(log_den, leaving)
            mean = mean * np.exp(log_den - total) + v[t - size] * np.exp(leaving - total)
            log_den = total
        first = max(0, t - size + 1)
        offsets = t - np.arange(first, t + 1)
        inside = k[first : t + 1] + (window[t, offsets] - decay * offsets)[:, None]
        exponents = np.concatenate([log_den[None], inside])
        weights = np.exp(exponents - exponents.max(0))
        values = np.concatenate([mean[None], v[first : t + 1]])
        y[t] = (weights * values).sum(0) / weights.sum(0)
    return y


def conv_weights(w: Array, gamma: float, beta: float) -> Array:
    """AFT-conv's reparameterisation of one head's window: gamma (w - mean w) / std w + beta."""
    return np.asarray(gamma * (w - w.mean()) / w.std() + beta)
