"""What every constraint is, and the checks they share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

from .._backend.chunks import Vector
from .._backend.distributed import full, piece_of
from .._backend.scalars import is_number, quoted
from .._backend.vector import local_real_view


class Constraint(ABC):
    """A closed convex set Ω of parameter vectors.

    Attributes:
        coordinatewise: whether a projection treats every coordinate by itself, so that pieces of the parameters may be
            projected in different processes. Default False.
        takes_complex: whether the parameters may be complex. Default True; `check` refuses them with False.
    """

    coordinatewise: ClassVar[bool] = False
    takes_complex: ClassVar[bool] = True

    def check(self, params: Sequence[Tensor]) -> None:
        """Raise ValueError or TypeError unless the set is one of such parameters; a step asks before it moves them."""
        if not self.takes_complex and any(p.is_complex() for p in params):
            owner = type(self).__name__
            raise TypeError(
                f"{owner} constrains real parameters, but one is complex: use L2Ball, or torch.view_as_real."
            )

    @abstractmethod
    def project_(self, params: Sequence[Tensor]) -> None:
        """Replace the parameters by the nearest point of the set: x ← Π_Ω(x)."""


def check_size(owner: str, name: str, value: float | None) -> None:
    """Raise ValueError unless a radius is a finite number > 0."""
    if value is None or not (is_number(value) and 0 < value < math.inf):
        raise ValueError(f"{owner}: {name}={quoted(value)} is not allowed, it must be a finite number > 0.")


def is_frozen(p: Tensor) -> bool:
    """Return whether no constraint holds for a parameter; a plain tensor, such as one of torch.func, is not frozen."""
    return not p.requires_grad and isinstance(p, Parameter)


def constrained(params: Iterable[Tensor]) -> list[Tensor]:
    """Return the parameters that a constraint holds for."""
    return [p for p in params if not is_frozen(p)]


def real_only(constraint: Constraint, params: Sequence[Tensor]) -> Vector:
    """Return the local pieces of the parameters; raise ValueError or TypeError unless they are of the set's kind."""
    constraint.check(params)
    return [local_real_view(p) for p in params]


def flatten(owners: Sequence[Tensor]) -> Tensor:
    """Return a copy of whole tensors in one long float64 tensor, in which sums stay exact."""
    parts = [full(p).reshape(-1).to(device=owners[0].device, dtype=torch.float64) for p in owners]
    return torch.cat(parts) if parts else torch.zeros(0, device="cpu")


def split_like(flat: Tensor, owners: Sequence[Tensor]) -> Vector:
    """Cut one long tensor into the shapes, devices and local pieces of its owners."""
    parts = torch.split(flat, [p.numel() for p in owners])
    return [piece_of(part.view(p.shape), p) for part, p in zip(parts, owners, strict=True)]
