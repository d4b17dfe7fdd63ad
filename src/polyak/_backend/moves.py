"""How the parameters move once γ is known: each form of momentum, written once for every method.

A move takes one chunk of the parameters x, the direction u and the momentum buffer v, and changes x
and v in place, by the operations of a backend. The compiled kernels (`cpu_kernels.c`,
`cuda_kernels.py`) make the same moves in one pass over the memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from itertools import chain
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors
from torch.autograd.graph import increment_version

from .chunks import DTYPE, Vector, columns, flat_views, same_layout
from .distributed import send

MOMENTUM = "momentum_buffer"
NO_DECAY = 1.0  # this very number: the multiplication is then left out


class Form(IntEnum):
    """The form of momentum; the numbers are those of `enum form` in `cpu_kernels.c`."""

    holds_y: bool
    """Whether the parameters hold y, between the iterate z and its average x: the constraint holds for z, the line
    starts there, and y moves even where γ = 0."""

    def __new__(cls, number: int, holds_y: bool = False) -> Self:
        form = int.__new__(cls, number)
        form._value_, form.holds_y = number, holds_y
        return form

    PLAIN = 2
    NESTEROV = 3
    ADJUSTED = 4
    HEAVY_BALL = 5
    SCHEDULE_FREE = 8, True


class Preconditioner(NamedTuple):
    """Adam's D = ε + √(s / (1 − β₂^k)), where s is the buffer `square_average`."""

    correction: Any
    eps: float
    steps: Any = 0


def divided(u: Vector, s: Vector, preconditioner: Preconditioner) -> Vector:
    """Return D⁻¹u, for one chunk."""
    d = denominator(s, preconditioner)
    return list(torch._foreach_div([tensor.to(like.dtype) for tensor, like in zip(u, d, strict=True)], d))


def denominator(s: Vector, preconditioner: Preconditioner) -> Vector:
    """Return the diagonal of D, for one chunk."""
    correction = preconditioner.correction
    root = correction.sqrt() if isinstance(correction, Tensor) else math.sqrt(correction)
    d = torch._foreach_sqrt(s)
    torch._foreach_div_(d, send(root, s[0]) if isinstance(root, Tensor) else root)
    torch._foreach_add_(d, preconditioner.eps)
    return list(d)


class Vectors:
    """The vectors of a group, and the coefficients of their move; every backend is one.

    A move is x ← decay·x, and then the form of momentum with γ / divisor along D⁻¹u.
    """

    group: dict[str, Any]
    params: Sequence[Tensor]
    x: Vector
    g: Vector
    u: Vector
    buffers: Mapping[str, Vector]
    numbers: bool
    form = Form.PLAIN
    mu: Any = 0.0
    decay: Any = NO_DECAY
    coupled_decay: float = 0.0
    """λ of a decay x ← (1 − λγ)x that depends on the step size."""
    divisor: Any = 1.0
    preconditioner: Preconditioner | None = None
    beta: Any = 0.0
    ahead: Any = 0.0
    """Of a schedule-free move: y = βx + (1 − β)z before it, and z = y + ahead·v after it."""
    next_beta: Any = None
    """The β of the next step, where `ahead` follows from the share that z has in the average."""
    apart: Any = None
    """Of a method that averages iterates: z − x = apart·v before the move."""
    squared_decay: float = 0.0
    """λ of a decay that γ² multiplies."""
    pull: Any = None
    """The multiple of x that `squared_decay` adds to the direction."""
    signed: bool = False
    """Whether x moves along sign(u)."""
    skip: Any = None
    """A mask on the device that is true where the loss or the gradient is not finite."""
    state: Any = None
    """The buffers of all parameters, those without a gradient, too."""
    can_be_kept = False
    """Whether the next step may take the part again, with other gradients."""
    measures_norm = False
    """Whether averages that are deferred are measured together with ‖g‖², before anything is stored."""
    gradient_squares: Any = 0.0
    """‖g‖² of these vectors alone, if it was measured together with the averages."""
    squares: Any = 0.0
    """‖u‖² of these vectors alone."""
    momentum_squares: Any = None
    """‖v‖² of these vectors alone, if it was measured together with that of other parts."""
    model: Any = 0.0
    """The value of an averaged model at x, over all groups; of the first group alone."""
    floor: Any = 0.0
    """The smallest bound on the loss that may be learned; of the first group alone."""

    @property
    def owners(self) -> Sequence[Tensor]:
        """The parameters in the order of the vectors."""
        return self.params

    def take_gradients(self, g: Vector) -> None:
        """Take the gradients of another step, which lie in memory as those did that the part was made with."""
        self.g = self.u = g

    def scaled(self, gamma: Any) -> Any:
        """Return the γ of the form, and set the decay that depends on the step size."""
        if self.coupled_decay:
            self.decay = 1.0 - self.coupled_decay * gamma
        if self.squared_decay:
            self.pull = self.squared_decay * gamma * self.divisor
        if self.next_beta is not None:
            self.ahead = self.next_beta * (1.0 - self._own(self.group["share"]))
        return gamma / self.divisor

    def store_averages(self) -> None:
        """Store the averages that a move would have stored."""

    def forget_averages(self) -> None:
        """Leave the averages as they are."""

    def _own(self, scalar: Tensor) -> Any:
        return scalar.item() if self.numbers else scalar

    def same_move(self, other: Vectors) -> None:
        """Take the coefficients of another's move."""
        self.form, self.mu, self.decay, self.skip = other.form, other.mu, other.decay, other.skip
        self.divisor, self.preconditioner = other.divisor, other.preconditioner
        self.beta, self.ahead, self.pull, self.signed = other.beta, other.ahead, other.pull, other.signed


class Operations(Protocol):
    """What a backend does with one chunk."""

    beta: Any
    ahead: Any

    def axpy_(self, x: Vector, y: Vector, a: Any) -> None:
        """x ← x + a·y."""

    def accumulate_(self, x: Vector, u: Vector, v: Vector, mu: Any, b: Any, w: Any) -> None:
        """v ← μv + b·u;  x ← x + w·v."""


def plain(on: Operations, x: Vector, u: Vector, v: Vector, gamma: Any, mu: Any) -> None:
    """x ← x − γu."""
    on.axpy_(x, u, -gamma)


def nesterov(on: Operations, x: Vector, u: Vector, v: Vector, gamma: Any, mu: Any) -> None:
    """v ← μv − γu;  x ← x − γu + μv: the step size is inside the buffer (ALI-G's momentum)."""
    on.axpy_(x, u, -gamma)
    on.accumulate_(x, u, v, mu, -gamma, mu)


def adjusted(on: Operations, x: Vector, u: Vector, v: Vector, gamma: Any, mu: Any) -> None:
    """v ← μv − u;  x ← x − γu + γμv: the step size is outside the buffer, as in torch's SGD."""
    on.axpy_(x, u, -gamma)
    on.accumulate_(x, u, v, mu, -1.0, gamma * mu)


def heavy_ball(on: Operations, x: Vector, u: Vector, v: Vector, gamma: Any, mu: Any) -> None:
    """v ← μv − γu;  x ← x + v: Polyak's momentum; v is the last move."""
    on.accumulate_(x, u, v, mu, -gamma, 1.0)


def schedule_free(on: Operations, x: Vector, u: Vector, v: Vector, gamma: Any, mu: Any) -> None:
    """v ← μv − γu;  x ← x − (1 − β)γu + (β − ahead)v: x holds y, and v is z minus the average of the z before it."""
    on.axpy_(x, u, (on.beta - 1.0) * gamma)
    on.accumulate_(x, u, v, mu, -gamma, on.beta - on.ahead)


MOVES: dict[Form, Callable[..., None]] = {
    Form.PLAIN: plain,
    Form.NESTEROV: nesterov,
    Form.ADJUSTED: adjusted,
    Form.HEAVY_BALL: heavy_ball,
    Form.SCHEDULE_FREE: schedule_free,
}


def add_by_sgd_(x: Vector, y: Vector, a: Any, skip: Tensor) -> bool:
    """x ← x + a·y unless `skip`, in one pass over many tensors on a GPU; False if torch's SGD cannot do it."""
    if x[0].dtype.itemsize != 4 and (len(x) == 1 or x[0].dtype.itemsize > 4):  # narrow types move as in the loop
        return False
    if not x[0].is_cuda or torch.compiler.is_compiling():
        return False
    if len({*map(DTYPE, chain(x, y))}) > 1:
        return False
    dense = all(map(Tensor.is_contiguous, chain(x, y))) or all(map(same_layout, zip(x, y, strict=True)))
    if not dense or [*map(Tensor.stride, x)] != [*map(Tensor.stride, y)]:
        rows = [row for row in map(flat_views, zip(x, y, strict=True)) if row is not None]
        if len(rows) < len(x):
            return False
        x, y = columns(rows)
    lr = send(a, x[0]).float() if isinstance(a, Tensor) else a
    torch._fused_sgd_(
        x, y, [], lr=lr, maximize=True, weight_decay=0.0, momentum=0.0, dampening=0.0, nesterov=False,
        is_first_step=False, found_inf=send(skip, x[0]).float(),
    )  # fmt: skip
    increment_version(x)  # which this kernel leaves out
    return True


# What is measured beside a move, for one chunk on the CPU.

ROW = 1 << 12  # numbers of one sum on the CPU: torch keeps few accumulators, so that long float32 sums lose digits
SHORT = 1 << 8  # and a single one where the numbers do not lie side by side
ALONE = 1 << 9  # numbers of a tensor, on average, from which a sum of its own is faster than a copy
LONG = 1 << 17  # numbers of a product at most, which are stored before torch adds them up, pair by pair


def squares_of_piece(piece: Vector, dtype: torch.dtype) -> Vector:
    """Return numbers whose sum is ‖x‖², for one chunk on the CPU, summed in short rows, then over the rows' norms."""
    if len(piece) > 1 and sum(sizes := [*map(Tensor.numel, piece)]) >= ALONE * len(piece):
        if max(sizes) < 4 * ROW and piece[0].dtype == dtype and all(map(Tensor.is_contiguous, piece)):
            return [torch.dot(x, x) for x in [x.view(-1) for x in piece]]
        return [square for x in piece for square in squares_of_piece([x], dtype)]
    x: Tensor = piece[0] if len(piece) == 1 else _flatten_dense_tensors(piece)
    if not x.is_contiguous():
        views = flat_views((x,))
        if views is None:
            return _squares_with_gaps(x, dtype)
        (x,) = views
    x = x.view(-1)
    rows, rest = divmod(len(x), ROW)
    if rows < 4:
        x = x if x.dtype == dtype else x.to(dtype)
        return [torch.dot(x, x)]
    norms = torch.linalg.vector_norm(x[: rows * ROW].view(rows, ROW), dim=1, dtype=dtype)
    squares = [torch.dot(norms, norms)] if rows < ROW else squares_of_piece([norms], dtype)
    return [*squares, *squares_of_piece([x[-rest:]], dtype)] if rest else squares


def _squares_with_gaps(x: Tensor, dtype: torch.dtype) -> Vector:
    """Do the same for numbers that are repeated, or do not lie side by side, without a copy of them."""
    repeated = math.prod([size for size, stride in zip(x.shape, x.stride(), strict=True) if stride == 0])
    if repeated != 1:
        once = x[tuple([slice(None) if stride else 0 for stride in x.stride()])]
        return [repeated * part for part in squares_of_piece([once], dtype)]
    x = x.movedim(min(range(x.dim()), key=x.stride().__getitem__), -1)
    rows, rest = divmod(x.shape[-1], SHORT)
    parts = [x[..., : rows * SHORT].view(*x.shape[:-1], rows, SHORT)] if rows else []
    parts += [x[..., rows * SHORT :]] if rest else []
    return [
        square
        for part in parts
        for square in squares_of_piece([torch.linalg.vector_norm(part, dim=-1, dtype=dtype)], dtype)
    ]


def dot_of_piece(x: Vector, y: Vector) -> float:
    """Return ⟨x, y⟩ of one chunk of one type on the CPU; torch adds long vectors up pairwise, as its dot does not."""
    if len(x) > 1 and sum(map(Tensor.numel, x)) < ALONE * len(x):
        x, y = [_flatten_dense_tensors(x)], [_flatten_dense_tensors(y)]
    return sum([_dot(a, b) for a, b in zip(x, y, strict=True)])


def _dot(a: Tensor, b: Tensor) -> float:
    if a.numel() < 4 * ROW:
        return torch.dot(a.contiguous().view(-1), b.contiguous().view(-1)).item()
    a, b = flat_views((a, b)) or (a.contiguous().view(-1), b.contiguous().view(-1))
    return sum([torch.sum(x * y).item() for x, y in zip(a.split(LONG), b.split(LONG), strict=True)])


def absolutes_of_piece(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ‖x‖₁ of a tensor on the CPU, summed in short rows, too."""
    views = flat_views((x,))
    if views is None:
        return torch.sum(x.abs(), dtype=dtype)
    whole = x.numel() - x.numel() % SHORT
    rows = torch.linalg.vector_norm(views[0][:whole].view(-1, SHORT), 1, dim=1, dtype=dtype)
    rest: Tensor = torch.linalg.vector_norm(views[0][whole:], 1, dtype=dtype)
    return rest + torch.sum(rows)
