"""The backend of the CPU: PyTorch's operations with plain numbers as scalars.

By default they take pieces that fit the cache, with `foreach` given all tensors at once or one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, cast, final

import torch
from torch import Tensor

from .chunks import PIECE, SHARED, SMALL, Vector, pieces_of_one_type
from .general import as_general
from .moves import (
    MOMENTUM,
    MOVES,
    NO_DECAY,
    Form,
    Preconditioner,
    Vectors,
    denominator,
    divided,
    dot_of_piece,
    squares_of_piece,
)
from .scalars import LARGEST, number
from .vector import AVERAGE, SQUARES, Products, average_, average_squares_

ADAM = 1 << 18  # numbers of a piece in a step of Adam at most, which reads and writes up to eight vectors
TINY = 2.0**-20  # 1 − b keeps 32 digits of a larger b


@final
class Pieces(Vectors):
    """A group's plain tensors of one type, float32 or float64; `General` documents the interface."""

    numbers, sharded, has_float16, can_be_kept = True, False, False, True

    def __init__(
        self, group: dict[str, Any], params: Sequence[Tensor], x: Vector, g: Vector, buffers: Mapping[str, Vector]
    ) -> None:
        self.group, self.params, self.x, self.g, self.u, self.buffers = group, params, x, g, g, buffers
        self.dtype = x[0].dtype
        self.largest, self.rounding = LARGEST[self.dtype], 4 * torch.finfo(self.dtype).eps
        self._sizes = [*map(Tensor.numel, x)]
        self._fits_one, self._foreach = sum(self._sizes) <= SHARED, group["foreach"]
        self.measures_norm = SQUARES in buffers and self._foreach is None
        self._pending: Adam | None = None

    def sum_squares(self, x: Vector) -> float:
        """Return ‖x‖²."""
        squares = 0.0
        for (piece,) in self._cut(x, whole=True):
            squares += sum(map(Tensor.item, squares_of_piece(piece, self.dtype)))
        return squares

    def dot(self, x: Vector, y: Vector) -> float:
        """Return ⟨x, y⟩."""
        return sum([dot_of_piece(a, b) for a, b in self._cut(x, y)])

    def average_(self, beta: Any, beta2: Any = None, with_x: bool = False, deferred: bool = False) -> Products:
        """Average the gradients by β and their squares by β₂, and measure, all while a cache holds the piece."""
        if deferred and self.measures_norm:
            return self._try(None if beta is None else number(beta), beta2, with_x)
        u, s = self.g if beta is None else self.buffers[AVERAGE], self.g if beta2 is None else self.buffers[SQUARES]
        gradient_dot_x = direction_dot_x = squares = 0.0
        for x, g, u_piece, s_piece in self._cut_as_asked(self.x, self.g, u, s):
            if beta is not None:
                average_(u_piece, g, number(beta))
            if beta2 is not None:
                average_squares_(s_piece, g, beta2)
            if with_x:
                gradient_dot_x += dot_of_piece(g, x)
                direction_dot_x += dot_of_piece(u_piece, x)
            squares += self._dual_squares(u_piece, s_piece)
        return Products(gradient_dot_x, direction_dot_x, squares)

    def _dual_squares(self, u: Vector, s: Vector) -> float:
        if self.preconditioner is None:
            return sum(map(Tensor.item, squares_of_piece(u, self.dtype)))
        return dot_of_piece(u, divided(u, s, self.preconditioner))

    def _try(self, beta: float | None, beta2: float, with_x: bool) -> Products:
        """Measure with averages that are made in copies of the pieces, together with ‖g‖²; the move stores them."""
        adam = self._pending = Adam(beta, beta2, cast(Preconditioner, self.preconditioner), self.dtype)
        sums = [0.0] * 4
        for x, g, d, s in self._cut(*self._averaged(self.x), most=ADAM):
            if adam.takes(x, g, d, s):
                terms = adam.measure(x[0], g[0], d[0], s[0], with_x)
            else:
                u, trial = [tensor.clone() for tensor in d], [tensor.clone() for tensor in s]
                adam.average_(g, u, trial)
                terms = [dot_of_piece(g, g), dot_of_piece(g, x), dot_of_piece(u, x), self._dual_squares(u, trial)]
            sums = [total + term for total, term in zip(sums, terms, strict=True)]
        self.gradient_squares = sums[0]
        return Products(*sums[1:])

    def _averaged(self, x: Vector) -> tuple[Vector, ...]:
        return x, self.g, self.buffers.get(AVERAGE, self.g), self.buffers[SQUARES]

    def store_averages(self) -> None:
        """Store the averages that a move would have stored."""
        if self._pending is not None:
            for _, g, d, s in self._cut(*self._averaged(self.x)):
                self._pending.average_(g, d, s)
            self.forget_averages()

    def forget_averages(self) -> None:
        """Leave the averages as they are."""
        self._pending = None

    def move(self, gamma: Any, keep: Any, skip: Any, measured: bool) -> float:
        """Move the parameters by γ along −u; return their new ‖x‖², or 0 if it is not `measured`."""
        if self._pending is not None and self._moves_along_averages(self._pending.beta is not None):
            return self._move_by_adam(self._pending, gamma, measured)
        self.store_averages()
        if self.preconditioner or self.signed:
            return cast(float, as_general(self).move(gamma, keep, None, measured))
        move, squares = MOVES[self.form], 0.0
        for x, u, v in self._cut_as_asked(self.x, self.u, self.buffers.get(MOMENTUM, self.x)):
            self._decay(x)
            move(self, x, u, v, gamma, self.mu)
            if measured and not self._foreach:  # right after the move, while a cache still holds the piece
                squares += sum(map(Tensor.item, squares_of_piece(x, self.dtype)))
        return self.sum_squares(self.x) if measured and self._foreach else squares

    def _moves_along_averages(self, averaged: bool) -> bool:
        """Return whether the averages can be stored piece by piece in a move."""
        along = self.u is (self.buffers[AVERAGE] if averaged else self.g) and not self.signed and self.pull is None
        return along and (self.form is Form.PLAIN or (self.form is Form.HEAVY_BALL and not averaged))

    def _move_by_adam(self, adam: Adam, gamma: float, measured: bool) -> float:
        """Store the averages and move."""
        squares = 0.0
        for x, g, d, s, v in self._cut(*self._averaged(self.x), self.buffers.get(MOMENTUM, self.x), most=ADAM):
            self._decay(x)
            if adam.takes(x, g, d, s, v):
                adam.move(x[0], g[0], d[0], s[0], v[0], gamma, self.mu, self.form)
            else:
                adam.average_(g, d, s)
                u = g if adam.beta is None else d
                if self.form is Form.PLAIN:  # with the roundings of torch's Adam
                    torch._foreach_addcdiv_(x, u, denominator(s, adam.preconditioner), -gamma)
                else:
                    MOVES[self.form](self, x, divided(u, s, adam.preconditioner), v, gamma, self.mu)
            if measured:
                squares += sum(map(Tensor.item, squares_of_piece(x, self.dtype)))
        self.forget_averages()
        return squares

    def _decay(self, x: Vector) -> None:
        if self.decay is not NO_DECAY:
            torch._foreach_mul_(x, torch.full((), self.decay, dtype=self.dtype, device="cpu"))

    def scale_(self, x: Vector, a: Any) -> None:
        """x ← a·x."""
        factor = torch.as_tensor(a, dtype=self.dtype, device="cpu")  # thrice as fast as a number
        for (piece,) in self._cut(x, whole=True):
            torch._foreach_mul_(piece, factor)

    def axpy_(self, x: Vector, y: Vector, a: float) -> None:
        """x ← x + a·y, for one piece."""
        if len(x) == 1:
            x[0].add_(y[0], alpha=a)
        else:
            torch._foreach_add_(x, y, alpha=a)

    def accumulate_(self, x: Vector, u: Vector, v: Vector, mu: float, b: float, w: float) -> None:
        """v ← μv + b·u;  x ← x + w·v, for one piece."""
        if len(x) == 1 and mu and self._sgd_takes(x[0], u[0], v[0], b):
            torch._fused_sgd_(
                x, u, v, momentum=mu, dampening=1.0 - b, lr=-w, weight_decay=0.0, nesterov=False, maximize=False,
                is_first_step=False,
            )  # fmt: skip
            return
        torch._foreach_mul_(v, torch.full((), mu, dtype=self.dtype, device="cpu"))
        self.axpy_(v, u, b)
        self.axpy_(x, v, w)

    def _sgd_takes(self, x: Tensor, u: Tensor, v: Tensor, b: float) -> bool:
        """Return whether a kernel of PyTorch's SGD may do it: it computes b as 1 − (1 − b), exact enough in float32.

        It starts all threads for every tensor, which takes longer than the work on a small one.
        """
        if self.dtype != torch.float32 or abs(b) < TINY or x.numel() < SMALL or self._foreach is not None:
            return False
        if not x.shape == u.shape == v.shape:  # which that kernel does not check
            return False
        return x.is_contiguous() and u.is_contiguous() and v.is_contiguous()

    def _cut_as_asked(self, *vectors: Vector) -> Iterable[tuple[Vector, ...]]:
        if self._foreach is None:
            return self._cut(*vectors)
        if self._foreach:
            return [vectors]
        return [tuple([[tensor] for tensor in row]) for row in zip(*vectors, strict=True)]

    def _cut(self, *vectors: Vector, whole: bool = False, most: int = PIECE) -> Iterable[tuple[Vector, ...]]:
        return [vectors] if self._fits_one else pieces_of_one_type(vectors, self._sizes, whole, most)


@final
class Adam:
    """The averages of a step of Adam, and PyTorch's kernel for it, which averages and moves in one pass over a piece.

    A trial lets it move 0 instead of x, and copies of the buffers.
    """

    def __init__(self, beta: float | None, beta2: float, preconditioner: Preconditioner, dtype: torch.dtype) -> None:
        self.beta, self.beta2, self.preconditioner = beta, beta2, preconditioner
        self._dtype, self._step = dtype, torch.tensor(float(preconditioner.steps), device="cpu")
        self._rate = 1.0 - (beta or 0.0) ** preconditioner.steps  # by which the kernel divides the step size

    @cached_property
    def _spare(self) -> Tensor:
        return torch.zeros(3, ADAM, dtype=self._dtype, device="cpu")

    def average_(self, g: Vector, d: Vector, s: Vector) -> None:
        """Average the gradients of a piece, and their squares."""
        if self.beta is not None:
            average_(d, g, self.beta)
        average_squares_(s, g, self.beta2)

    def takes(self, *pieces: Vector) -> bool:
        """Return whether it takes a piece: the kernel wakes all threads for any tensor and checks no size or stride."""
        if len(pieces[0]) > 1 or not SMALL <= pieces[0][0].numel() <= ADAM:
            return False
        if any([tensor.shape != pieces[0][0].shape for (tensor,) in pieces]):
            return False
        return all([tensor.is_contiguous() for (tensor,) in pieces])

    def measure(self, x: Tensor, g: Tensor, d: Tensor, s: Tensor, with_x: bool) -> list[float]:
        """Return ‖g‖², ⟨g, x⟩, ⟨u, x⟩ and ⟨u, D⁻¹u⟩."""
        x, g, d, s = x.view(-1), g.view(-1), d.view(-1), s.view(-1)
        moved, average, squares = self._spare[:, : len(g)]
        u = g if self.beta is None else average.copy_(d)
        self._run(moved.zero_(), g, average, squares.copy_(s), 1.0)
        pairs = [(g, x), (u, x), (u, moved)] if with_x else [(u, moved)]
        *dots, dual = [
            torch.sum(torch.mul(a, b, out=squares)).item() for a, b in pairs
        ]  # the trial needs no squares now
        gradient_squares = sum(map(Tensor.item, squares_of_piece([g], self._dtype)))
        return [gradient_squares, *(dots or [0.0, 0.0]), -dual]

    def move(self, x: Tensor, g: Tensor, d: Tensor, s: Tensor, v: Tensor, gamma: float, mu: float, form: Form) -> None:
        """Average in the buffers themselves and move x by γ along −D⁻¹u, or let a heavy ball do so."""
        x, g, d, s, v = x.view(-1), g.view(-1), d.view(-1), s.view(-1), v.view(-1)
        moved, average, _ = self._spare[:, : len(g)]
        average = average if self.beta is None else d
        if form is Form.PLAIN:
            self._run(x, g, average, s, gamma)
            return
        self._run(moved.zero_(), g, average, s, gamma)
        if not mu:
            x.add_(v.copy_(moved))
            return
        torch._fused_sgd_(
            [x], [moved], [v], momentum=mu, dampening=0.0, lr=-1.0, weight_decay=0.0, nesterov=False, maximize=False,
            is_first_step=False,
        )  # fmt: skip

    def _run(self, x: Tensor, g: Tensor, d: Tensor, s: Tensor, gamma: float) -> None:
        torch._fused_adam_(
            [x], [g], [d], [s], [], [self._step], lr=gamma * self._rate, beta1=self.beta or 0.0, beta2=self.beta2,
            weight_decay=0.0, eps=self.preconditioner.eps, amsgrad=False, maximize=False,
        )  # fmt: skip
