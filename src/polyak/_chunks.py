"""How a vector is cut into the pieces that one operation takes.

There are three ways. The loop takes tensor after tensor. Multi-tensor kernels (`_foreach_`) take all tensors of a kind
at once. On a CPU neither is best: a vector that does not fit the cache is read from memory again by every operation of
a step, and many small tensors cost a call each. So there the default is pieces of a size that the cache holds: slices
of large tensors, and small tensors of a kind together.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

Vector = list[Tensor]
Row = tuple[Tensor, ...]

MULTI_TENSOR_DEVICES = frozenset({"cuda", "xpu"})
PIECE = 1 << 19  # numbers per tensor; three float32 vectors of this length are 6 MiB


def is_interpreting() -> bool:
    """Return whether Triton interprets its kernels; the CPU then stands for a device, of which nothing is read."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def on_triton(x: Vector) -> bool:
    """Return whether Triton's kernels can take a vector."""
    if not x or torch.compiler.is_compiling():
        return False
    device = x[0].device.type
    return device == "cuda" or (device == "cpu" and is_interpreting())


def chunks(x: Vector, *others: Vector, foreach: bool | None) -> Iterator[tuple[Vector, ...]]:
    """Cut vectors of equal layout into pieces: one tensor, all of a kind, or (None) what suits the device."""
    rows = zip(x, *others, strict=True)
    device = x[0].device.type if x else "cpu"
    if foreach is None and device == "cpu" and not torch.compiler.is_compiling():
        yield from blocks(rows)
    elif foreach or (foreach is None and device in MULTI_TENSOR_DEVICES):
        yield from _kinds(rows, None)
    else:
        yield from (tuple([tensor] for tensor in row) for row in rows)


def blocks(rows: Iterable[Row]) -> Iterator[tuple[Vector, ...]]:
    """Cut rows into pieces that a cache holds."""
    small = []
    for row in rows:
        if is_small(row[0]):
            small.append(row)
        else:
            yield from (tuple([piece] for piece in pieces) for pieces in slices(row))
    yield from _kinds(small, PIECE)


def is_small(tensor: Tensor) -> bool:
    """Return whether a tensor shares a piece with others."""
    return tensor.numel() < PIECE // 4


def _kinds(rows: Iterable[Row], limit: int | None) -> Iterator[tuple[Vector, ...]]:
    """Collect the rows of a kind (device and types), at most so many numbers at a time."""
    waiting: dict[object, tuple[tuple[Vector, ...], int]] = {}
    for row in rows:
        kind = (row[0].device, *(tensor.dtype for tensor in row))
        columns, size = waiting.get(kind) or (tuple([] for _ in row), 0)
        if limit is not None and columns[0] and size + row[0].numel() > limit:
            yield columns
            columns, size = tuple([] for _ in row), 0
        for column, tensor in zip(columns, row, strict=True):
            column.append(tensor)
        waiting[kind] = columns, size + row[0].numel()
    yield from (columns for columns, _ in waiting.values())


def slices(row: Row) -> Iterable[Row]:
    """Cut tensors of one layout into slices of a size that a cache holds; other tensors stay whole."""
    if (views := flat(row)) is None:
        return [row]
    return [views] if views[0].numel() <= PIECE else zip(*(torch.split(view, PIECE) for view in views), strict=True)


def flat(row: Row) -> Row | None:
    """Return one-dimensional views of tensors whose numbers lie in memory in the same order, without gaps."""
    if all(tensor.is_contiguous() for tensor in row):
        return tuple(tensor.view(-1) for tensor in row)
    strides = row[0].stride()
    order = sorted(range(row[0].dim()), key=strides.__getitem__, reverse=True)
    if any(tensor.stride() != strides for tensor in row) or not row[0].permute(order).is_contiguous():
        return None
    return tuple(tensor.permute(order).view(-1) for tensor in row)
