"""Bits per character: with overlapping windows, and by position through the recurrence.

The second is the promise of an endless stream: the *same* characters of the test split, after 10^2, 10^3 ... of
preceding text. Each is scored once a depth; a stream starts ``depth`` characters before the ones that it scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from model.match import Ids
from model.network import Network
from model.runtime.base import Job, Runtime

Bits = NDArray[np.float64]
PIECE = 4096  # positions of one call of the runtime
ROWS = 32  # windows side by side


class Depth(NamedTuple):
    """One row of the table."""

    depth: int  # characters of preceding text, at least; fewer than twice as many
    bits: float  # per character
    difference: float  # to overlapping windows, mean of the paired differences
    standard_error: float  # of that mean, over blocks of 1,000 characters


def bits_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Logits (B, T, V), targets (B, T) -> bits of each (B, T); 0 where the target is -100, which is none."""
    return F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none") / math.log(2)


def windows(network: Network, ids: Ids, start: int, length: int, stride: int) -> Bits:
    """Bits of ids[start:], each scored by a window of ``length`` that moves by ``stride``.

    So each character has between ``length - stride`` and ``length`` characters of context, where the text has them.
    """
    scored = np.zeros(len(ids) - start)
    for first, logits in _windows(network, ids, start, length, stride):
        targets = torch.from_numpy(ids[start + first : start + first + len(logits)].astype(np.int64))
        scored[first : first + len(logits)] = bits_of(logits[None], targets[None])[0].numpy()
    return scored


def window_logits(network: Network, ids: Ids, start: int, length: int, stride: int) -> NDArray[np.float32]:
    """The logits (n, V) that ``windows`` scores ids[start:] by."""
    found = [logits.float().numpy().copy() for _, logits in _windows(network, ids, start, length, stride)]
    return np.concatenate(found)


def _windows(network: Network, ids: Ids, start: int, length: int, stride: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Windows in order: the place of the first token that each one scores, after ``start``, and the logits of all."""
    if start < 1 or stride > length:
        raise ValueError(
            f"stride {stride} and start {start}: a stride is at most the window of {length}, a start at least 1"
        )
    firsts = range(0, len(ids) - start, stride)
    for group in _groups(list(firsts), ROWS):
        # a window ends where its stride ends; it begins a length before, or where the text begins
        ends = [min(start + first + stride, len(ids)) for first in group]
        begins = [max(0, end - length - 1) for end in ends]
        size = max(end - begin for begin, end in zip(begins, ends, strict=True))
        rows = np.zeros((len(group), size), np.int64)
        for row, begin, end in zip(rows, begins, ends, strict=True):
            row[: end - begin] = ids[begin:end]
        with torch.inference_mode():
            logits = network(torch.from_numpy(rows)[:, :-1].to(network.device))[0].cpu()
        for i, (first, begin, end) in enumerate(zip(group, begins, ends, strict=True)):
            new = end - start - first
            yield first, logits[i, end - begin - 1 - new : end - begin - 1]


def by_depth(runtime: Runtime, ids: Ids, start: int, depth: int) -> Bits:
    """Bits of ids[start:], each after ``depth`` to twice ``depth`` characters of one uninterrupted stream.

    Through the runtime, as a service would read them. ValueError where the text has no such depth, or the model ends.
    """
    count = len(ids) - start
    size = min(depth, count)
    if not 1 <= depth <= start:
        raise ValueError(f"depth {depth}: there are {start} characters before the scored ones")
    if runtime.max_position is not None and depth + size > runtime.max_position:
        raise ValueError(f"depth {depth}: the model ends after {runtime.max_position} positions")
    scored = np.zeros(count)
    for first in range(0, count, size):
        # the stream reads from ``depth`` before its first scored character up to the one before its last
        part = ids[start + first - depth : start + first + size].tolist()
        scored[first : first + size] = _stream(runtime, part)[depth - 1 :]
    return scored


def _stream(runtime: Runtime, tokens: list[int]) -> Bits:
    """Bits of tokens[1:], in one stream of slot 0."""
    runtime.reset(0)
    logprobs: list[float] = []
    for at in range(0, len(tokens) - 1, PIECE):
        piece = tokens[at : at + PIECE + 1]
        (done,) = runtime.run([Job(0, piece[:-1], targets=piece[1:])])
        logprobs += done.target_logprobs
    return np.array(logprobs) / -math.log(2)


@torch.inference_mode()
def per_dimension(network: Network, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Bits per sub-pixel of images as sequences (N, P + H W 3); names, the first P, do not count."""
    total = 0.0
    for x, y in zip(inputs.split(ROWS), targets.split(ROWS), strict=True):
        logits, _ = network(x.to(network.device))
        total += float(bits_of(logits, y.to(network.device)).sum())
    return total / int((targets >= 0).sum())


def _groups(items: list[int], size: int) -> Iterator[list[int]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]


def compare(depth: int, bits: Bits, overlapping: Bits) -> Depth:
    """Paired differences in bits per character; neighbours are not independent: their error is taken over blocks."""
    difference = bits - overlapping
    blocks = difference[: len(difference) // 1000 * 1000].reshape(-1, 1000).mean(1)
    error = float(blocks.std(ddof=1) / math.sqrt(len(blocks))) if len(blocks) > 1 else math.nan
    return Depth(depth, float(bits.mean()), float(difference.mean()), error)
