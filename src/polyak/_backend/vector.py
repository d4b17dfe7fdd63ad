"""The model as one vector: the few operations every method is made of, each written once.

A vector is a list of real tensors. An operation on one tensor calls the tensor's own method, an operation on many
calls torch's multi-tensor (`_foreach_`) kernel: the loop backend feeds the tensors one by one, foreach all at once.
Scalars that come from the loss are 0-dim tensors on the device and are never read by the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from .chunks import IS_CPU, SMALL, Vector, chunks, flat, reads_nothing
from .distributed import PLAIN, any_sharded, by_layout, full, local, piece_of, send, total
from .packed import Packed, sort, types
from .scalars import Scalar, as_tensor, number

ROW = 1 << 12  # numbers of one sum: torch keeps few accumulators on the CPU, so that a long float32 sum loses digits
EPS = {t: torch.finfo(t).eps for t in (torch.float64, torch.float32, torch.bfloat16, torch.float16)}
TINY = 2.0**-20  # 1 − b keeps 32 digits of a larger b
DOUBLE = frozenset({torch.float64, torch.complex128})


def real(tensor: Tensor) -> Tensor:
    """Return the tensor itself, its local piece if it is sharded, or a real view if it is complex."""
    if type(tensor) not in PLAIN:
        tensor = local(tensor)
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def scalar_dtype(x: Sequence[Tensor]) -> torch.dtype:
    """Return the type in which sums over the vector are kept: float32, or wider if a tensor is wider."""
    return torch.float64 if not DOUBLE.isdisjoint(types(x)) else torch.float32


def sum_squares(
    x: Vector, owners: Sequence[Tensor] | None = None, *, foreach: bool | None = None, fused: bool | None = None
) -> Scalar:
    """Return ‖x‖², summed in float32 or wider, over all processes that hold a part of the owners.

    It is a 0-dim tensor, or a number where a kernel of the CPU has found it.
    """
    if isinstance(x, Packed):  # what is packed is neither empty nor spread over processes
        return x.kernels.squares(x)  # type: ignore[no-any-return]
    if not x:
        return 0.0
    return over_processes(lambda part: _sum_squares_here(part, foreach, fused), owners or x, x)


def _sum_squares_here(x: Vector, foreach: bool | None, fused: bool | None) -> Scalar:
    kinds, (rest,) = sort([x]) if fused else ([], [x])
    found = [kind.kernels.squares(kind) for (kind,) in kinds]
    dtype = scalar_dtype(x)
    for (chunk,) in chunks(rest, foreach=None if x[0].is_cpu else foreach, piece=None):
        found += squares(chunk, dtype)
    if len(found) == 1:
        return found[0]  # type: ignore[no-any-return]
    return add_up(found, torch.zeros((), dtype=dtype, device=x[0].device))


def squares(x: Vector, dtype: torch.dtype) -> Sequence[Tensor]:
    """Return numbers whose sum is ‖x‖², for one chunk."""
    if x[0].device.type != "cpu" or torch.compiler.is_compiling():
        many = torch._foreach_powsum(x, 2, dtype=dtype) if len(x) > 1 else None
        return many or [torch.linalg.vector_norm(x[0], dtype=dtype).square()]
    views = flat((x[0],)) if len(x) == 1 else (_flatten_dense_tensors(x),)  # type: ignore[no-untyped-call]
    return [_square(part, dtype) for part in (x if views is None else _rows(views[0]))]


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
        _add_(x, _scaled(y, a, skip))
    elif _is_narrow(x):
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
    elif not (_is_narrow(x) or reads_nothing(x[0].device)):
        a = torch.full((), a, dtype=x[0].dtype)  # thrice as fast as a number on the CPU
    if isinstance(a, Tensor) and _is_narrow(x):  # torch would round a to the type of x first
        for tensor in x:
            tensor.copy_(tensor.to(a.dtype) * a)
    elif len(x) == 1:
        x[0].mul_(a)
    else:
        torch._foreach_mul_(x, a)


def accumulate_(
    x: Vector, u: Vector, v: Vector, keep: Scalar, b: Scalar, w: Scalar, skip: Tensor | None, at_once: bool
) -> None:
    """v ← keep·v + b·u;  x ← x + w·v, for one chunk: `at_once` in a kernel of PyTorch's SGD, where it has one."""
    at_once = at_once and skip is None and len(x) == 1
    if at_once and isinstance(keep, float) and isinstance(b, float) and isinstance(w, float) and _sgd_takes(x, u, v, b):
        torch._fused_sgd_(
            x, u, v, momentum=keep, dampening=1.0 - b, lr=-w, weight_decay=0.0, nesterov=False, maximize=False,
            is_first_step=False,
        )  # fmt: skip
        return
    scale_(v, keep)
    axpy_(v, u, b, skip)
    axpy_(x, v, w, skip)


def rescale_(x: Vector, a: Scalar, *, fused: bool | None = None) -> None:
    """x ← a·x, for a whole vector."""
    kinds, (rest,) = sort([x], a) if fused else ([], [x])
    for (kind,) in kinds:
        kind.kernels.scale_(kind, a)
    for (chunk,) in chunks(rest, foreach=True):
        scale_(chunk, a)


def add_(x: Vector, y: Vector, a: Scalar, *, foreach: bool | None = None) -> None:
    """x ← x + a·y, for whole vectors."""
    for x_chunk, y_chunk in chunks(x, y, foreach=foreach):
        axpy_(x_chunk, y_chunk, a)


def dot(x: Vector, y: Vector, owners: Sequence[Tensor] | None = None) -> Scalar:
    """Return ⟨x, y⟩ as a 0-dim tensor, summed in float32 or wider, over all processes that hold a part."""
    dtype = scalar_dtype([*x, *y])

    def here(pairs: list[tuple[Tensor, Tensor]]) -> Scalar:
        products = [torch.sum(send(a, b) * b, dtype=dtype) for a, b in pairs]
        return add_up(products, products[0])

    return over_processes(here, owners or y, zip(x, y, strict=True))


def clamp_(x: Vector, low: float, high: float) -> None:
    """x ← min{max{x, low}, high}."""
    for tensor in x:
        tensor.clamp_(low, high)


def assign_(x: Vector, values: Vector) -> None:
    """x ← values."""
    for tensor, value in zip(x, values, strict=True):
        tensor.copy_(send(value, tensor))


def rounding(x: Vector) -> float:
    """Return the relative error that rounding may leave in the norm of a rescaled vector."""
    return max([4 * EPS[scalar_dtype(x)], *(EPS[dtype] for dtype in types(x))])


def flatten(owners: Sequence[Tensor]) -> Tensor:
    """Return a copy of whole tensors in one long float64 tensor, in which sums stay exact."""
    parts = [full(p).reshape(-1).to(device=owners[0].device, dtype=torch.float64) for p in owners]
    return torch.cat(parts) if parts else torch.zeros(0)


def split_like(flat: Tensor, owners: Sequence[Tensor]) -> Vector:
    """Cut one long tensor into the shapes, devices and local pieces of its owners."""
    parts = torch.split(flat, [p.numel() for p in owners])
    return [piece_of(part.view(p.shape), p) for part, p in zip(parts, owners, strict=True)]


def read_on_cpu(scalar: Scalar) -> Any:
    """Read a scalar on the CPU, which costs nothing; return None on other devices, so that the host never waits."""
    return None if isinstance(scalar, Tensor) and reads_nothing(scalar.device) else number(scalar)


def over_processes(here: Callable[[list[Any]], Scalar], owners: Sequence[Tensor], rows: Iterable[Any]) -> Scalar:
    if not any_sharded(owners):
        return here(rows if isinstance(rows, list) else list(rows))
    like = torch.zeros((), dtype=scalar_dtype(owners), device=owners[0].device)
    parts = [total(as_tensor(here(some), like), layout) for layout, some in by_layout(owners, rows).items()]
    return parts[0] if len(parts) == 1 else add_up(parts, parts[0])


def _rows(x: Tensor) -> Vector:
    """Cut a long vector into rows of a matrix and what is left: short sums are right, and rows are added at once."""
    rows, rest = divmod(x.numel(), ROW)
    if rows < 4:
        return [x]
    return [x[: rows * ROW].view(rows, ROW), x[-rest:]] if rest else [x.view(rows, ROW)]


def _square(x: Tensor, dtype: torch.dtype) -> Tensor:
    if x.dtype == dtype and x.is_contiguous():
        norms = x if x.dim() == 1 else torch.linalg.vector_norm(x, dim=1)
        return torch.dot(norms, norms)
    norm: Tensor = torch.linalg.vector_norm(x, dtype=dtype)
    return norm.square()


def _scaled(y: Vector, a: Scalar, skip: Tensor | None = None) -> Vector:
    """Return a·y, in float32 for narrow types; all zeros where `skip` is true, even if y holds inf or NaN."""
    if isinstance(a, Tensor):
        a = send(a, y[0])
    wide = [tensor.float() for tensor in y] if _is_narrow(y) else y
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


def _sgd_takes(x: Vector, u: Vector, v: Vector, b: float) -> bool:
    """Return whether a kernel of PyTorch's SGD may do it: it takes b as 1 − (1 − b), which float32 does not notice.

    It wakes all threads for any tensor, for which a small one is done too soon.
    """
    tensors = [*x, *u, *v]
    if abs(b) < TINY or types(tensors) != {torch.float32} or tensors[0].numel() < SMALL:
        return False
    return all(map(IS_CPU, tensors)) and all(map(Tensor.is_contiguous, tensors))


def _is_narrow(x: Vector) -> bool:
    return x[0].dtype.itemsize < 4
