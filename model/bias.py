"""What the position bias b(t, t') may be.

Every causal variant of the paper is one shape: a *band* of free weights for t - t' < s, and zero beyond it, minus
lambda (t - t') everywhere where the model has decay:

    b(t, t') = band[head, t, t - t'] (t - t' < s)  -  lambda[head] (t - t')

The variants differ in how the band is parameterised. A bias answers three questions: ``band`` (the logarithms of
the weights at some positions, for the recurrence), ``block`` (exp b of a chunk against the window before it and
itself, for the parallel form) and ``decay`` (lambda).

Letters: H heads, s window, L positions of a chunk, Q chunks, P positions with weights of their own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model.config import ModelConfig

MAX_WINDOW_DECAY = 40.0  # lambda s: what a key may shrink by until it leaves the window; e^40 still fits the frame


class Bias(nn.Module):
    """No window (AFT-simple), with or without decay; the base of the others."""

    per_position = False  # whether the band differs between positions

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_heads, self.window = config.num_heads, config.window
        self.nothing: Tensor  # tells where the bias is that has no parameters
        self.register_buffer("nothing", torch.empty(0), persistent=False)
        self.log_decay: nn.Parameter | None = None
        if config.decay:
            shortest, longest = math.log(config.min_half_life), math.log(config.max_half_life)
            half_lives = torch.linspace(shortest, longest, config.num_heads).exp()
            # above the limit, see decay(), there is no gradient: a head would never learn
            fastest = MAX_WINDOW_DECAY / max(config.window, 1)
            self.log_decay = nn.Parameter((math.log(2) / half_lives).clamp(max=0.99 * fastest).log())

    def chunk_multiple(self) -> int:
        """What the length of a chunk must be a multiple of, so that all chunks share their weights."""
        return 1

    def decay(self) -> Tensor:
        """Lambda (H,), at most 40 / s; zeros without decay."""
        if self.log_decay is None:
            return torch.zeros(self.num_heads, device=self.device)
        return self.log_decay.float().exp().clamp(max=MAX_WINDOW_DECAY / max(self.window, 1))

    @property
    def device(self) -> torch.device:
        """Where the parameters are, or would be."""
        return self.nothing.device

    def band(self, positions: Tensor) -> Tensor:
        """Logarithms of the window's weights by offset 0 ... s - 1: positions (N,) -> (N or 1, H, s)."""
        return torch.zeros(1, self.num_heads, self.window, device=positions.device)

    def block(self, start: int, num_chunks: int, length: int) -> Tensor:
        """Exp b of each chunk's L positions against the s before the chunk and the L of the chunk itself.

        Returns (H, 1 or Q, L, s + L); 0 where a column lies in the future. Chunks begin at ``start``.
        """
        offsets = torch.arange(self.window + length, device=self.device)
        table = torch.zeros(self.num_heads, self.window + length, device=self.device)
        if self.window:
            table = torch.cat([self.band(offsets[:1])[0], table[:, :length]], 1)
        weights = (table - self.decay()[:, None] * offsets).exp()
        return skew(weights, self.window, length)[:, None]


def skew(table: Tensor, window: int, length: int) -> Tensor:
    """Lay a table by offset (H, s + L) out as a Toeplitz matrix (H, L, s + L): [i, c] = table[i + s - c], else 0.

    Writing the row again and again, one element shorter each time, shifts it by one a row: views and pads only,
    where an indexed gather would need a scatter-add in its backward pass.
    """
    heads, period = table.shape[0], 2 * length + window
    row = torch.cat(
        [
            table[:, : window + 1].flip(1),
            table.new_zeros(heads, length),
            table[:, window + 1 :].flip(1),
        ],
        1,
    )
    flat = row[:, None, :].expand(heads, length, period).reshape(heads, length * period)
    return flat[:, : length * (period - 1)].view(heads, length, period - 1)[:, :, : window + length]


class Relative(Bias):
    """w[head, t - t'] inside the window (AFT-local, relative)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.w = nn.Parameter(torch.randn(config.num_heads, config.window) * 0.01)

    def band(self, positions: Tensor) -> Tensor:
        """(1, H, s): the same at every position."""
        return self.w.float()[None]


class Conv(Bias):
    """AFT-conv's reparameterised window, per head: gamma (w - mean w) / std w + beta; starts out as AFT-simple."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.w = nn.Parameter(torch.randn(config.num_heads, config.window))
        self.gamma = nn.Parameter(torch.zeros(config.num_heads, 1))
        self.beta = nn.Parameter(torch.zeros(config.num_heads, 1))

    def band(self, positions: Tensor) -> Tensor:
        """(1, H, s): the same at every position."""
        w = self.w.float()
        centred = w - w.mean(1, keepdim=True)
        # a window of one weight has no spread; the paper's form is then beta alone
        spread = centred.square().mean(1, keepdim=True).clamp(min=1e-24).sqrt()
        return (self.gamma * centred / spread + self.beta)[None]


class Absolute(Bias):
    """One weight for each pair of positions inside the window; AFT-full when the window is the whole length."""

    per_position = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        assert config.max_model_len is not None
        self.max_model_len = config.max_model_len

    def block(self, start: int, num_chunks: int, length: int) -> Tensor:
        """(1, Q, L, s + L): every chunk has weights of its own."""
        rows = start + torch.arange(num_chunks * length, device=self.device).view(num_chunks, length, 1)
        offsets = self.window + torch.arange(length, device=self.device)[:, None]
        offsets = offsets - torch.arange(self.window + length, device=self.device)
        logs = self.pairs(rows.clamp(max=self.max_model_len - 1), offsets)
        logs = torch.where((offsets >= 0) & (offsets < self.window), logs, 0.0)
        return torch.where(offsets >= 0, logs.exp(), 0.0)[None]

    def _inside(self, positions: Tensor) -> Tensor:
        # a stream that has ended still stands in a batch beside others: any weight will do for it
        return positions.clamp(max=self.max_model_len - 1)

    def pairs(self, rows: Tensor, offsets: Tensor) -> Tensor:
        """The weights of rows (Q, L, 1) at offsets (L, s + L) -> (Q, L, s + L); anything outside the window."""
        raise TypeError("an absolute bias is Free or Factorised")


class Free(Absolute):
    """w[t, t - t'], one parameter a pair."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.w = nn.Parameter(torch.randn(self.max_model_len, config.window) * 0.01)

    def band(self, positions: Tensor) -> Tensor:
        """(N, 1, s): the rows of the table."""
        return self.w.float()[self._inside(positions)][:, None]

    def pairs(self, rows: Tensor, offsets: Tensor) -> Tensor:
        """Look the pairs up."""
        return self.w.float()[rows, offsets.clamp(0, self.window - 1)]


class Factorised(Absolute):
    """u_t . v_t', with u and v in R^(T x d') (section 3.2 of the paper)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.u = nn.Parameter(torch.randn(self.max_model_len, config.bias_rank) * 0.01)
        self.v = nn.Parameter(torch.randn(self.max_model_len, config.bias_rank) * 0.01)

    def band(self, positions: Tensor) -> Tensor:
        """(N, 1, s): each position's row times its window's columns."""
        positions = self._inside(positions)
        columns = positions[:, None] - torch.arange(self.window, device=positions.device)
        window = self.v.float()[columns.clamp(min=0)]
        return torch.einsum("nr,nsr->ns", self.u.float()[positions], window)[:, None]

    def pairs(self, rows: Tensor, offsets: Tensor) -> Tensor:
        """A matrix product a chunk."""
        columns = (rows[:, :1] - offsets[:1]).clamp(0, self.max_model_len - 1)  # (Q, 1, s + L): those of the first row
        return self.u.float()[rows[..., 0]] @ self.v.float()[columns[:, 0]].transpose(1, 2)


class RasterBias(Bias):
    """2-D causal AFT-conv: w[head, row offset, column offset] over the raster's past.

    As an offset t - t' means other rows and columns at other places of a row, the band repeats with the row, and is
    0 where an offset is too far to either side. Offsets count sub-pixels; decay, where there is any, follows t - t'.
    """

    per_position = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        assert config.raster is not None
        self.row = config.raster.row
        reach = config.window_columns
        self.w = nn.Parameter(torch.randn(config.num_heads, config.window // self.row, 2 * reach + 1) * 0.01)
        place = torch.arange(self.row)[:, None]
        behind = place - torch.arange(config.window)  # the key's place, counted from the start of the query's row
        rows, columns = -behind.div(self.row, rounding_mode="floor"), place - behind % self.row
        inside = (columns.abs() <= reach) & (rows < config.window // self.row)
        index = torch.where(inside, rows * (2 * reach + 1) + columns + reach, -1)
        self.index: Tensor  # (W, s) into w of a head; -1: no weight
        self.register_buffer("index", index, persistent=False)

    def chunk_multiple(self) -> int:
        """Whole rows."""
        return self.row

    def table(self) -> Tensor:
        """The band of every place in a row: (H, W, s)."""
        flat = torch.cat([self.w.float().flatten(1), self.w.new_zeros(self.num_heads, 1)], 1)
        return flat[:, self.index]

    def band(self, positions: Tensor) -> Tensor:
        """(N, H, s): by the place in the row."""
        return self.table().transpose(0, 1)[positions % self.row]

    def block(self, start: int, num_chunks: int, length: int) -> Tensor:
        """(H, 1 or Q, L, s + L): one block where chunks are whole rows."""
        shared = length % self.row == 0
        rows = start + torch.arange((1 if shared else num_chunks) * length, device=self.device).view(-1, length)
        offsets = self.window + torch.arange(length, device=self.device)[:, None]
        offsets = offsets - torch.arange(self.window + length, device=self.device)  # (L, s + L)
        table = self.table()[:, rows % self.row]  # (H, Q, L, s)
        inside = (offsets >= 0) & (offsets < self.window)
        index = offsets.clamp(0, self.window - 1).expand(*table.shape[:3], -1)
        logs = torch.where(inside, table.gather(3, index), 0.0)
        weights = (logs - self.decay()[:, None, None, None] * offsets).exp()
        return torch.where(offsets >= 0, weights, 0.0)


def make_bias(config: ModelConfig) -> Bias:
    """The bias that a configuration names."""
    if config.bias == "absolute":
        return Factorised(config) if config.bias_rank else Free(config)
    return {"none": Bias, "relative": Relative, "conv": Conv, "raster": RasterBias}[config.bias](config)
