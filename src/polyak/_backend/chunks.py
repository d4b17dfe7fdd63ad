"""How a vector is cut into the chunks that one operation takes.

There are three ways. The loop takes tensor after tensor. Multi-tensor kernels (`_foreach_`) take all tensors of one
type at once. On a CPU neither is best: a vector that does not fit the cache is read from memory again by every
operation of a step, and many small tensors cost a call each. So the default there is pieces of a size that fits the
cache: slices of large tensors, and small tensors of one type together.
"""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import chain, product, repeat
from typing import Any

import torch
from torch import Tensor

from .distributed import PLAIN, Layout, is_sharded

Vector = list[Tensor]
Row = tuple[Tensor, ...]
IS_CPU = Tensor.is_cpu.__get__  # type: ignore[attr-defined]
DTYPE, DEVICE = Tensor.dtype.__get__, Tensor.device.__get__  # type: ignore[attr-defined]

WIDE = ({torch.float32}, {torch.float64})
MULTI_TENSOR_DEVICES = frozenset({"cuda", "xpu"})
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # the CPU then stands for a device
PIECE = 3 << 18  # numbers of a piece at most: three float32 vectors of this length are 9 MiB
ALIGNED = 64  # a slice begins at a multiple of so many numbers
SMALL = 1 << 15  # tensors of fewer numbers share a piece
SHARED = 1 << 17  # numbers of a piece that is shared


def must_not_sync(device: torch.device) -> bool:
    """Return whether the host may not read numbers from a device: it would wait, or bind a compiled graph to them."""
    return device.type != "cpu" or INTERPRETED or torch.compiler.is_compiling()


def are_on_host(tensors: Vector) -> bool:
    """Return whether tensors of one type, float32 or float64, lie on the CPU, where the host may read them."""
    on_host = not (INTERPRETED or torch.compiler.is_compiling())
    return on_host and {*map(DTYPE, tensors)} in WIDE and all(map(IS_CPU, tensors))


def chunks(*vectors: Vector, foreach: bool | None, whole: bool = False) -> Iterable[tuple[Vector, ...]]:
    """Cut vectors of equal layout into chunks: one tensor, all of one type, or (None) what suits the device."""
    device = vectors[0][0].device.type if vectors[0] else "cpu"
    if foreach is None and device == "cpu" and not torch.compiler.is_compiling():
        return pieces(vectors, whole)
    if foreach or (foreach is None and device in MULTI_TENSOR_DEVICES):
        return by_type(vectors)
    return [tuple([[tensor] for tensor in row]) for row in zip(*vectors, strict=True)]


def pieces(vectors: tuple[Vector, ...], whole: bool = False) -> Iterable[tuple[Vector, ...]]:
    """Cut vectors into pieces that fit a cache; large tensors stay `whole` if that is asked for."""
    groups = by_type(vectors)
    sizes = [[tensor.numel() for tensor in group[0]] for group in groups]
    return chain.from_iterable(map(pieces_of_one_type, groups, sizes, repeat(whole)))


def pieces_of_one_type(
    vectors: tuple[Vector, ...], sizes: list[int], whole: bool = False, most: int = PIECE
) -> Iterator[tuple[Vector, ...]]:
    """Cut vectors of one type, whose tensors have these sizes, into pieces of at `most` so many numbers."""
    together: list[Row] = []
    total = 0
    for row, size in zip(zip(*vectors, strict=True), sizes, strict=True):
        if size >= SMALL:
            for part in [row] if whole or size <= most else _slices(row, most):
                yield tuple([[tensor] for tensor in part])
            continue
        if total + size > SHARED:
            yield columns(together)
            together, total = [], 0
        together.append(row)
        total += size
    if together:
        yield columns(together)


def by_type(vectors: Sequence[Vector]) -> list[tuple[Vector, ...]]:
    """Collect the rows whose tensors have the same devices and types."""
    tensors = [*chain(*vectors)]
    if len({*map(DTYPE, tensors)}) == len({*map(DEVICE, tensors)}) == 1:
        return [tuple(vectors)]
    rows: dict[object, list[Row]] = {}
    for row in zip(*vectors, strict=True):
        rows.setdefault(tuple([(tensor.device, tensor.dtype) for tensor in row]), []).append(row)
    return [*map(columns, rows.values())]


def by_layout(owners: Sequence[Tensor], rows: Iterable[Any]) -> dict[Layout, list[Any]]:
    """Sort rows by how their owners are spread."""
    kinds: dict[Layout, list[Any]] = {}
    for owner, row in zip(owners, rows, strict=True):
        kinds.setdefault(_layout(owner), []).append(row)
    return kinds


def _layout(tensor: Tensor) -> Layout:
    if not is_sharded(tensor):
        return None
    mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
    return mesh, tuple(dim for dim, placement in enumerate(placements) if not placement.is_replicate())


def flat_views(row: Row) -> Row | None:
    """Return one-dimensional views of tensors of the same layout, in the order of their memory, or None."""
    if all([tensor.is_contiguous() for tensor in row]):
        return tuple([tensor.view(-1) for tensor in row])
    if not same_layout(row):
        return None
    order = _order(row[0])
    return tuple([tensor.permute(order).view(-1) for tensor in row])


def same_layout(row: Row) -> bool:
    """Return whether the numbers of all tensors lie in memory in the same order, without gaps."""
    if all([tensor.is_contiguous() for tensor in row]):
        return len({tensor.numel() for tensor in row}) == 1
    strides = row[0].stride()
    return all([tensor.stride() == strides for tensor in row]) and _has_no_gaps(row[0])


def _slices(row: Row, most: int) -> Iterable[Row]:
    """Cut tensors of one layout into equal slices of at `most` so many numbers; other tensors stay whole."""
    views = flat_views(row)
    if views is None:
        return [row]
    size = row[0].numel()
    length = math.ceil(size / math.ceil(size / most) / ALIGNED) * ALIGNED
    return zip(*[torch.split(view, length) for view in views], strict=True)


def columns(rows: list[Row]) -> tuple[Vector, ...]:
    """Return the vectors of some rows."""
    return tuple([[*column] for column in zip(*rows, strict=True)])


def _has_no_gaps(tensor: Tensor) -> bool:
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):  # ten times as fast
        return True
    return tensor.permute(_order(tensor)).is_contiguous()


def _order(tensor: Tensor) -> list[int]:
    """Return the dimensions by falling stride."""
    return sorted(range(tensor.dim()), key=tensor.stride().__getitem__, reverse=True)


# Vectors as the compiled kernels take them: where each tensor lies in memory is looked up once per step.

FLOATING = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})
# Classes, layouts and types of tensors that are vectors as they stand: neither sharded nor sparse nor complex.
COMMON = frozenset(product(PLAIN, [torch.strided], FLOATING))


@dataclass(slots=True)
class Table:
    """The addresses of vectors of one layout: the sizes of their tensors, then the addresses vector by vector."""

    sizes: list[int]
    numbers: array[int]
    on_device: Any = None
    """The copy that the kernels of another device read."""


class Packed(list[Tensor]):
    """A vector of plain tensors, of one type and on one device, without gaps in memory; a column of a table."""

    __slots__ = ("column", "dtype", "table")
    table: Table
    column: int
    dtype: torch.dtype


def types(x: Sequence[Tensor]) -> set[torch.dtype]:
    """Return the types of a vector's tensors."""
    return {x.dtype} if isinstance(x, Packed) else {tensor.dtype for tensor in x}


def pack(vectors: Sequence[Vector], allowed: Collection[Set[torch.dtype]]) -> list[Packed]:
    """Return vectors of one layout with a table of their addresses; nothing if they have none, or no allowed types."""
    tensors = [*chain(*vectors)]
    dtypes = {*map(DTYPE, tensors)}
    if dtypes not in allowed or not {*map(type, tensors)} <= PLAIN:
        return []
    if len(dtypes) > 1 and any(len(types(x)) > 1 for x in vectors):
        return []
    try:
        if not all(map(Tensor.is_contiguous, tensors)) and not all(map(same_layout, zip(*vectors, strict=True))):
            return []
        sizes, addresses = [*map(Tensor.numel, tensors)], [*map(Tensor.data_ptr, tensors)]
    except RuntimeError:  # raised by torch for tensors of a layout that has no addresses
        return []
    own, device = sizes[: len(vectors[0])], tensors[0].device
    if sizes != own * len(vectors) or any(map(Tensor.is_neg, tensors)) or not any(own):
        return []
    if {*map(DEVICE, tensors)} != {device}:
        return []
    table, packed = Table(own, array("q", own + addresses)), [*map(Packed, vectors)]
    for column, vector in enumerate(packed, start=1):
        vector.table, vector.column, vector.dtype = table, column, vector[0].dtype
    return packed
