"""Sets given by linear equations and inequalities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor

from .._backend import vector
from .._backend.distributed import send
from .._backend.scalars import is_number, positive_part, quoted
from ._base import Constraint, flatten, real_only, split_like


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

    takes_complex: ClassVar[bool] = False
    normal: Tensor
    offset: float

    def __post_init__(self) -> None:
        normal = self.normal
        if not (_is_finite(normal) and normal.dim() == 1 and bool(normal.any())):
            given = f"Halfspace: normal={_described(normal)}"
            raise ValueError(f"{given} is not allowed, it must be a finite floating-point 1-dim tensor, not 0.")
        if not (is_number(self.offset) and math.isfinite(self.offset)):
            raise ValueError(f"Halfspace: offset={quoted(self.offset)} is not allowed, it must be a finite number.")

    def check(self, params: Sequence[Tensor]) -> None:
        """Raise unless there are as many real coordinates as the normal has entries."""
        super().check(params)
        _check_count("Halfspace", self.normal, params)

    def project_(self, params: Sequence[Tensor]) -> None:
        """x ← x − (⟨a, x⟩ − b)₊ a/‖a‖²."""
        x = real_only(self, params)
        a = split_like(self.normal, params)
        excess = positive_part(vector.dot(a, x, params) - self.offset)
        vector.add_(x, a, -excess / vector.sum_squares(a, params))


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

    takes_complex: ClassVar[bool] = False
    matrix: Tensor
    offset: Tensor
    _inverse: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        matrix, offset = self.matrix, self.offset
        if not (_is_finite(matrix) and _is_finite(offset) and matrix.dim() == 2 and offset.shape == matrix.shape[:1]):
            given = f"{_described(matrix)} and {_described(offset)}"
            raise ValueError(f"Affine needs finite floating-point tensors of shapes (m, n) and (m,), but got {given}.")
        matrix, offset = matrix.double(), offset.double()
        inverse = torch.linalg.pinv(matrix)
        if not torch.allclose(matrix @ (inverse @ offset), offset, rtol=1e-8, atol=1e-8):
            raise ValueError("Affine: no point satisfies all the equations, remove those that contradict the others.")
        for name, tensor in (("matrix", matrix), ("offset", offset), ("_inverse", inverse)):
            object.__setattr__(self, name, tensor)

    def check(self, params: Sequence[Tensor]) -> None:
        """Raise unless there are as many real coordinates as the matrix has columns."""
        super().check(params)
        _check_count("Affine", self.matrix, params)

    def project_(self, params: Sequence[Tensor]) -> None:
        """x ← x − A⁺(Ax − b)."""
        x = real_only(self, params)
        if not x:
            return
        flat = flatten(params)
        residual = send(self.matrix, flat) @ flat - send(self.offset, flat)
        vector.add_(x, split_like(send(self._inverse, flat) @ residual, params), -1.0)


def _check_count(owner: str, constant: Tensor, params: Sequence[Tensor]) -> None:
    count = sum(p.numel() for p in params)
    if constant.shape[-1] != count:
        raise ValueError(
            f"{owner} was made for {constant.shape[-1]} coordinates, but the parameters that train have {count}: "
            "build it with one entry for each, in their order."
        )


def _is_finite(tensor: object) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_floating_point() and bool(tensor.isfinite().all())


def _described(given: object) -> str:
    return f"a {given.dtype} tensor of shape {tuple(given.shape)}" if isinstance(given, Tensor) else repr(given)
