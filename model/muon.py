"""Muon in the precision that the machine multiplies fast."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    """torch's Muon (Jordan et al. 2024), whose iteration runs in ``dtype``.

    torch's own always takes bf16. Where no hardware multiplies that, it took 2 of the 7 seconds of a step. Off the CPU
    all matrices of one shape are computed together: to begin a product takes longer there than so small a product.
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
            by_shape: dict[Any, list[Tensor]] = {}
            for number, matrix in enumerate(group["params"]):
                if matrix.grad is not None:
                    together = number if matrix.device.type == "cpu" else matrix.shape
                    by_shape.setdefault(together, []).append(matrix)
            for matrices in by_shape.values():
                self._update(matrices, group)

    def _update(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """One update of matrices of one shape."""
        grads = [matrix.grad for matrix in matrices if matrix.grad is not None]
        for matrix in matrices:
            if not self.state[matrix]:
                self.state[matrix]["momentum_buffer"] = torch.zeros_like(matrix)
        momenta = [self.state[matrix]["momentum_buffer"] for matrix in matrices]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        directions = torch._foreach_lerp(grads, momenta, group["momentum"])  # Nesterov's
        how = group["ns_coefficients"], group["ns_steps"], group["eps"]
        if len(directions) > 1:
            updates = orthogonal(torch.stack(directions).to(self.dtype), *how).to(matrices[0].dtype).unbind()
        else:
            updates = (orthogonal(directions[0].to(self.dtype), *how).to(matrices[0].dtype),)
        rows, columns = matrices[0].shape
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(matrices, updates, alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))


def orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Near U V^T where matrix (M, N) is U S V^T: Newton and Schulz's iteration, singular values end at 0.5 ... 1.5.

    Several of one shape, (B, M, N), are computed together.
    """
    if matrix.shape[-2] > matrix.shape[-1]:
        return orthogonal(matrix.mT, coefficients, steps, eps).mT
    a, b, c = coefficients
    add_product = torch.addmm if matrix.ndim == 2 else torch.baddbmm
    norm = torch.linalg.vector_norm(matrix, dim=(-2, -1), keepdim=True)
    x: Tensor = matrix / norm.clamp(min=eps)  # so that no singular value is above 1
    for _ in range(steps):
        square = x @ x.mT
        x = add_product(x, add_product(square, square, square, beta=b, alpha=c), x, beta=a)
    return x
