"""The general backend: PyTorch's own operations on every device, for every type and layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from .chunks import Vector, chunks, must_not_sync, types
from .moves import MOMENTUM, MOVES, NO_DECAY, Form, Vectors, denominator, divided
from .scalars import Scalar, largest_but_float16, number, where
from .vector import (
    AVERAGE,
    SQUARES,
    Products,
    add_up,
    average_,
    average_squares_,
    average_together,
    axpy_,
    dot,
    dots,
    is_narrow,
    relative_rounding,
    rescale_,
    scalar_dtype,
    scale_,
    squares,
    squares_together,
    sum_squares,
)


@final
class General(Vectors):
    """The vectors of a group that a step measures and moves.

    The parameters x, their gradients g, the direction u of the move (the gradient unless a method sets another) and the
    method's buffers are lists of real tensors: the local pieces of sharded parameters, real views of complex ones.
    Scalars are plain numbers if `numbers`, else 0-dim tensors on the device, which the host never reads.
    """

    def __init__(
        self, group: dict[str, Any], params: Sequence[Tensor], x: Vector, g: Vector, buffers: Mapping[str, Vector]
    ) -> None:
        self.group, self.params, self.x, self.g, self.u, self.buffers = group, params, x, g, g, buffers
        self._keep: Any = 1.0
        self._mask: Tensor | None = None
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

    def average_(
        self, beta: Scalar | None, beta2: Scalar | None = None, with_x: bool = False, deferred: bool = False
    ) -> Products:
        """Average the gradients by β and their squares by β₂; return what is measured beside (see `Products`).

        If it is `deferred`, nothing reads the buffers before the move, which may store the averages.
        """
        return average_together([self], beta, beta2, with_x)[0]

    def average_here_(self, beta: Scalar | None, beta2: Scalar | None) -> tuple[Vector, Vector]:
        """Average, and return the direction and the averaged squares."""
        g, skip = self.g, self.skip
        u, s = g if beta is None else self.buffers[AVERAGE], g if beta2 is None else self.buffers[SQUARES]
        for g_chunk, u_chunk, s_chunk in chunks(g, u, s, foreach=self.group["foreach"]):
            if beta is not None:
                average_(u_chunk, g_chunk, beta, skip)
            if beta2 is not None:
                average_squares_(s_chunk, g_chunk, beta2, skip)
        return u, self.buffers.get(SQUARES, s)

    def products_here(self, columns: Sequence[Vector], with_x: bool) -> Products:
        """Return what is measured of pieces of g, x, u and the averaged squares in this process."""
        if not columns:
            return Products(0.0, 0.0, 0.0)
        g, x, u, s = columns
        products = (dot(g, x), dot(u, x)) if with_x else (0.0, 0.0)
        if self.preconditioner is None:
            return Products(*products, sum_squares(u, foreach=self.group["foreach"]))
        terms: list[Scalar] = []
        for y, s_chunk in chunks(u, s, foreach=self.group["foreach"]):
            terms += map(torch.sum, torch._foreach_mul(divided(y, s_chunk, self.preconditioner), y))
        return Products(*products, add_up(terms, self.group["step_size"]))

    def move(self, gamma: Scalar, keep: Scalar, skip: Any, measured: bool) -> Scalar | None:
        """Move the parameters by γ along −u; return their new ‖x‖² if it is to be `measured`.

        Where `skip` is true, nothing moves, and the momentum is multiplied by `keep`, which is μ in every other step.
        """
        self._keep, self._mask = (keep, None) if self.numbers else (keep, skip)
        dtype = scalar_dtype(self.x)
        squared: list[Scalar] = []
        for columns in chunks(*self.columns(), foreach=self.group["foreach"]):
            self.move_chunk(columns, gamma)
            if measured:  # right after the move, while a cache still holds the chunk
                squared += map(self._scalar, squares(columns[0], dtype))
        return self._scalar(add_up(squared, self.group["step_size"])) if measured else None

    def columns(self) -> list[Vector]:
        """Return what a move reads: x, u, the momentum and, if there is a preconditioner, the averaged squares."""
        columns = [self.x, self.u, self.buffers.get(MOMENTUM, self.x)]
        return columns if self.preconditioner is None else [*columns, self.buffers[SQUARES]]

    def move_chunk(self, columns: Sequence[Vector], gamma: Scalar) -> None:
        """Move one chunk of the columns."""
        (x, u, v), mask = columns[:3], self._mask
        if self.decay is not NO_DECAY:
            scale_(x, self.decay if mask is None else where(mask, 1.0, self.decay))
        if self.preconditioner and self.form is Form.PLAIN and mask is None and not is_narrow(x):
            torch._foreach_addcdiv_(x, u, denominator(columns[3], self.preconditioner), -number(gamma))
            return  # with the roundings of torch's Adam
        if self.signed:
            u = [torch.sign(tensor) for tensor in u]
        if self.preconditioner:
            u = divided(u, columns[3], self.preconditioner)
            if self.pull is not None:
                axpy_(u, x, self.pull)
        MOVES[self.form](self, x, u, v, gamma, self.mu)

    def scale_(self, x: Vector, a: Scalar) -> None:
        """x ← a·x."""
        rescale_(x, a)

    def axpy_(self, x: Vector, y: Vector, a: Scalar) -> None:
        """x ← x + a·y, for one chunk."""
        axpy_(x, y, a, self._mask)

    def accumulate_(self, x: Vector, u: Vector, v: Vector, mu: Scalar, b: Scalar, w: Scalar) -> None:
        """v ← μv + b·u;  x ← x + w·v, for one chunk."""
        scale_(v, self._keep if self._mask is not None else mu)
        axpy_(v, u, b, self._mask)
        axpy_(x, v, w, self._mask)

    def _scalar(self, scalar: Scalar) -> Scalar:
        return number(scalar) if self.numbers else scalar


def squares_of_gradients(parts: Sequence[Any]) -> Scalar:
    """Return ‖g‖² of sharded parts, and note the ‖v‖² of adjusted momentum: one message each, for every layout."""
    adjusted = [part for part in parts if part.form is Form.ADJUSTED]
    momentum = [part.buffers[MOMENTUM] for part in adjusted]
    for part, squared in zip(adjusted, dots(adjusted, momentum, momentum), strict=True):
        part.momentum_squares = squared
    return squares_together(parts, "g")


def average_all_(
    parts: Sequence[Any], beta: Scalar | None, beta2: Scalar | None = None, with_x: bool = False, deferred: bool = False
) -> list[Products]:
    """Average in all parts; if all are sharded, one message carries what is measured of them."""
    if all([part.sharded for part in parts]):
        return average_together([as_general(part) for part in parts], beta, beta2, with_x)
    return [part.average_(beta, beta2, with_x, deferred) for part in parts]


def as_general(part: Any) -> General:
    """Return the vectors of a part of another backend, for a direction that its kernels cannot take."""
    general = General(part.group, part.owners, part.x, part.u, part.buffers)
    general.same_move(part)
    return general


@final
class Several(Vectors):
    """The parts of a group whose tensors need several backends, as one part."""

    sharded = False

    def __init__(self, group: dict[str, Any], params: Sequence[Tensor], parts: Sequence[Any]) -> None:
        x, g = (_Joined([getattr(part, name) for part in parts]) for name in "xg")
        buffers = {name: _Joined([part.buffers[name] for part in parts]) for name in parts[0].buffers}
        self.group, self.params, self.x, self.g, self.u, self.buffers = group, params, x, g, g, buffers
        self.parts, self.numbers = parts, parts[0].numbers

    @property
    def owners(self) -> Sequence[Tensor]:
        """The parameters in the order of the vectors, which is not that of the group."""
        return [p for part in self.parts for p in part.params]

    @property
    def largest(self) -> float:
        """The largest number that every parameter's type holds."""
        return min([float(part.largest) for part in self.parts])

    @property
    def has_float16(self) -> bool:
        """Whether a parameter is float16."""
        return any([part.has_float16 for part in self.parts])

    @property
    def rounding(self) -> float:
        """The relative error that rounding may leave in the norm of the rescaled parameters."""
        return max([float(part.rounding) for part in self.parts])

    def sum_squares(self, x: Vector) -> Scalar:
        """Return ‖x‖²."""
        pairs = zip(self.parts, self._split(x), strict=True)
        return self._sum([part.sum_squares(own) for part, own in pairs])

    def dot(self, x: Vector, y: Vector) -> Scalar:
        """Return ⟨x, y⟩."""
        triples = zip(self.parts, self._split(x), self._split(y), strict=True)
        return self._sum([part.dot(own_x, own_y) for part, own_x, own_y in triples])

    def average_(
        self, beta: Scalar | None, beta2: Scalar | None = None, with_x: bool = False, deferred: bool = False
    ) -> Products:
        """Average the gradients by β and their squares by β₂, and measure."""
        rows = []
        for part in self.parts:
            part.same_move(self)
            rows.append(part.average_(beta, beta2, with_x, deferred))
        return Products(*[self._sum(column) for column in zip(*rows, strict=True)])

    def store_averages(self) -> None:
        """Store the averages that a move would have stored."""
        for part in self.parts:
            part.store_averages()

    def move(self, gamma: Scalar, keep: Scalar, skip: Any, measured: bool) -> Scalar | None:
        """Move every part; return the new ‖x‖² if it is to be `measured`."""
        squares = []
        for part, own in zip(self.parts, self._split(self.u), strict=True):
            part.same_move(self)
            part.u = own
            squares.append(part.move(gamma, keep, skip, measured))
        return self._sum([square for square in squares if square is not None]) if measured else None

    def scale_(self, x: Vector, a: Scalar) -> None:
        """x ← a·x."""
        for part, own in zip(self.parts, self._split(x), strict=True):
            part.scale_(own, a)

    def _sum(self, scalars: Sequence[Scalar]) -> Scalar:
        return add_up(scalars, self.group["step_size"])

    def _split(self, x: Vector) -> Sequence[Vector]:
        if isinstance(x, _Joined):
            return x.vectors
        pieces, first = [], 0
        for part in self.parts:
            pieces.append(x[first : first + len(part.x)])
            first += len(part.x)
        return pieces


class _Joined(list[Tensor]):
    """Vectors one after the other, which can be had singly again."""

    def __init__(self, vectors: Sequence[Vector]) -> None:
        super().__init__([tensor for vector in vectors for tensor in vector])
        self.vectors = vectors
