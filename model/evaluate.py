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

from model.batches import Ids
from model.network import Network

Bits = NDArray[np.float64]
PIECE = 4096  # positions of one call with a state
ROWS = 8  # sequences side by side


class Depth(NamedTuple):
    """One row of the table."""

    depth: int  # characters of preceding text, at least; fewer than twice as many
    bits: float  # per character
    difference: float  # to overlapping windows, mean of the paired differences
    standard_error: float  # of that mean, over blocks of 1,000 characters


def _bits(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none") / math.log(2)


@torch.inference_mode()
def windows(network: Network, ids: Ids, start: int, length: int, stride: int) -> Bits:
    """Bits of ids[start:], each scored by a window of ``length`` that moves by ``stride``.

    So each character has between ``length - stride`` and ``length`` characters of context, where the text has them.
    """
    if start < 1 or stride > length:
        raise ValueError(
            f"stride {stride} and start {start}: a stride is at most the window of {length}, a start at least 1"
        )
    count = len(ids) - start
    scored = np.zeros(count)
    firsts = range(0, count, stride)
    for group in _groups(list(firsts), ROWS * 4):
        # a window ends where its stride ends; it begins a length before, or where the text begins
        ends = [min(start + first + stride, len(ids)) for first in group]
        begins = [max(0, end - length - 1) for end in ends]
        size = max(end - begin for begin, end in zip(begins, ends, strict=True))
        rows = np.zeros((len(group), size), np.int64)
        for row, begin, end in zip(rows, begins, ends, strict=True):
            row[: end - begin] = ids[begin:end]
        tokens = torch.from_numpy(rows)
        logits, _ = network(tokens[:, :-1])
        bits = _bits(logits, tokens[:, 1:]).numpy()
        for i, (first, begin, end) in enumerate(zip(group, begins, ends, strict=True)):
            new = end - start - first
            scored[first : first + new] = bits[i, end - begin - 1 - new : end - begin - 1]
    return scored


@torch.inference_mode()
def by_depth(network: Network, ids: Ids, start: int, depth: int) -> Bits:
    """Bits of ids[start:], each after ``depth`` to twice ``depth`` characters of one uninterrupted stream."""
    if not 1 <= depth <= start:
        raise ValueError(f"depth {depth}: there are {start} characters before the scored ones")
    count = len(ids) - start
    scored = np.zeros(count)
    size = min(depth, count)
    for group in _groups(
        list(range(0, count, size)), max(1, min(256, PIECE * ROWS // (2 * size))) if size < PIECE else ROWS
    ):
        rows = np.zeros((len(group), depth + size), np.int64)
        lengths = []
        for row, first in zip(rows, group, strict=True):
            # the stream reads from ``depth`` before its first scored character up to the one before its last
            part = ids[start + first - depth : start + first + size]
            row[: len(part)] = part
            lengths.append(len(part) - depth)
        bits = np.concatenate(list(_stream(network, torch.from_numpy(rows))), 1)
        for i, (first, new) in enumerate(zip(group, lengths, strict=True)):
            scored[first : first + new] = bits[i, depth - 1 : depth - 1 + new]
    return scored


def _stream(network: Network, tokens: torch.Tensor) -> Iterator[Bits]:
    """Bits of tokens[:, 1:] by the recurrence, in pieces that carry the state."""
    states = network.init_state(len(tokens))
    for at in range(0, tokens.shape[1] - 1, PIECE):
        piece = tokens[:, at : at + PIECE + 1]
        logits, states = network(piece[:, :-1], states)
        yield _bits(logits, piece[:, 1:]).numpy()


@torch.inference_mode()
def per_dimension(network: Network, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Bits per sub-pixel of images as sequences (N, H W 3)."""
    total = 0.0
    for x, y in zip(inputs.split(ROWS), targets.split(ROWS), strict=True):
        logits, _ = network(x)
        total += float(_bits(logits, y).sum())
    return total / targets.numel()


def _groups(items: list[int], size: int) -> Iterator[list[int]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]


def compare(depth: int, bits: Bits, overlapping: Bits) -> Depth:
    """Paired differences; neighbours are not independent, so their error is taken over blocks."""
    difference = bits - overlapping
    blocks = difference[: len(difference) // 1000 * 1000].reshape(-1, 1000).mean(1)
    error = float(blocks.std(ddof=1) / math.sqrt(len(blocks))) if len(blocks) > 1 else math.nan
    return Depth(depth, float(bits.mean()), float(difference.mean()), error)
