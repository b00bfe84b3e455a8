"""Muon in the precision that the machine multiplies fast."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    """torch's Muon (Jordan et al. 2024), whose iteration runs in ``dtype``.

    torch's own always takes bf16. Where no hardware multiplies that, it took 2 of the 7 seconds of a step.
    """

    def __init__(
        self, params: Sequence[Tensor], *, dtype: torch.dtype, lr: float, weight_decay: float, momentum: float
    ) -> None:
        super().__init__(list(params), lr=lr, weight_decay=weight_decay, momentum=momentum)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient. ``closure`` is not supported."""
        if closure is not None:
            raise ValueError("Muon takes no closure here: compute the gradients before")
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix.grad)
                momentum = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
                update = matrix.grad.lerp(momentum, group["momentum"])  # Nesterov's
                update = orthogonal(update.to(self.dtype), group["ns_coefficients"], group["ns_steps"], group["eps"])
                rows, columns = matrix.shape
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))


def orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Near U V^T where matrix (M, N) is U S V^T: Newton and Schulz's iteration, singular values end at 0.5 ... 1.5."""
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.T, coefficients, steps, eps).T
    a, b, c = coefficients
    x: Tensor = matrix / matrix.norm().clamp(min=eps)  # so that no singular value is above 1
    for _ in range(steps):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x
