"""Norm balls and the simplex: bounds on the whole vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final, overload

import torch
from torch import Tensor

from .._backend import vector
from .._backend.chunks import must_not_sync
from .._backend.moves import MOMENTUM
from .._backend.scalars import Scalar, number
from ._base import Constraint, check_size, flatten, is_frozen, real_only, split_like


@final
@dataclass(frozen=True, init=False)
class L2Ball(Constraint):
    """The ball ‖x‖₂ ≤ radius; a point outside is rescaled: x ← x · radius/‖x‖₂.

    This is ALI-G's regularisation (Berrada et al. 2020, arXiv:1906.05661, section 3): a maximal norm instead of weight
    decay. Complex parameters are allowed.

    Args:
        radius: the largest norm, a finite number > 0. The authors use 75 and 100 for their networks on CIFAR; a model
            of larger norm is rescaled when an optimizer is constructed.
        relative: instead of a radius, a multiple > 0 of the norm that the parameters have when an optimizer is
            constructed. The optimizer stores the radius, and its `state_dict` keeps it; this object stays as it is.

    Raises:
        ValueError: neither or both are given, or the one that is given is not a finite number > 0.

    Example:
        >>> import torch, polyak
        >>> x = torch.tensor([3.0, 4.0])
        >>> polyak.L2Ball(1.0).project_([x])
        >>> x
        tensor([0.6000, 0.8000])
        >>> polyak.ALIG([torch.nn.Parameter(x)], constraint=polyak.L2Ball(relative=1.5))  # a ball of radius 1.5
        ALIG (...
    """

    radius: float | None
    relative: float | None

    @overload
    def __init__(self, radius: float) -> None: ...
    @overload
    def __init__(self, *, relative: float) -> None: ...
    def __init__(self, radius: float | None = None, *, relative: float | None = None) -> None:
        if relative is None:
            check_size("L2Ball", "radius", radius)
        elif radius is None:
            check_size("L2Ball", "relative", relative)
        else:
            raise ValueError(f"L2Ball takes radius={radius!r} or relative={relative!r}: write one of them.")
        vars(self).update(radius=radius, relative=relative)

    def __repr__(self) -> str:
        return f"L2Ball(relative={self.relative!r})" if self.radius is None else f"L2Ball(radius={self.radius!r})"

    def project_(self, params: Sequence[Tensor]) -> None:
        """x ← x · min{1, radius/‖x‖₂}."""
        x = [vector.local_real_view(p) for p in params]
        factor = self.scale(vector.sum_squares(x, params), vector.relative_rounding(x)) if x else None
        if factor is not None:
            vector.rescale_(x, factor)

    def shrink_(self, parts: Sequence[Any], squares: Sequence[Scalar]) -> Scalar:
        """Project the parts of a model; `squares` add up to their ‖x‖², which is returned."""
        if parts[0].form.holds_y:
            return self._shrink_ahead(parts)
        squared_norm = squares[0] if len(squares) == 1 else vector.add_up(squares, parts[0].group["step_size"])
        rounding = parts[0].rounding if len(parts) == 1 else max([part.rounding for part in parts])
        factor = self.scale(squared_norm, rounding)
        if factor is not None:
            for part in parts:
                part.scale_(part.x, factor)
        return squared_norm

    def _shrink_ahead(self, parts: Sequence[Any]) -> Scalar:
        """Project z = y + k·v, where the parameters hold y: v ← v + δ and y ← y + (1 − k)δ for δ = (factor − 1)z."""
        squares = []
        for part, (x_x, x_v, v_v) in zip(parts, _products(parts), strict=True):
            squares.append(x_x + part.ahead * (2.0 * x_v + part.ahead * v_v))
        rounding = max([part.rounding for part in parts])
        squared_norm = vector.add_up(squares, parts[0].group["step_size"])
        factor = self.scale(squared_norm, rounding)
        if factor is None:
            return squared_norm
        for part in parts:
            k, v, foreach = part.ahead, part.buffers[MOMENTUM], part.group["foreach"]
            own = factor if part.skip is None else torch.where(part.skip, 1.0, factor)
            kept = (1.0 - k) + k * own  # 1 + k(own - 1) would round a small factor off
            part.scale_(v, kept)
            vector.add_(v, part.x, own - 1.0, foreach=foreach)
            part.scale_(part.x, own / kept)  # y ← y + (1 − k)(own − 1)(y + k·v)/kept, in which v is the new one
            vector.add_(part.x, v, k * (1.0 - k) * (own - 1.0) / kept, foreach=foreach)
        return squared_norm

    def scale(self, squared_norm: Scalar, rounding: float) -> Scalar | None:
        """Return min{1, radius/‖x‖₂} for a point of known ‖x‖², or None if it is known to be 1.

        Args:
            squared_norm: ‖x‖², a number or a 0-dim tensor.
            rounding: the relative error that ‖x‖ may have, so that a projected point stays as it is.
        """
        norm = math.sqrt(squared_norm) if isinstance(squared_norm, float) else squared_norm.sqrt()
        radius = self.radius
        if radius is None:
            raise RuntimeError(f"{self} has a radius only within an optimizer: write L2Ball(radius) instead.")
        limit = radius * (1 + rounding)
        if isinstance(norm, Tensor) and must_not_sync(norm.device):
            return torch.where(norm <= limit, 1.0, radius / norm)
        return None if norm <= limit else radius / number(norm)


def _products(parts: Sequence[Any]) -> list[list[Scalar]]:
    """Return ‖x‖², ⟨x, v⟩ and ‖v‖² of each part; one message carries them if all are sharded."""
    pairs = [(part.x, part.buffers[MOMENTUM]) for part in parts]
    if not all([part.sharded for part in parts]):
        singly = zip(parts, pairs, strict=True)
        return [[part.sum_squares(x), part.dot(x, v), part.sum_squares(v)] for part, (x, v) in singly]

    def products(part: Any, own: list[Any]) -> list[Scalar]:
        return [vector.sum_squares(own[0]), vector.dot(*own), vector.sum_squares(own[1])] if own else [0.0] * 3

    return vector.sums_of_parts(parts, pairs, products)


def measured_ball(parts: Sequence[Any], shared: object) -> L2Ball | None:
    """Return the ball that holds just what a step moves, if there is one: the move then measures its ‖x‖²."""
    if not isinstance(shared, L2Ball):
        return None
    for part in parts:
        if "constraint" in part.group or part.sharded:
            return None
        moving = iter(part.params)
        for p in part.group["params"]:
            if (p.requires_grad or not is_frozen(p)) and p is not next(moving, None):
                return None
        if next(moving, None) is not None:  # what is frozen moves, but is no member
            return None
    return shared


@final
@dataclass(frozen=True)
class L1Ball(Constraint):
    """The ball ‖x‖₁ ≤ radius; a point outside is soft-thresholded, which makes it sparse.

    The threshold comes from sorting the whole vector (Duchi et al., ICML 2008, figure 1), so a projection needs memory
    for a few copies of it.

    Args:
        radius: the largest sum of absolute values, a finite number > 0.

    Raises:
        ValueError: the radius is not a finite number > 0.
        TypeError: a parameter is complex.

    Example:
        >>> import torch, polyak
        >>> x = torch.tensor([3.0, 1.0, 0.5])
        >>> polyak.L1Ball(2.0).project_([x])
        >>> x
        tensor([2., 0., 0.])
    """

    takes_complex: ClassVar[bool] = False
    radius: float

    def __post_init__(self) -> None:
        check_size("L1Ball", "radius", self.radius)

    def project_(self, params: Sequence[Tensor]) -> None:
        """x ← sign(x)·max{abs(x) − θ, 0} with the θ ≥ 0 that brings the norm down to the radius."""
        x, flat = real_only(self, params), flatten(params)
        inside = flat.abs().sum() <= self.radius
        if flat.numel() and (must_not_sync(flat.device) or not inside):
            nearest = flat.sign() * _onto_simplex(flat.abs(), self.radius)
            vector.assign_(x, split_like(torch.where(inside, flat, nearest), params))


@final
@dataclass(frozen=True)
class Simplex(Constraint):
    """The simplex x ≥ 0, Σx = total; found by sorting (Duchi et al., ICML 2008, figure 1).

    Args:
        total: the sum of the parameters, a finite number > 0. Default 1.

    Raises:
        ValueError: the total is not a finite number > 0.
        TypeError: a parameter is complex.

    Example:
        >>> import torch, polyak
        >>> x = torch.tensor([1.0, 0.5, -2.0])
        >>> polyak.Simplex().project_([x])
        >>> x
        tensor([0.7500, 0.2500, 0.0000])
    """

    takes_complex: ClassVar[bool] = False
    total: float = 1.0

    def __post_init__(self) -> None:
        check_size("Simplex", "total", self.total)

    def project_(self, params: Sequence[Tensor]) -> None:
        """x ← (x − θ)₊ with the θ that makes the sum right."""
        x, flat = real_only(self, params), flatten(params)
        if flat.numel():
            vector.assign_(x, split_like(_onto_simplex(flat, self.total), params))


def _onto_simplex(values: Tensor, total: float) -> Tensor:
    """Return (values − θ)₊ with the θ that makes the sum equal to the total (Duchi et al., ICML 2008, figure 1)."""
    values = values - values.max()  # numbers far from 0 would swallow the total
    falling = values.sort(descending=True).values
    excess = falling.cumsum(0) - total
    count = torch.arange(1, len(falling) + 1, device=values.device)
    support = (falling * count > excess).sum().clamp(min=1)
    theta = excess.gather(0, support.reshape(1) - 1) / support
    return (values - theta).clamp(min=0.0)
