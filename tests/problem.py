"""The problem that most tests solve: mini-batches of a convex regression, in torch and in NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

import polyak
from adapters import SAMSPS

SHAPES: tuple[tuple[int, ...], ...] = ((3, 2), (), (0,), (4,), (2, 1, 3))


@dataclass(frozen=True)
class Problem:
    """Mini-batches of linear regression with a pseudo-Huber loss, mean_j √(1 + r_j²) − 1 with r = A_t x − b_t.

    It is convex, not quadratic, not symmetric, and without noise one point has loss 0 for every mini-batch.
    """

    A: ndarray
    b: ndarray
    start: ndarray
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def make(
        cls,
        seed: int = 1,
        shapes: Sequence[tuple[int, ...]] = SHAPES,
        batches: int = 3,
        rows: int = 8,
        noise: float = 0.0,
    ) -> Problem:
        """Draw a problem for parameters of the given shapes."""
        rng = np.random.default_rng(seed)
        size = sum(int(np.prod(shape)) for shape in shapes)
        A = rng.normal(size=(batches, rows, size)) * np.geomspace(0.1, 1.0, size)
        b = A @ rng.normal(size=size) + noise * rng.normal(size=(batches, rows))
        return cls(A, b, rng.normal(size=size), tuple(shapes))

    def params(
        self, dtype: torch.dtype = torch.float64, device: str = "cpu", start: ndarray | None = None
    ) -> list[torch.nn.Parameter]:
        """Return fresh parameters at the start."""
        flat = torch.tensor(self.start if start is None else start)
        parts = flat.split([int(np.prod(shape)) for shape in self.shapes])
        pairs = zip(parts, self.shapes, strict=True)
        return [torch.nn.Parameter(part.reshape(shape).clone().to(device, dtype)) for part, shape in pairs]

    def loss(self, params: Sequence[Tensor], t: int = 0) -> Tensor:
        """Return the loss of the mini-batch of step t."""
        x = torch.cat([p.reshape(-1) for p in params])
        batch = t % len(self.A)
        residual = torch.as_tensor(self.A[batch]).to(x) @ x - torch.as_tensor(self.b[batch]).to(x)
        return (residual.square() / (1 + (1 + residual.square()).sqrt())).mean()  # without cancellation near 0

    def oracle(self, x: ndarray, t: int) -> tuple[float, ndarray]:
        """Return the same loss and its gradient in NumPy, for the transcriptions."""
        batch = t % len(self.A)
        residual = self.A[batch] @ x - self.b[batch]
        root = np.sqrt(1 + residual**2)
        return float(np.mean(residual**2 / (1 + root))), self.A[batch].T @ (residual / root) / len(root)

    def steps(
        self, optimizer: polyak.PolyakOptimizer, params: Sequence[Tensor], steps: int, first: int = 0, **given: Any
    ) -> ndarray:
        """Make some steps, the first of them with mini-batch `first`, and return the point after the last."""
        self.steps_without_reading(optimizer, params, steps, first, **given)
        return flat(params)

    def steps_without_reading(
        self, optimizer: polyak.PolyakOptimizer, params: Sequence[Tensor], steps: int, first: int = 0, **given: Any
    ) -> None:
        """Make some steps, on any device."""
        for t in range(first, first + steps):

            def closure(t: int = t) -> Tensor:
                optimizer.zero_grad()
                loss = self.loss(params, t)
                loss.backward()
                return loss

            take_step(optimizer, closure, **given)


def take_step(optimizer: polyak.PolyakOptimizer, closure: Callable[[], Tensor], **given: Any) -> None:
    """Make a step of a loss that a closure computes, with its gradient, as often as the method needs it."""
    if isinstance(optimizer, SAMSPS):
        optimizer.step(closure, twice=True, **given)
    else:
        optimizer.step(loss=closure(), **given)


def flat(params: Sequence[Tensor]) -> ndarray:
    """Return all parameters as one float64 array."""
    return torch.cat([p.detach().reshape(-1).double() for p in params]).numpy()
