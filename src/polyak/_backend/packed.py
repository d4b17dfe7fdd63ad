"""Vectors as the compiled kernels take them: where each tensor lies in memory is looked up once per step."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence, Set
from dataclasses import dataclass
from itertools import chain, product
from typing import Any

import torch
from torch import Tensor

from .chunks import Vector, same_layout
from .distributed import PLAIN

DTYPE, DEVICE = Tensor.dtype.__get__, Tensor.device.__get__  # type: ignore[attr-defined]
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
