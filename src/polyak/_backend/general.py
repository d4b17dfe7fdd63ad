"""The general backend: PyTorch's own operations on every device, for every type and layout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from .chunks import Vector, chunks, must_not_sync
from .moves import MOVES, Form
from .packed import types
from .scalars import LARGEST, Scalar, number
from .vector import (
    add_up,
    axpy_,
    dot,
    over_processes,
    relative_rounding,
    rescale_,
    scalar_dtype,
    scale_,
    squares,
    sum_squares,
)


@final
class General:
    """The vectors of a group that a step measures and moves.

    The parameters x, their gradients g, the direction u of the move (the gradient unless a method sets another) and the
    method's buffers are lists of real tensors: the local pieces of sharded parameters, real views of complex ones.
    Scalars are plain numbers if `numbers`, else 0-dim tensors on the device, which the host never reads.
    """

    def __init__(
        self, group: dict[str, Any], params: Sequence[Tensor], x: Vector, g: Vector, buffers: Mapping[str, Vector]
    ) -> None:
        self.group, self.params, self.x, self.g, self.u, self.buffers = group, params, x, g, g, buffers
        self.form = Form.PLAIN
        self.mu: Any = 0.0
        self._keep: Any = 1.0
        self._skip: Tensor | None = None
        self.numbers, self.sharded = not must_not_sync(group["step_size"].device), False

    @property
    def largest(self) -> float:
        """The largest number that every parameter's type holds, float16 aside, which `sum_after` checks."""
        return largest_but_float16(types(self.x), self.group)

    @property
    def has_float16(self) -> bool:
        """Whether a parameter is float16."""
        return torch.float16 in types(self.x)

    @property
    def rounding(self) -> float:
        """The relative error that rounding may leave in the norm of the rescaled parameters."""
        return relative_rounding(self.x)

    def sum_squares(self, x: Vector) -> Scalar:
        """Return ‖x‖², over all processes that hold a part of it."""
        return self._scalar(sum_squares(x, self.params, self.group["foreach"]))

    def dot(self, x: Vector, y: Vector) -> Scalar:
        """Return ⟨x, y⟩, over all processes that hold a part of it."""
        return self._scalar(dot(x, y, self.params))

    def move(self, gamma: Scalar, keep: Scalar, skip: Any, measured: bool) -> Scalar | None:
        """Move the parameters by γ along −u; return their new ‖x‖² if it is to be `measured`.

        Where `skip` is true, nothing moves, and the momentum is multiplied by `keep`, which is μ in every other step.
        """
        self._keep, self._skip = (keep, None) if self.numbers else (keep, skip)
        move, dtype = MOVES[self.form], scalar_dtype(self.x)
        squared: list[Scalar] = []
        momentum = self.buffers.get("momentum_buffer", self.x)
        for x, u, v in chunks(self.x, self.u, momentum, foreach=self.group["foreach"]):
            move(self, x, u, v, gamma, self.mu)
            if measured:  # right after the move, while a cache still holds the chunk
                squared += squares(x, dtype)
        return self._scalar(add_up(squared, self.group["step_size"])) if measured else None

    def scale_(self, x: Vector, a: Scalar) -> None:
        """x ← a·x."""
        rescale_(x, a)

    def axpy_(self, x: Vector, y: Vector, a: Scalar) -> None:
        """x ← x + a·y, for one chunk."""
        axpy_(x, y, a, self._skip)

    def accumulate_(self, x: Vector, u: Vector, v: Vector, mu: Scalar, b: Scalar, w: Scalar) -> None:
        """v ← μv + b·u;  x ← x + w·v, for one chunk."""
        scale_(v, self._keep if self._skip is not None else mu)
        axpy_(v, u, b, self._skip)
        axpy_(x, v, w, self._skip)

    def _scalar(self, scalar: Scalar) -> Scalar:
        return number(scalar) if self.numbers else scalar


def largest_but_float16(dtypes: set[torch.dtype], group: dict[str, Any]) -> float:
    """Return the largest number that types hold; of float16 alone, the largest scalar."""
    scalar = LARGEST[group["step_size"].dtype] if dtypes else math.inf
    return min([LARGEST[dtype] for dtype in dtypes - {torch.float16}], default=scalar)


def as_general(part: Any) -> General:
    """Return the vectors of a part of another backend, for a direction that its kernels cannot take."""
    general = General(part.group, part.params, part.x, part.u, part.buffers)
    general.form, general.mu = part.form, part.mu
    return general


def sum_after(part: Any, gamma: Scalar) -> Scalar:
    """Return Σ|x| + Σ|v| over what is float16, as a move would leave it: inf or NaN if float16 cannot hold that."""
    general = as_general(part)
    v = part.buffers.get("momentum_buffer", part.x)
    rows = [*zip(part.params, part.x, part.u, v, strict=True)]
    narrow = [row for row in rows if torch.float16 in (row[1].dtype, row[3].dtype)]

    def here(some: list[tuple[Tensor, ...]]) -> Scalar:
        found: list[Scalar] = []
        _, *columns = [[*column] for column in zip(*some, strict=True)]
        for x, u, v in chunks(*columns, foreach=part.group["foreach"]):
            trial, buffer = [tensor.clone() for tensor in x], [tensor.clone() for tensor in v]
            MOVES[part.form](general, trial, u, buffer, gamma, part.mu)
            moved = trial if part.form is Form.PLAIN else [*trial, *buffer]
            found += [torch.linalg.vector_norm(tensor, 1, dtype=torch.float32) for tensor in moved]
        return add_up(found, part.group["step_size"])

    scalar = over_processes(here, [row[0] for row in narrow], narrow)
    return number(scalar) if part.numbers else scalar
