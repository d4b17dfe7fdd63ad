"""The model as one vector: the few operations every method is made of, each written once.

A vector is a list of real tensors. An operation on one tensor calls the tensor's own method, an operation on many
calls torch's multi-tensor (`_foreach_`) kernel: the loop backend feeds the tensors one by one, foreach all at once.
Scalars that come from the loss are 0-dim tensors on the device and are never read by the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .chunks import Vector, by_layout, chunks, must_not_sync, types
from .distributed import PLAIN, any_sharded, local, send, total
from .moves import absolutes_of_piece, add_by_sgd_, dot_of_piece, squares_of_piece
from .scalars import Scalar, as_tensor, number, where

EPS = {t: torch.finfo(t).eps for t in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}
DOUBLE = frozenset({torch.float64, torch.complex128})


def local_real_view(tensor: Tensor) -> Tensor:
    """Return the tensor itself, its local piece if it is sharded, or a real view if it is complex.

    In compiled code a 0-dim tensor becomes a view of one number: Dynamo of torch 2.13 takes the call of a method that
    changes a 0-dim float64 tensor of the CPU in place, `x.add_(1)`, for an unused value, and leaves it out.
    """
    if type(tensor) not in PLAIN:
        tensor = local(tensor)
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj())
    return tensor.view(1) if tensor.dim() == 0 and torch.compiler.is_compiling() else tensor


def scalar_dtype(x: Sequence[Tensor]) -> torch.dtype:
    """Return the type in which sums over the vector are kept: float32, or wider if a tensor is wider."""
    return torch.float64 if not DOUBLE.isdisjoint(types(x)) else torch.float32


def sum_squares(x: Vector, owners: Sequence[Tensor] | None = None, foreach: bool | None = None) -> Scalar:
    """Return ‖x‖², summed in float32 or wider, over all processes that hold a part of the owners; 0.0 of nothing."""
    return over_processes(lambda part: _sum_squares_here(part, foreach), owners or x, x) if x else 0.0


def _sum_squares_here(x: Vector, foreach: bool | None) -> Scalar:
    dtype = scalar_dtype(x)
    terms: list[Scalar] = []
    for (chunk,) in chunks(x, foreach=None if x[0].is_cpu else foreach, whole=True):
        terms += squares(chunk, dtype)
    return terms[0] if len(terms) == 1 else add_up(terms, torch.zeros((), dtype=dtype, device=x[0].device))


def squares(x: Vector, dtype: torch.dtype) -> Sequence[Tensor]:
    """Return numbers whose sum is ‖x‖², for one chunk."""
    if x[0].device.type != "cpu" or torch.compiler.is_compiling():
        many = torch._foreach_powsum(x, 2, dtype=dtype) if len(x) > 1 else None
        return many or [torch.linalg.vector_norm(x[0], dtype=dtype).square()]
    return squares_of_piece(x, dtype)


def absolutes(x: Tensor) -> Tensor:
    """Return ‖x‖₁ of one tensor."""
    dtype = scalar_dtype([x])
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return absolutes_of_piece(x, dtype)
    norm: Tensor = torch.linalg.vector_norm(x, 1, dtype=dtype)
    return norm


def add_up(parts: Sequence[Scalar], like: Tensor) -> Scalar:
    """Return the sum of scalars, on the device and in the type of another unless all are numbers."""
    if {*map(type, parts)} <= {float}:
        return sum(parts, 0.0)
    together = [cast(as_tensor(part, like), like) for part in parts]
    return together[0] if len(together) == 1 else torch.stack(together).sum()


def cast(scalar: Tensor, like: Tensor) -> Tensor:
    """Return a scalar on the device and in the type of another."""
    scalar = send(scalar, like)
    return scalar if scalar.dtype == like.dtype else scalar.to(like.dtype)


def axpy_(x: Vector, y: Vector, a: Scalar, skip: Tensor | None = None) -> None:
    """x ← x + a·y, for one chunk; where the mask `skip` is true, x stays as it is, whatever y holds."""
    if skip is not None:
        if not add_by_sgd_(x, y, a, skip):
            _add_(x, _scaled(y, a, skip))
    elif is_narrow(x):
        _add_(x, _scaled(y, a))
    elif not isinstance(a, Tensor):
        _add_(x, y, a)
    elif len(x) == 1:
        x[0].addcmul_(y[0], send(a, x[0]))  # in one pass, without a temporary
    else:
        _add_(x, _scaled(y, a))


def scale_(x: Vector, a: Scalar) -> None:
    """x ← a·x, for one chunk."""
    if isinstance(a, Tensor):
        a = send(a, x[0])
    elif not (is_narrow(x) or must_not_sync(x[0].device)):
        a = torch.full((), a, dtype=x[0].dtype, device=x[0].device)  # thrice as fast as a number on the CPU
    if isinstance(a, Tensor) and is_narrow(x):  # torch would round a to the type of x first
        for tensor in x:
            tensor.copy_(tensor.to(a.dtype) * a)
    elif len(x) == 1 or (is_narrow(x) and x[0].is_cpu):  # and its multi-tensor kernel on the CPU a number, too
        for tensor in x:
            tensor.mul_(a)
    else:
        torch._foreach_mul_(x, a)


def rescale_(x: Vector, a: Scalar) -> None:
    """x ← a·x, for a whole vector."""
    for (chunk,) in chunks(x, foreach=True):
        scale_(chunk, a)


def add_(x: Vector, y: Vector, a: Scalar, *, foreach: bool | None = None) -> None:
    """x ← x + a·y, for whole vectors."""
    for x_chunk, y_chunk in chunks(x, y, foreach=foreach):
        axpy_(x_chunk, y_chunk, a)


def dot(x: Vector, y: Vector, owners: Sequence[Tensor] | None = None) -> Scalar:
    """Return ⟨x, y⟩ as a 0-dim tensor, summed in float32 or wider, over all processes that hold a part."""
    if not x:
        return 0.0
    dtype = scalar_dtype([*x, *y])

    def local_dot(pairs: list[tuple[Tensor, Tensor]]) -> Scalar:
        first = pairs[0][0]
        alike = {tensor.dtype for pair in pairs for tensor in pair} == {first.dtype}
        if alike and first.dtype.itemsize > 2 and not must_not_sync(first.device):  # without a large temporary
            columns = [[*column] for column in zip(*pairs, strict=True)]
            return sum([dot_of_piece(a, b) for a, b in chunks(*columns, foreach=None)])
        products = [torch.sum(send(a, b).to(dtype) * b, dtype=dtype) for a, b in pairs]
        return add_up(products, products[0])

    return over_processes(local_dot, owners or y, zip(x, y, strict=True))


def assign_(x: Vector, values: Vector) -> None:
    """x ← values."""
    for tensor, value in zip(x, values, strict=True):
        tensor.copy_(send(value, tensor))


def relative_rounding(x: Vector) -> float:
    """Return the relative error that rounding may leave in the norm of a rescaled vector."""
    return max([4 * EPS[scalar_dtype(x)], *(EPS[dtype] for dtype in types(x))])


def over_processes(local_sum: Callable[[list[Any]], Scalar], owners: Sequence[Tensor], rows: Iterable[Any]) -> Scalar:
    """Return the `local_sum` of the rows, added up over the processes if the owners of the rows are sharded."""
    return sums_over_processes(lambda some: [local_sum(some)], owners, rows)[0]


def sums_over_processes(
    local_sums: Callable[[list[Any]], list[Scalar]], owners: Sequence[Tensor], rows: Iterable[Any]
) -> list[Scalar]:
    """Return several such sums, which travel in one message for each layout of the owners."""
    if not any_sharded(owners):
        return local_sums(rows if isinstance(rows, list) else list(rows))
    like = torch.zeros((), dtype=scalar_dtype(owners), device=owners[0].device)
    totals = []
    for layout, some in by_layout(owners, rows).items():
        sums = torch.stack([cast(as_tensor(scalar, like), like) for scalar in local_sums(some)])
        totals.append(total(sums, layout))
    return [add_up(column, like) for column in zip(*[sums.unbind() for sums in totals], strict=True)]


def _scaled(y: Vector, a: Scalar, skip: Tensor | None = None) -> Vector:
    """Return a·y, in float32 for narrow types; all zeros where `skip` is true, even if y holds inf or NaN."""
    if isinstance(a, Tensor):
        a = send(a, y[0])
    wide = [tensor.float() for tensor in y] if is_narrow(y) else y
    product = [wide[0] * a] if len(y) == 1 else list(torch._foreach_mul(wide, a))
    if skip is not None:
        for tensor in product:
            tensor.masked_fill_(send(skip, y[0]), 0.0)
    return product


def _add_(x: Vector, y: Vector, a: float = 1.0) -> None:
    if len(x) == 1:
        x[0].add_(y[0], alpha=a)
    else:
        torch._foreach_add_(x, y, alpha=a)


def is_narrow(x: Vector) -> bool:
    """Return whether a chunk's type is bfloat16 or float16."""
    return x[0].dtype.itemsize < 4


# Averages of gradients, and Adam's preconditioner, for one chunk.

AVERAGE, SQUARES = "gradient_average", "square_average"  # the names of the buffers
WIDE = frozenset({SQUARES})  # buffers in float32 at least: in bfloat16, 0.999 s is rounded to s


class Products(NamedTuple):
    """What one pass measures beside the averages that it makes: u is the average, or the gradient."""

    gradient_dot_x: Any
    direction_dot_x: Any
    sum_squares: Any
    """⟨u, u⟩ in the norm of D⁻¹."""


def average_(v: Vector, y: Vector, beta: Scalar, skip: Tensor | None = None) -> None:
    """v ← βv + (1 − β)y; where the mask `skip` is true, v stays as it is, whatever y holds."""
    if not isinstance(beta, Tensor) and skip is None and not is_narrow(v) and v[0].dtype == y[0].dtype:
        torch._foreach_lerp_(v, y, 1.0 - beta)  # as torch's Adam does
        return
    scale_(v, where(skip, 1.0, beta) if skip is not None else beta)
    axpy_(v, y, 1.0 - beta, skip)


def average_squares_(v: Vector, y: Vector, beta: Scalar, skip: Tensor | None = None) -> None:
    """v ← βv + (1 − β)y², under the same mask; v is float32 or wider."""
    y = [tensor.to(kept.dtype) for tensor, kept in zip(y, v, strict=True)]
    if skip is not None:
        y = [tensor.masked_fill(send(skip, tensor), 0.0) for tensor in y]
        beta = where(skip, 1.0, beta)
    scale_(v, beta)
    if isinstance(beta, Tensor):
        torch._foreach_addcmul_(v, torch._foreach_mul(y, 1.0 - send(beta, y[0])), y)
    else:
        torch._foreach_addcmul_(v, y, y, 1.0 - beta)


def sums_of_parts(
    parts: Sequence[Any], columns: Iterable[Sequence[Vector]], local_sums: Callable[[Any, list[Vector]], list[Scalar]]
) -> list[list[Scalar]]:
    """Return for each part the `local_sums` of the columns of its vectors; one message adds them up over processes."""
    owners = [p for part in parts for p in part.owners]
    rows = [(i, row) for i, vectors in enumerate(columns) for row in zip(*vectors, strict=True)]

    def all_sums(some: list[Any]) -> list[Scalar]:
        mine: list[list[Any]] = [[] for _ in parts]
        for i, row in some:
            mine[i].append(row)
        vectors = [[[*column] for column in zip(*own, strict=True)] for own in mine]
        return [scalar for part, own in zip(parts, vectors, strict=True) for scalar in local_sums(part, own)]

    sums = sums_over_processes(all_sums, owners, rows)
    each = len(sums) // len(parts)
    own = [sums[i : i + each] for i in range(0, len(sums), each)]
    return [[*map(number, scalars)] if part.numbers else scalars for part, scalars in zip(parts, own, strict=True)]


def squares_together(parts: Sequence[Any], name: str) -> Scalar:
    """Return the squared norm of the vectors of that name in sharded parts; one message carries it."""
    x, owners = ([tensor for part in parts for tensor in getattr(part, each)] for each in (name, "owners"))
    scalar = sum_squares(x, owners, parts[0].group["foreach"])
    return number(scalar) if parts[0].numbers else scalar


def dots(parts: Sequence[Any], x: Sequence[Vector], y: Sequence[Vector]) -> list[Scalar]:
    """Return ⟨x, y⟩ of a pair of vectors of each part; if all are sharded, one message carries them."""
    pairs = [*zip(x, y, strict=True)]
    if not (parts and all([part.sharded for part in parts])):
        return [part.dot(*pair) for part, pair in zip(parts, pairs, strict=True)]
    return [sums[0] for sums in sums_of_parts(parts, pairs, lambda part, own: [dot(*own) if own else 0.0])]


def sums_abs(parts: Sequence[Any], x: Sequence[Vector]) -> list[Scalar]:
    """Return ‖x‖₁ of a vector of each part, in one message over all processes that hold a piece of one."""

    def local_norm(part: Any, own: list[Vector]) -> list[Scalar]:
        return [add_up([*map(absolutes, own[0])], part.group["step_size"]) if own else 0.0]

    return [sums[0] for sums in sums_of_parts(parts, zip(x), local_norm)]


def average_together(parts: Sequence[Any], beta: Scalar | None, beta2: Scalar | None, with_x: bool) -> list[Products]:
    """Average in all parts, and measure."""
    columns = [(part.g, part.x, *part.average_here_(beta, beta2)) for part in parts]
    sums_by_part = sums_of_parts(parts, columns, lambda part, own: [*part.products_here(own, with_x)])
    return [Products(*sums) for sums in sums_by_part]
