"""Networks to compare with: a Transformer, and AFT with a look at the position before.

Each is the shipped network with another mixing layer, so that the trainer, the embedding, the MLPs and the norms are
the same. They can be trained and scored, not served.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.aft import AFT
from model.config import ModelConfig
from model.network import MLP, Network
from model.parallel import mix
from model.recurrent import State

ROTARY_BASE = 10_000.0  # Su et al. 2021, arXiv 2104.09864, section 3.2.2
CONV_WIDTH = 4


class Attention(nn.Module):
    """Causal softmax attention with rotary positions: as many parameters as an AFT layer without its bias."""

    num_scanned = 0

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.q = nn.Linear(config.dim, config.dim, bias=False)
        self.k = nn.Linear(config.dim, config.dim, bias=False)
        self.v = nn.Linear(config.dim, config.dim, bias=False)
        self.o = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, None]:
        """x (B, T, D) -> y (B, T, D); no state comes out."""
        q, k, v = (part(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        return self.o(y.transpose(1, 2).flatten(2)), None


def rotate(x: Tensor) -> Tensor:
    """Turn each pair of channels of x (B, H, T, C) by an angle that grows with the position."""
    half = x.shape[-1] // 2
    rates = ROTARY_BASE ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(x.shape[2], device=x.device)[:, None] * rates
    cos, sin = angles.cos(), angles.sin()
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)


class Transformer(Network):
    """Pre-LN, rotary positions; ``num_heads`` heads of attention. What the config says of the bias is not used."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        for block in self._blocks:
            block.aft = Attention(config)  # type: ignore[assignment]
        self.apply(self._init)


class Shifted(AFT):
    """q, k and v each see a learned mixture of this position's input and the one before, by channel."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.share = nn.Parameter(torch.full((3, config.dim), 0.5))  # of this position; q, k, v

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State | None]:
        """As AFT, for whole sequences."""
        before = F.pad(x, (0, 0, 1, 0))[:, :-1]
        q, k, v = (torch.lerp(before, x, share.to(x.dtype)) for share in self.share)
        return self.mixed(q, k, v)

    def mixed(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, None]:
        """The layer on inputs of their own for q, k and v."""
        keys = self.k(k).unflatten(2, (self.heads, self.key_channels)).float()
        values = self.v(v).unflatten(2, (self.heads, -1))
        mixed = mix(keys, values, self.bias)
        self.num_scanned = mixed.num_scanned
        return self.o(self.q(q).sigmoid() * mixed.y.flatten(2)), None


class ShiftedAtOnce(Shifted):
    """The same with one mixture for q, k and v."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.share = nn.Parameter(torch.full((config.dim,), 0.5))

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State | None]:
        """As AFT, for whole sequences."""
        y = torch.lerp(F.pad(x, (0, 0, 1, 0))[:, :-1], x, self.share.to(x.dtype))
        return self.mixed(y, y, y)


class ShiftedMLP(MLP):
    """The MLP's input is such a mixture, too."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.share = nn.Parameter(torch.full((config.dim,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return super().forward(torch.lerp(F.pad(x, (0, 0, 1, 0))[:, :-1], x, self.share.to(x.dtype)))


class Convolved(Shifted):
    """A short causal convolution by channel before q, k and v, one for all three."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        del self.share
        self.taps = nn.Parameter(torch.zeros(config.dim, 1, CONV_WIDTH))
        with torch.no_grad():
            self.taps[..., -1] = 1.0  # begins as the identity

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State | None]:
        """As AFT, for whole sequences."""
        wide = F.pad(x.transpose(1, 2), (CONV_WIDTH - 1, 0))
        y = F.conv1d(wide, self.taps.to(x.dtype), groups=x.shape[2]).transpose(1, 2)
        return self.mixed(y, y, y)


class ShiftQKV(Network):
    """A token shift before q, k and v, a share for each."""

    layer: type[AFT] = Shifted

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        for block in self._blocks:
            block.aft = self.layer(config)
        self.apply(self._init)


class ShiftLayer(ShiftQKV):
    """One token shift for q, k and v."""

    layer = ShiftedAtOnce


class ShiftQKVAndMLP(ShiftQKV):
    """A token shift before q, k and v, and one before the MLP; the shipped network has one share for q, k and v."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        for block in self._blocks:
            block.mlp = ShiftedMLP(config)
        self.apply(self._init)


class ShortConv(ShiftQKV):
    """The shipped network with a short convolution before q, k and v."""

    layer = Convolved


NETWORKS: dict[str, type[Network]] = {
    "aft": Network,
    "transformer": Transformer,
    "shift_qkv": ShiftQKV,
    "shift_layer": ShiftLayer,
    "shift_qkv_and_mlp": ShiftQKVAndMLP,
    "short_conv": ShortConv,
}
