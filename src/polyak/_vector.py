"""The model as one vector: the few operations every method is made of, each written once.

A vector is a list of real tensors. An operation on one tensor calls the tensor's own method, an operation on many
calls torch's multi-tensor (`_foreach_`) kernel: the loop backend feeds the tensors one by one, foreach all at once.
Scalars that come from the loss are 0-dim tensors on the device and are never read by the host.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

Vector = list[Tensor]
Scalar = Tensor | float

MULTI_TENSOR_DEVICES = frozenset({"cuda", "xpu"})


def real(tensor: Tensor) -> Tensor:
    """Return the tensor itself, or a real view of a complex one."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def scalar_dtype(x: Sequence[Tensor]) -> torch.dtype:
    """Return the type in which sums over the vector are kept: float32, or wider if a tensor is wider."""
    dtype = torch.float32
    for tensor_dtype in {tensor.dtype for tensor in x}:
        dtype = torch.promote_types(dtype, tensor_dtype.to_real())
    return dtype


def chunks(x: Vector, *others: Vector, foreach: bool | None) -> Iterator[tuple[Vector, ...]]:
    """Cut vectors of equal layout into the pieces one operation can take: single tensors, or all of one kind."""
    if foreach is None:
        foreach = bool(x) and x[0].device.type in MULTI_TENSOR_DEVICES
    if not foreach:
        yield from ([[tensor] for tensor in row] for row in zip(x, *others, strict=True))  # type: ignore[misc]
        return
    kinds: dict[tuple[torch.device, torch.dtype], tuple[Vector, ...]] = {}
    for row in zip(x, *others, strict=True):
        kind = kinds.setdefault((row[0].device, row[0].dtype), tuple([] for _ in row))
        for column, tensor in zip(kind, row, strict=True):
            column.append(tensor)
    yield from kinds.values()


def sum_squares(x: Vector, *, foreach: bool | None = None) -> Tensor:
    """Return ‖x‖² as a 0-dim tensor, summed in float32 or wider."""
    if not x:
        return torch.zeros(())
    dtype, device = scalar_dtype(x), x[0].device
    parts = [part for (chunk,) in chunks(x, foreach=foreach) for part in _squared_norms(chunk, dtype)]
    return torch.stack([part.to(device, non_blocking=True) for part in parts]).sum()


def axpy_(x: Vector, y: Vector, a: Scalar, skip: Tensor | None = None) -> None:
    """x ← x + a·y, for one chunk; where the mask `skip` is true, x stays as it is, whatever y holds."""
    if skip is not None:
        _add_(x, _scaled(y, a, skip))
    elif not isinstance(a, Tensor):
        _add_(x, y, a)
    elif len(x) == 1 and not _is_narrow(x):
        x[0].addcmul_(y[0], _on(a, x))  # in one pass, without a temporary
    else:
        _add_(x, _scaled(y, a))


def scale_(x: Vector, a: Scalar, skip: Tensor | None = None) -> None:
    """x ← a·x, for one chunk; where the mask `skip` is true, x stays as it is."""
    if skip is not None:
        a = torch.where(skip, 1.0, torch.as_tensor(a, device=skip.device))
    if isinstance(a, Tensor):
        a = _on(a, x)
    if isinstance(a, Tensor) and _is_narrow(x):  # torch would round a to the type of x first
        for tensor in x:
            tensor.copy_(tensor.to(a.dtype) * a)
    elif len(x) == 1:
        x[0].mul_(a)
    else:
        torch._foreach_mul_(x, a)


def rescale_(x: Vector, a: Tensor, *, foreach: bool | None = None) -> None:
    """x ← a·x, for a whole vector."""
    for (chunk,) in chunks(x, foreach=foreach):
        scale_(chunk, a)


def add_(x: Vector, y: Vector, a: Scalar, *, foreach: bool | None = None) -> None:
    """x ← x + a·y, for whole vectors."""
    for x_chunk, y_chunk in chunks(x, y, foreach=foreach):
        axpy_(x_chunk, y_chunk, a)


def dot(x: Vector, y: Vector) -> Tensor:
    """Return ⟨x, y⟩ as a 0-dim tensor, summed in float32 or wider."""
    dtype, device = scalar_dtype([*x, *y]), y[0].device
    parts = [torch.sum(a.to(b.device) * b, dtype=dtype).to(device) for a, b in zip(x, y, strict=True)]
    return torch.stack(parts).sum()


def clamp_(x: Vector, low: float, high: float) -> None:
    """x ← min{max{x, low}, high}."""
    for tensor in x:
        tensor.clamp_(low, high)


def shift_(x: Vector, a: Tensor) -> None:
    """x ← x + a, the same number for every coordinate."""
    for tensor in x:
        tensor.add_(a.to(tensor.device))


def shrink_(x: Vector, theta: Tensor) -> None:
    """x ← sign(x)·(|x| − θ)₊."""
    for tensor in x:
        limit = theta.to(tensor.device)
        tensor.sub_(tensor.clamp(-limit, limit))


def flatten(x: Vector) -> Tensor:
    """Return a copy of the whole vector in one float64 tensor, in which long sums stay exact."""
    return torch.cat([tensor.reshape(-1).to(device=x[0].device, dtype=torch.float64) for tensor in x])


def split_like(flat: Tensor, x: Vector) -> Vector:
    """Cut one long tensor into the shapes and devices of a vector."""
    parts = torch.split(flat, [tensor.numel() for tensor in x])
    return [part.view(tensor.shape).to(tensor.device) for part, tensor in zip(parts, x, strict=True)]


def read_on_cpu(mask: Tensor) -> bool | None:
    """Read a mask on the CPU, which costs nothing; leave it on any other device, so that the host never waits."""
    if mask.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    return bool(mask)


def _squared_norms(x: Vector, dtype: torch.dtype) -> Sequence[Tensor]:
    if len(x) == 1:
        return [torch.linalg.vector_norm(x[0], dtype=dtype).square()]
    if hasattr(torch, "_foreach_powsum"):  # torch 2.12 and newer: no root that is squared again
        return torch._foreach_powsum(x, 2, dtype=dtype)
    return [norm.square() for norm in torch._foreach_norm(x, 2, dtype=dtype)]


def _scaled(y: Vector, a: Scalar, skip: Tensor | None = None) -> Vector:
    """Return a·y, in float32 for narrow types; all zeros where `skip` is true, even if y holds inf or NaN."""
    if isinstance(a, Tensor):
        a = _on(a, y)
    wide = [tensor.float() for tensor in y] if _is_narrow(y) else y
    product = [wide[0] * a] if len(y) == 1 else list(torch._foreach_mul(wide, a))
    if skip is not None:
        for tensor in product:
            tensor.masked_fill_(_on(skip, y), 0.0)
    return product


def _add_(x: Vector, y: Vector, a: float = 1.0) -> None:
    if len(x) == 1:
        x[0].add_(y[0], alpha=a)
    else:
        torch._foreach_add_(x, y, alpha=a)


def _is_narrow(x: Vector) -> bool:
    return x[0].dtype.itemsize < 4


def _on(a: Tensor, x: Vector) -> Tensor:
    return a.to(x[0].device, non_blocking=True)
