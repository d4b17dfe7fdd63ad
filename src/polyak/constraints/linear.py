"""Sets given by linear equations and inequalities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from .. import _vector
from .._vector import Vector
from ._base import Constraint, real_only


@final
@dataclass(frozen=True, eq=False)
class Halfspace(Constraint):
    """The half-space ⟨normal, x⟩ ≤ offset.

    Args:
        normal: a 1-dim tensor, not zero, with one entry per coordinate of all parameters, in their order.
        offset: any finite number.

    Raises:
        ValueError: the normal is not a non-zero 1-dim tensor, or its length is not the number of parameters.
        TypeError: a parameter is complex.

    Example:
        >>> import torch, polyak
        >>> x = torch.tensor([2.0, 2.0])
        >>> polyak.Halfspace(torch.tensor([1.0, 1.0]), 1.0).project_([x])
        >>> x
        tensor([0.5000, 0.5000])
    """

    normal: Tensor
    offset: float

    def __post_init__(self) -> None:
        if self.normal.dim() != 1 or not bool((self.normal != 0).any()):
            raise ValueError(
                f"Halfspace needs a normal that is a non-zero 1-dim tensor, but {self.normal!r} was given."
            )

    def project_(self, params: Sequence[Tensor]) -> None:
        """x ← x − (⟨a, x⟩ − b)₊ a/‖a‖²."""
        x = real_only("Halfspace", params)
        a = _vector.split_like(_matching("Halfspace", self.normal, x), x)
        excess = (_vector.dot(a, x) - self.offset).clamp(min=0.0)
        _vector.add_(x, a, -excess / _vector.sum_squares(a))


@final
@dataclass(frozen=True, eq=False)
class Affine(Constraint):
    """The affine set matrix · x = offset, for few equations.

    Args:
        matrix: A, a tensor of shape (equations, number of parameters), in the parameters' order.
        offset: b, a 1-dim tensor with one entry per equation.

    Raises:
        ValueError: the shapes do not fit, the equations contradict each other, or the width of the matrix is not the
            number of parameters.
        TypeError: a parameter is complex.

    Example:
        >>> import torch, polyak
        >>> x = torch.tensor([2.0, 2.0])
        >>> polyak.Affine(torch.tensor([[1.0, -1.0]]), torch.tensor([2.0])).project_([x])
        >>> x
        tensor([3., 1.])
    """

    matrix: Tensor
    offset: Tensor
    _inverse: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        matrix, offset = self.matrix.double(), self.offset.double()
        if matrix.dim() != 2 or offset.shape != matrix.shape[:1]:
            shapes = f"{tuple(self.matrix.shape)} and {tuple(self.offset.shape)}"
            raise ValueError(f"Affine needs a matrix (m, n) and an offset (m,), but the shapes {shapes} were given.")
        inverse = torch.linalg.pinv(matrix)
        if not torch.allclose(matrix @ (inverse @ offset), offset, rtol=1e-8, atol=1e-8):
            raise ValueError("Affine: no point satisfies all the equations, remove those that contradict the others.")
        for name, tensor in (("matrix", matrix), ("offset", offset), ("_inverse", inverse)):
            object.__setattr__(self, name, tensor)

    def project_(self, params: Sequence[Tensor]) -> None:
        """x ← x − A⁺(Ax − b)."""
        x = real_only("Affine", params)
        if not x:
            return
        matrix, flat = _matching("Affine", self.matrix, x), _vector.flatten(x)
        residual = matrix.to(flat) @ flat - self.offset.to(flat)
        _vector.add_(x, _vector.split_like(self._inverse.to(flat) @ residual, x), -1.0)


def _matching(owner: str, constant: Tensor, x: Vector) -> Tensor:
    count = sum(tensor.numel() for tensor in x)
    if constant.shape[-1] != count:
        raise ValueError(f"{owner} was made for {constant.shape[-1]} coordinates, but the parameters have {count}.")
    return constant
