"""Vectors as the kernels of fused=True take them: a step looks once at what its tensors are and where they lie."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from itertools import chain, product
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from . import chunks, cpu
from .chunks import DTYPE, IS_CPU, Row, Vector, kinds, lie_alike, reads_nothing
from .distributed import PLAIN
from .scalars import Scalar

KIND, IS_CUDA = attrgetter("__class__", "layout", "dtype"), attrgetter("is_cuda")
REALS = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})
# Tensors that are vectors as they stand: neither sharded nor sparse nor complex.
COMMON = frozenset(product(PLAIN, [torch.strided], REALS))


class Table:
    """Where vectors that lie alike are in memory: the sizes of their tensors, then the addresses vector by vector."""

    __slots__ = ("numbers", "sizes", "there")

    def __init__(self, sizes: list[int], addresses: list[int]) -> None:
        self.sizes, self.numbers = sizes, array("q", sizes + addresses)
        self.there: Any = None  # what the kernels of another device have made of it


class Packed(list[Tensor]):
    """A vector of plain tensors, of one type and on one device, without gaps in memory; a column of a table."""

    __slots__ = ("column", "dtype", "kernels", "table")
    table: Table
    column: int
    dtype: torch.dtype
    kernels: Any


def types(x: Sequence[Tensor]) -> set[torch.dtype]:
    """Return the types of a vector's tensors."""
    return {x.dtype} if isinstance(x, Packed) else {*map(DTYPE, x)}


def pack(vectors: Sequence[Vector], *scalars: Scalar) -> Sequence[Packed]:
    """Return vectors that lie alike as their kernels take them; none if they do not, or hold nothing."""
    tensors = [*chain(*vectors)]
    kernels = _kernels(tensors, scalars)
    if kernels is None or not {*map(type, tensors)} <= PLAIN:
        return ()
    found = types(tensors)
    if not kernels.takes(found) or (len(found) > 1 and any(len(types(x)) > 1 for x in vectors)):
        return ()
    try:
        if not _lie_alike(tensors, vectors):
            return ()
        sizes, addresses = [*map(Tensor.numel, tensors)], [*map(Tensor.data_ptr, tensors)]
    except RuntimeError:  # torch's, for tensors of a layout that has no addresses
        return ()
    own = sizes[: len(vectors[0])]
    if not any(own) or sizes != own * len(vectors):
        return ()
    table, packed = Table(own, addresses), [*map(Packed, vectors)]
    for column, vector in enumerate(packed, start=1):
        vector.table, vector.column, vector.kernels, vector.dtype = table, column, kernels, vector[0].dtype
    return packed


def sort(vectors: Sequence[Vector], *scalars: Scalar) -> tuple[list[Sequence[Packed]], Sequence[Vector]]:
    """Return what kernels take, packed by type, and the other tensors."""
    tables = [getattr(vector, "table", None) for vector in vectors]
    if tables[0] and tables.count(tables[0]) == len(tables):
        return [vectors], [[] for _ in vectors]  # type: ignore[list-item]
    whole = pack(vectors, *scalars)
    return ([whole], [[] for _ in vectors]) if whole else _sort_rows(vectors, scalars)


def _sort_rows(vectors: Sequence[Vector], scalars: Sequence[Scalar]) -> tuple[list[Sequence[Packed]], Sequence[Vector]]:
    found: list[Sequence[Packed]] = []
    others: list[Row] = []
    for kind in kinds(zip(*vectors, strict=True)):
        fitting: list[Row] = []
        for row in zip(*kind, strict=True):
            (fitting if pack([[tensor] for tensor in row], *scalars) else others).append(row)
        if fitting:
            found.append(pack(_columns(fitting, vectors), *scalars))
    return found, _columns(others, vectors)


def _lie_alike(tensors: Vector, vectors: Sequence[Vector]) -> bool:
    """Return whether the memory of one device holds the very numbers of all, in one order for those that are a row."""
    if tensors[0].is_cpu:
        alike = all(map(IS_CPU, tensors))
    else:
        alike = all(map(IS_CUDA, tensors)) and len({*map(Tensor.get_device, tensors)}) == 1
    if not alike or any(map(Tensor.is_neg, tensors)):
        return False
    return all(map(Tensor.is_contiguous, tensors)) or all(map(lie_alike, zip(*vectors, strict=True)))


def _columns(rows: Iterable[Row], like: Sequence[Vector]) -> Sequence[Vector]:
    rows = [*rows]
    return [[row[column] for row in rows] for column in range(len(like))]


def _kernels(x: Vector, scalars: Sequence[Scalar]) -> Any:
    """Return the module whose kernels take vectors of this device: Triton's on CUDA, C on the CPU; None elsewhere.

    Scalars must be tensors for the one and numbers for the other, which fails only where a group spans devices.
    """
    if not x or torch.compiler.is_compiling():
        return None
    if scalars and any(isinstance(scalar, Tensor) != reads_nothing(x[0].device) for scalar in scalars):
        return None
    if x[0].is_cpu and not chunks.INTERPRETED:
        return cpu
    if not (x[0].is_cpu or x[0].is_cuda):
        return None
    try:
        from . import cuda
    except ImportError as error:
        raise RuntimeError("fused=True needs Triton on CUDA: pip install triton, or leave fused out.") from error
    return cuda
