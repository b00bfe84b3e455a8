"""The Attention Free Transformer layer (Zhai et al. 2021, arXiv 2105.14103), causal.

    y_t = sigmoid(q_t) * sum_{t'<=t} exp(k_t' + b(t, t')) v_t'  /  sum_{t'<=t} exp(k_t' + b(t, t'))        (Eq. 2)

q, k, v are projections of the layer's input; an output projection follows. Only the position bias b differs between
the variants (model/bias.py). The average is computed position by position with a state of fixed size
(model/recurrent.py) or for many positions at once (model/parallel.py); both give the same numbers, those of the plain
loops in model/reference.py. The paper writes w_{t,t'} for b(t, t').

Glossary: B sequences, T positions, D channels, H heads, C = D / H channels of a head, K channels of a head's key
(C, or 1 in AFT-conv), s window, q queries, k keys, v values, b position bias, lambda decay.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.bias import make_bias
from model.config import ModelConfig
from model.parallel import mix
from model.recurrent import Coefficients, State, coefficients, init_state, step


class AFT(nn.Module):
    """One layer: (x, state) -> (y, state) for any number of positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.key_channels = config.num_heads, config.keys_per_head
        self.q = nn.Linear(config.dim, config.dim, bias=False)
        self.k = nn.Linear(config.dim, config.num_heads * config.keys_per_head, bias=False)
        self.v = nn.Linear(config.dim, config.dim, bias=False)
        self.o = nn.Linear(config.dim, config.dim, bias=False)
        self.bias = make_bias(config)
        self.shifts = 2 if config.token_shift else 0  # of the block; their last inputs are kept in this layer's state
        self._frozen: Coefficients | None = None
        self.num_scanned = 0  # sequences of the last call that the fast form handed to the exact scan

    def init_state(self, batch: int) -> State:
        """The state of ``batch`` sequences before their first position."""
        channels = self.v.out_features // self.heads
        device = self.v.weight.device
        return init_state(batch, self.heads, channels, self.key_channels, self.bias.window, device, self.shifts)

    def freeze(self) -> None:
        """Compute once what a step needs of the bias; the parameters must not change afterwards."""
        if not self.bias.per_position:
            self._frozen = coefficients(self.bias, torch.zeros(1, dtype=torch.int64, device=self.v.weight.device))

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State | None]:
        """x (B, T, D) -> y (B, T, D). A state in, the state after x out; none in, none out (training)."""
        k = self.k(x).unflatten(2, (self.heads, self.key_channels)).float()
        v = self.v(x).unflatten(2, (self.heads, -1))
        if state is not None and x.shape[1] == 1:
            known = self._frozen or coefficients(self.bias, state.position)
            y, state = step(k[:, 0], v[:, 0].float(), state, known)
            y = y[:, None].to(v.dtype)
        else:
            mixed = mix(k, v, self.bias, state, keep_state=state is not None)
            y, state, self.num_scanned = mixed.y, mixed.state, mixed.num_scanned
        return self.o(self.q(x).sigmoid() * y.flatten(2)), state
