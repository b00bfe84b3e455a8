"""The network: embedding -> blocks -> norm -> head, and nothing else."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.aft import AFT
from model.config import ModelConfig, Raster
from model.recurrent import State


class Dropout(nn.Module):
    """As nn.Dropout, with a rate in steps of 1/256: eight decisions from one draw of 64 bits.

    On a CPU random bits come from one thread; nn.Dropout draws anew for every element and takes a tenth of a step.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.dropped = min(255, max(round(256 * rate), rate > 0))  # of the 256 values of a byte

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape -> the same."""
        if not self.training or self.dropped == 0:
            return x
        draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        keep = (draws.view(torch.uint8)[: x.numel()] >= self.dropped).view(x.shape)
        return torch.where(keep, x * (256 / (256 - self.dropped)), 0.0)


class MLP(nn.Module):
    """Two layers, position by position."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.dim, config.mlp_ratio * config.dim)
        self.down = nn.Linear(config.mlp_ratio * config.dim, config.dim)
        self.squared_relu = config.activation == "squared_relu"

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        hidden = self.up(x)
        y: Tensor = self.down(F.relu(hidden).square() if self.squared_relu else F.gelu(hidden, approximate="tanh"))
        return y


class TokenShift(nn.Module):
    """y_t = share x_t + (1 - share) x_(t-1), by channel; before the first position stands 0.

    From RWKV (Peng et al. 2023, arXiv 2305.13048, section 3.1), with one share for q, k and v.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.full((config.dim,), 0.5))

    def forward(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        """x (B, T, D), the x before it (B, D) where it is not the first -> y (B, T, D)."""
        if before is None:
            shifted = F.pad(x, (0, 0, 1, 0))[:, :-1]
        else:
            shifted = torch.cat([before[:, None].to(x.dtype), x[:, :-1]], 1)
        return torch.lerp(shifted, x, self.share.to(x.dtype))


class Block(nn.Module):
    """Two additions: x + aft(norm(x)), then x + mlp(norm(x)); with a token shift after each norm where asked for."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_aft = nn.LayerNorm(config.dim)
        self.aft = AFT(config)
        self.norm_mlp = nn.LayerNorm(config.dim)
        self.mlp = MLP(config)
        self.shift_aft = TokenShift(config) if config.token_shift else None
        self.shift_mlp = TokenShift(config) if config.token_shift else None
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State | None]:
        """x (B, T, D), state -> the same after the block."""
        before = None if state is None else state.shifted
        normed = self.norm_aft(x)
        y, state = self.aft(self._shifted(self.shift_aft, normed, before, 0), state)
        x = x + self.dropout(y)
        last, normed = normed[:, -1], self.norm_mlp(x)
        x = x + self.dropout(self.mlp(self._shifted(self.shift_mlp, normed, before, 1)))
        if state is not None and self.shift_aft is not None:
            state = state._replace(shifted=torch.stack([last, normed[:, -1]], 1).float())
        return x, state

    @staticmethod
    def _shifted(shift: TokenShift | None, x: Tensor, before: Tensor | None, number: int) -> Tensor:
        if shift is None:
            return x
        y: Tensor = shift(x, None if before is None else before[:, number])
        return y


class RasterEmbedding(nn.Module):
    """A sub-pixel's value, shared by R, G and B, plus the channel, row and column of the place it is asked for."""

    def __init__(self, config: ModelConfig, raster: Raster) -> None:
        super().__init__()
        self.raster = raster
        self.value = nn.Embedding(config.vocab_size, config.dim)
        self.channel = nn.Embedding(raster.channels, config.dim)
        self.row = nn.Embedding(raster.height, config.dim)
        self.column = nn.Embedding(raster.width, config.dim)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Tokens (B, T), positions (B or 1, T) -> (B, T, D)."""
        places = (positions - self.raster.name_length).clamp(0, self.raster.size - 1)
        pixel = places // self.raster.channels
        column, row = self.column(pixel % self.raster.width), self.row(pixel // self.raster.width)
        y: Tensor = self.value(tokens) + self.channel(places % self.raster.channels) + row + column
        return y


class Lookback(nn.Module):
    """The tokens some places before the one that comes next, each by a table of its own; the last is no part of it.

    One more table, where asked for, reads the mirror image of what comes next: the sub-pixel of its channel as far left
    of its row's middle as it is to come right of it. Left of the middle there is none.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.distances, self.raster, self.length = config.lookback, config.raster, config.remembered - 1
        self.tables = nn.ModuleList(nn.Embedding(config.vocab_size, config.dim) for _ in self.distances)
        self.mirror = nn.Embedding(config.vocab_size, config.dim) if config.mirror else None

    def forward(self, tokens: Tensor, before: Tensor, positions: Tensor) -> Tensor:
        """Tokens (B, T), the ``length`` before them, -1 where there were none, positions (B or 1, T) -> (B, T, D)."""
        stream, count = torch.cat([before, tokens], 1), tokens.shape[1]
        y = torch.zeros((), device=tokens.device)
        for table, distance in zip(self.tables, self.distances, strict=True):
            at = self.length - distance + 1
            y = y + _looked_up(table, stream[:, at : at + count])
        if self.mirror is not None and self.raster is not None:
            distances = mirrored(positions, self.raster)
            last = self.length + torch.arange(count, device=tokens.device)
            seen = stream.gather(1, (last + 1 - distances.clamp(min=1)).expand(len(stream), -1))
            y = y + _looked_up(self.mirror, torch.where(distances > 0, seen, -1))
        return y


def _looked_up(table: nn.Module, seen: Tensor) -> Tensor:
    y: Tensor = table(seen.clamp(min=0)) * (seen >= 0)[..., None]
    return y


def mirrored(positions: Tensor, raster: Raster) -> Tensor:
    """How many places before what comes after these positions its mirror image stands; below 1: it is to come."""
    places = (positions - raster.name_length).clamp(min=0)
    column = places // raster.channels % raster.width
    return (2 * column - (raster.width - 1)) * raster.channels


class Network(nn.Module):
    """Token ids in, logits of the next token out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed: nn.Embedding | RasterEmbedding
        if config.raster is None:
            self.embed = nn.Embedding(config.vocab_size, config.dim)
        else:
            self.embed = RasterEmbedding(config, config.raster)
        self.lookback = Lookback(config) if config.remembered else None
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.apply(self._init)
        if config.tied_head and isinstance(self.embed, nn.Embedding):
            self.head.weight = self.embed.weight

    def _init(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            # what is added to the residual stream starts small, so that depth does not grow its variance
            added = any(module is part for block in self._blocks for part in (block.aft.o, block.mlp.down))
            nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * len(self.blocks)) if added else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @property
    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def init_state(self, batch: int) -> list[State]:
        """One state a layer, for ``batch`` sequences before their first position."""
        first, *others = (block.aft.init_state(batch) for block in self._blocks)
        if self.lookback is not None:
            first = first._replace(tokens=first.position.new_full((batch, self.lookback.length), -1))
        return [first, *others]

    def freeze(self) -> Network:
        """Ready for inference where it is: no gradients, the biases folded into what a step needs."""
        self.eval().requires_grad_(False)
        for block in self._blocks:
            block.aft.freeze()
        return self

    def forward(self, tokens: Tensor, states: list[State] | None = None) -> tuple[Tensor, list[State]]:
        """Tokens (B, T) int64 -> logits (B, T, vocabulary), and the states after them (empty in training)."""
        hidden, states = self.hidden(tokens, states)
        return self.head(hidden), states

    def hidden(self, tokens: Tensor, states: list[State] | None = None) -> tuple[Tensor, list[State]]:
        """The same before the head: (B, T, D)."""
        x = self.dropout(self._embedded(tokens, states))
        after: list[State] = []
        for i, block in enumerate(self.blocks):
            x, state = block(x, states[i] if states else None)
            if state is not None:
                after.append(state)
        if states and self.lookback is not None:
            read = torch.cat([states[0].tokens, tokens], 1)
            after[0] = after[0]._replace(tokens=read[:, -self.lookback.length :])
        return self.norm(x), after

    def _embedded(self, tokens: Tensor, states: list[State] | None) -> Tensor:
        positions, embed = self._positions(tokens, states), self.embed
        y: Tensor = embed(tokens) if isinstance(embed, nn.Embedding) else embed(tokens, positions)
        if self.lookback is not None:
            before = states[0].tokens if states else tokens.new_full((len(tokens), self.lookback.length), -1)
            y = y + self.lookback(tokens, before, positions)
        return y

    def _positions(self, tokens: Tensor, states: list[State] | None) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        if states:
            positions = positions + states[0].position[:, None]
        return positions

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.head.weight.device

    @property
    def num_scanned(self) -> int:
        """Sequences that the last call computed by the exact scan, summed over layers: a metric of training."""
        return sum(block.aft.num_scanned for block in self._blocks)

    @property
    def num_parameters(self) -> int:
        """Parameters, shared ones once."""
        return sum(p.numel() for p in self.parameters())
