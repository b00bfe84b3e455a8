"""The recurrent form: one position at a time, the same cost at any position.

Letters: B sequences, H heads, C channels of a head, K channels of a head's key (C, or 1 in AFT-conv), s window.

The state holds the last s keys and, for the keys that have left the window, two sums. All of it is relative to a
frame X, one a channel: a stored e is exp(k) = e 2^X. X is a multiple of 64, so that a change of frame multiplies by
a power of two, which is exact. M follows the largest key, decayed, in log2; X = 64 rint(M / 64).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from model.bias import Bias

LOG2E = math.log2(math.e)
FRAME_STEP = 64.0  # log2: wide enough that ordinary keys never change X, narrow enough for float32 and bf16


class State(NamedTuple):
    """One layer's decode state, float32; every tensor begins with B."""

    position: Tensor  # (B,) int64: positions consumed
    peak: Tensor  # (B, H, K) M: log2 of the largest decayed key; -inf before the first
    frame: Tensor  # (B, H, K) X
    ring_e: Tensor  # (B, H, s, K) the window's exp(k), oldest first; 0 before the first key
    ring_ev: Tensor  # (B, H, s, C) the same times v
    den: Tensor  # (B, H, K) sum of exp(k) of the keys that left, decayed
    num: Tensor  # (B, H, C) the same times v
    shifted: Tensor  # (B, 2, D) what the token shifts of the layer and of its MLP saw last; (B, 0, D) without
    # (B, L) int64 the network's last tokens, -1 before the first, in the first layer of one that looks back; (B, 0)
    tokens: Tensor


def init_state(
    batch: int, num_heads: int, channels: int, key_channels: int, window: int, device: torch.device, shifts: int = 0
) -> State:
    """The state before the first position."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(batch, num_heads, *shape, device=device)

    return State(
        position=torch.zeros(batch, dtype=torch.int64, device=device),
        peak=torch.full((batch, num_heads, key_channels), -math.inf, device=device),
        frame=zeros(key_channels),
        ring_e=zeros(window, key_channels),
        ring_ev=zeros(window, channels),
        den=zeros(key_channels),
        num=zeros(channels),
        shifted=torch.zeros(batch, shifts, num_heads * channels, device=device),
        tokens=torch.zeros(batch, 0, dtype=torch.int64, device=device),
    )


def reframe(peak: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
    """The frame for a peak, and the power of two that carries stored values there from the old frame."""
    new = FRAME_STEP * torch.round(peak / FRAME_STEP)
    # 2^127 is the largest power in float32; only an empty state (all zeros) ever moves further
    return new, torch.exp2((old - new).clamp(max=127.0))


class Coefficients(NamedTuple):
    """What a step needs of the bias: computed once a call, or once a model."""

    window: Tensor  # (B or 1, H, s, 1) exp(b) of the ring, oldest first
    shrink: Tensor  # (H, 1) exp(-lambda): what the sums lose a step
    leave: Tensor  # (H, 1) exp(-lambda s): what a key has lost when it leaves the window
    decay: Tensor  # (H, 1) lambda log2 e


def coefficients(bias: Bias, positions: Tensor) -> Coefficients:
    """For a step at positions (B,)."""
    decay = bias.decay()[:, None]
    ages = torch.arange(bias.window - 1, -1, -1, device=positions.device)
    logs = bias.band(positions).flip(-1) - decay * ages
    return Coefficients(logs.exp()[..., None], torch.exp(-decay), torch.exp(-decay * bias.window), decay * LOG2E)


def step(k: Tensor, v: Tensor, state: State, c: Coefficients) -> tuple[Tensor, State]:
    """One position: k (B, H, K), v (B, H, C) float32 -> y (B, H, C), the weighted average, and the next state."""
    key = k * LOG2E
    peak = torch.maximum(state.peak - c.decay, key).detach()
    frame, scale = reframe(peak, state.frame)
    e = torch.exp2(key - frame)
    ev = e * v
    old_e, old_ev = state.ring_e, state.ring_ev
    if bool((scale != 1).any()):  # seldom: ordinary keys keep their frame
        old_e, old_ev = old_e * scale[:, :, None], old_ev * scale[:, :, None]
    # the newest key enters and the oldest leaves
    ring_e = torch.cat([old_e, e[:, :, None]], 2)
    ring_ev = torch.cat([old_ev, ev[:, :, None]], 2)
    den = state.den * scale * c.shrink + ring_e[:, :, 0] * c.leave
    num = state.num * scale * c.shrink + ring_ev[:, :, 0] * c.leave
    ring_e, ring_ev = ring_e[:, :, 1:], ring_ev[:, :, 1:]
    y = (num + (ring_ev * c.window).sum(2)) / (den + (ring_e * c.window).sum(2))
    return y, State(state.position + 1, peak, frame, ring_e, ring_ev, den, num, state.shifted, state.tokens)


def scan(k: Tensor, v: Tensor, bias: Bias, state: State) -> tuple[Tensor, State]:
    """All positions of k (B, T, H, K), v (B, T, H, C) by steps: exact at any keys, differentiable, and slow."""
    rows: list[Tensor] = []
    fixed = None if bias.per_position else coefficients(bias, state.position)
    for t in range(k.shape[1]):
        y, state = step(k[:, t], v[:, t], state, fixed or coefficients(bias, state.position))
        rows.append(y)
    return torch.stack(rows, 1), state
