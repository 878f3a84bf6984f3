"""Muon: momentum whose update is orthogonalised, for the hidden matrices.

Source: Keller Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the
quintic's coefficients are theirs. Matrices that a layer keeps side by side (q, k, v; gate, up) are
treated each on its own, and equal shapes go through one batched product.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

import torch
from torch import Tensor, nn

COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)


def orthogonalise(g: Tensor, precision: torch.dtype, steps: int = 5) -> Tensor:
    """The nearest half-orthogonal matrices to g [n, rows, columns], rows <= columns, roughly."""
    a, b, c = COEFFICIENTS
    x = g.to(precision)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.float()


class Muon:
    """Nesterov momentum, orthogonalised; weight decay is decoupled."""

    def __init__(
        self,
        params: list[nn.Parameter],
        width: int,
        *,
        precision: torch.dtype = torch.bfloat16,
        beta: float = 0.95,
        decay: float = 0.01,
    ) -> None:
        """Hold the momentum.

        Args:
            params: 2-d weights.
            width: rows of one of several matrices kept side by side.
            precision: of the products; bfloat16 is enough where the machine computes with it.
            beta: share of the momentum that stays.
            decay: of the weights, per unit of the learning rate.
        """
        self.params, self.width, self.beta, self.decay = params, width, beta, decay
        self.precision = precision
        self.momentum = [torch.zeros_like(p) for p in params]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update every parameter from its gradient."""
        groups: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for p, m in zip(self.params, self.momentum, strict=True):
            grad = p.grad
            assert grad is not None
            m.lerp_(grad, 1 - self.beta)
            update = grad.lerp(m, self.beta)
            parts = self._parts(p)
            for u, w in zip(update.chunk(parts), p.data.chunk(parts), strict=True):
                flip = u.shape[0] > u.shape[1]
                groups[tuple(sorted(u.shape))].append((u.mT if flip else u, w.mT if flip else w))
        for found in groups.values():
            moved = orthogonalise(torch.stack([u for u, _ in found]), self.precision)
            for o, (_, w) in zip(moved, found, strict=True):
                scale = max(1.0, w.shape[-2] / w.shape[-1]) ** 0.5
                w.mul_(1 - rate * self.decay).sub_(o, alpha=rate * scale)

    def _parts(self, p: Tensor) -> int:
        """3 for q, k, v; 2 for gate, up; else 1."""
        rows, columns = p.shape
        if columns != self.width or rows == columns:
            return 1
        return 3 if rows == 3 * columns else 2
