"""The parallel form: many positions by matrix products, for training and prefill.

The positions are split into chunks. A chunk's keys are exp(k - f), f the largest key of the chunk and channel, so
nothing overflows; then one matrix product with exp(b) (shared by the sequences, the channels of a head and, when the
bias is relative, the chunks) sums keys and values together. What precedes a chunk is what the decode state holds:
the last s keys and two sums; they pass from chunk to chunk as the state passes from step to step.

Scaling by a maximum that includes later keys means that one enormous later key can push earlier sums towards zero.
So the result is accepted by its denominators: where one is below 2^-90, that sequence is computed again by the exact
scan. Every other denominator has lost nothing that counts.

Letters: B sequences, T positions, Q chunks of L, H heads, C channels of a head, K channels of a key (C or 1), s
window, M = K + C.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from model.bias import Bias
from model.recurrent import LOG2E, State, init_state, reframe, scan

MIN_DENOMINATOR = 2.0**-90
LN2 = math.log(2)

# Positions up to which T x T at once beats chunks, and the chunk length beyond it (docs/benchmarks.md measures both).
AT_ONCE = 512
CHUNK = 128


class Mixed(NamedTuple):
    """The weighted averages, the state after them (where asked for), and how many sequences took the exact scan."""

    y: Tensor  # (B, T, H, C)
    state: State | None
    num_scanned: int


def chunk_length(length: int, bias: Bias) -> int:
    """L for T positions: all of them, or CHUNK, or the window where that is longer, in whole rows of a raster."""
    if length <= AT_ONCE:
        return length
    multiple = bias.chunk_multiple()
    return min(length, -(-max(CHUNK, bias.window) // multiple) * multiple)


def mix(k: Tensor, v: Tensor, bias: Bias, state: State | None = None, *, keep_state: bool = False) -> Mixed:
    """sum exp(k + b) v / sum exp(k + b) over the past (Eq. 2): k (B, T, H, K) float32, v (B, T, H, C).

    With a state, the past begins there; all sequences must then stand at one position.
    """
    length = k.shape[1]
    size = chunk_length(length, bias)
    whole = length // size * size
    if keep_state and whole < length:  # the state is read at a chunk's end: the rest is a chunk of its own
        head = mix(k[:, :whole], v[:, :whole], bias, state, keep_state=True)
        tail = mix(k[:, whole:], v[:, whole:], bias, head.state, keep_state=True)
        return Mixed(torch.cat([head.y, tail.y], 1), tail.state, max(head.num_scanned, tail.num_scanned))
    sums, after = _sums(k, v, bias, state, size, keep_state)
    channels = v.shape[3]
    num, den = sums[..., -channels:], sums[..., :-channels]
    tiny = (den.detach() <= MIN_DENOMINATOR).flatten(1).any(1)
    if not bool(tiny.any()):
        return Mixed(num / den, after, 0)
    return _rescue(k, v, bias, state, num, den, after, tiny)


def _rescue(
    k: Tensor, v: Tensor, bias: Bias, state: State | None, num: Tensor, den: Tensor, after: State | None, tiny: Tensor
) -> Mixed:
    """Compute the marked sequences again by steps. They are selected, not masked: a mask lets NaN gradients through."""
    good, bad = (~tiny).nonzero()[:, 0], tiny.nonzero()[:, 0]
    begin = state or init_state(k.shape[0], k.shape[2], v.shape[3], k.shape[3], bias.window, k.device)
    exact, exact_state = scan(k[bad].float(), v[bad].float(), bias, State(*(part[bad] for part in begin)))
    order = torch.cat([good, bad]).argsort()
    y = torch.cat([(num[good] / den[good]).float(), exact])[order].to(num.dtype)
    if after is not None:
        after = State(*(torch.cat([a[good], b])[order] for a, b in zip(after, exact_state, strict=True)))
    return Mixed(y, after, len(bad))


def _sums(
    k: Tensor, v: Tensor, bias: Bias, state: State | None, size: int, keep_state: bool
) -> tuple[Tensor, State | None]:
    """Denominators and numerators (B, T, H, M), each relative to a frame of its chunk and channel, which cancels."""
    length = k.shape[1]
    chunks = math.ceil(length / size)
    pad = chunks * size - length
    keys = F.pad(k.float(), (0, 0, 0, 0, 0, pad), value=-math.inf).unflatten(1, (chunks, size))
    values = F.pad(v, (0, 0, 0, 0, 0, pad)).unflatten(1, (chunks, size))
    frame = keys.detach().amax(2)  # f: (B, Q, H, K)
    e = (keys - frame[:, :, None]).exp()
    x = torch.cat([e.to(v.dtype), (e * values).to(v.dtype)], -1)
    x = x.permute(3, 1, 2, 0, 4)  # (H, Q, L, B, M)
    start = 0 if state is None or not bias.per_position else int(state.position[0])
    weights = bias.block(start, chunks, size)  # (H, 1 or Q, L, s + L)
    near = _product(weights[..., bias.window :], x)
    if chunks == 1 and state is None and not keep_state:
        return _unchunk(near, length), None
    f = _spread(frame.permute(2, 1, 0, 3), x.shape[-1])  # (H, Q, B, M)
    before = _Carry.begin(state, x, bias.window)
    ring, ring_f = before.rings(x, f)  # (H, Q, s, B, M), (H, Q, B, M)
    far, far_f, last, last_f = _far_sums(x, f, ring, ring_f, before, bias)
    f, ring_f = f.contiguous(), ring_f.contiguous()
    top = torch.maximum(torch.maximum(f, ring_f), far_f)
    fade = torch.exp(-bias.decay()[:, None] * torch.arange(1, size + 1, device=k.device))  # (H, L)
    sums = near.float() * (f - top).exp()[:, :, None]
    sums = sums + _product(weights[..., : bias.window], ring).float() * (ring_f - top).exp()[:, :, None]
    sums = sums + fade[:, None, :, None, None] * (far * (far_f - top).exp())[:, :, None]
    after = None
    if keep_state:
        after = _final_state(k, x, f, ring[:, -1], ring_f[:, -1], last, last_f, bias, state)
    sums = sums.to(v.dtype)
    if sums.requires_grad:
        # the gradient comes in the order of (B, T, H, M): put right once, or every product above walks it crosswise
        sums.register_hook(torch.Tensor.contiguous)
    return _unchunk(sums, length), after


def _product(weights: Tensor, x: Tensor) -> Tensor:
    """(H, 1 or Q, L, N) @ (H, Q, N, B, M) -> (H, Q, L, B, M)."""
    product: Tensor = (weights.to(x.dtype) @ x.flatten(3)).unflatten(3, x.shape[3:])
    return product


def _unchunk(x: Tensor, length: int) -> Tensor:
    """(H, Q, L, B, M) -> (B, T, H, M)."""
    return x.permute(3, 1, 2, 0, 4).flatten(1, 2)[:, :length]


def _spread(frame: Tensor, width: int) -> Tensor:
    """A frame by key channel (..., K) for keys and values side by side (..., M)."""
    key_channels = frame.shape[-1]
    return torch.cat([frame, frame.expand(*frame.shape[:-1], width - key_channels)], -1)


class _Carry(NamedTuple):
    """What precedes the first chunk, in the layout of the products; every frame is a natural logarithm."""

    ring: Tensor  # (H, 1, s, B, M)
    far: Tensor  # (H, B, M)
    frame: Tensor  # (H, 1, B, M)

    @classmethod
    def begin(cls, state: State | None, x: Tensor, window: int) -> _Carry:
        heads, _, _, batch, width = x.shape
        if state is None:  # an empty past, in a frame below any key
            low = torch.full((heads, 1, batch, width), -1e30, device=x.device)
            return cls(x.new_zeros(heads, 1, window, batch, width), low.new_zeros(heads, batch, width), low)
        ring = torch.cat([state.ring_e, state.ring_ev], -1).permute(1, 2, 0, 3)[:, None]
        far = torch.cat([state.den, state.num], -1).permute(1, 0, 2)
        # an empty state's frame is no bound: nothing is stored in it
        frame = torch.where(state.peak.isinf(), -1e30, state.frame * LN2)
        return cls(ring.to(x.dtype), far, _spread(frame, width).permute(1, 0, 2)[:, None])

    def rings(self, x: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        """The window before each chunk: the carried one, then the ends of the chunks."""
        size, window = x.shape[2], self.ring.shape[2]
        if x.shape[1] == 1:
            return self.ring, self.frame
        ends = x[:, :-1, size - window :]
        return torch.cat([self.ring, ends], 1), torch.cat([self.frame, f[:, :-1]], 1)


def _far_sums(
    x: Tensor, f: Tensor, ring: Tensor, ring_f: Tensor, before: _Carry, bias: Bias
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sums over keys that have left the window, at the end of what precedes each chunk, with their frames.

    Returns (H, Q, B, M) twice, and the same after the last chunk, (H, B, M) twice.
    """
    size, window, decay = x.shape[2], bias.window, bias.decay()
    # age of [window before the chunk | chunk] at the chunk's end; what is younger than s has not left
    ages = torch.arange(window + size - 1, -1, -1, device=x.device)
    leave = torch.where(ages >= window, torch.exp(-decay[:, None] * ages), 0.0)[:, None, None]  # (H, 1, 1, s + L)
    own = _product(leave[..., window:], x)[:, :, 0].float()
    old = _product(leave[..., :window], ring)[:, :, 0].float()
    shrink = (decay * size)[:, None, None]
    far, frame = before.far, before.frame[:, 0]
    fars, frames = [], []
    for q in range(x.shape[1]):
        fars.append(far)
        frames.append(frame)
        top = torch.maximum(torch.maximum(frame - shrink.detach(), ring_f[:, q]), f[:, q])
        far = far * (frame - shrink - top).exp()
        far = far + old[:, q] * (ring_f[:, q] - top).exp() + own[:, q] * (f[:, q] - top).exp()
        frame = top
    return torch.stack(fars, 1), torch.stack(frames, 1), far, frame


def _final_state(
    k: Tensor, x: Tensor, f: Tensor, ring: Tensor, ring_f: Tensor, far: Tensor, far_f: Tensor, bias: Bias,
    state: State | None,
) -> State:  # fmt: skip
    """The decode state after the last position, in the recurrence's own frame."""
    batch, length, _, key_channels = k.shape
    decay = bias.decay()[:, None] * LOG2E
    ages = torch.arange(length - 1, -1, -1, device=k.device)[:, None, None]
    peak = (k.detach().float() * LOG2E - decay * ages).amax(1)
    position = torch.full((batch,), length, dtype=torch.int64, device=k.device)
    if state is not None:
        peak = torch.maximum(peak, state.peak - decay * length)
        position = position + state.position
    peak = peak.detach()
    frame, _ = reframe(peak, torch.zeros_like(peak))
    target = _spread(frame * LN2, x.shape[-1]).permute(1, 0, 2)  # (H, B, M)
    window = torch.cat(
        [ring.float() * (ring_f - target).exp()[:, None], x[:, -1].float() * (f[:, -1] - target).exp()[:, None]], 1
    )
    window = window[:, window.shape[1] - bias.window :].permute(2, 0, 1, 3)  # (B, H, s, M)
    sums = (far * (far_f - target).exp()).permute(1, 0, 2)
    split = [key_channels, x.shape[-1] - key_channels]
    ring_e, ring_ev = window.split(split, -1)
    den, num = sums.split(split, -1)
    shifted = k.new_zeros(batch, 0, k.shape[2] * split[1]) if state is None else state.shifted
    tokens = position.new_zeros(batch, 0) if state is None else state.tokens
    return State(position, peak, frame, ring_e, ring_ev, den, num, shifted, tokens)
