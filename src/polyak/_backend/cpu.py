"""fused=True on the CPU: which types the compiled kernels take, and how they are started."""

from __future__ import annotations

from ctypes import byref
from typing import TYPE_CHECKING

import torch
from torch.autograd.graph import increment_version

from .cpu_build import REALS, Pass, kernels

if TYPE_CHECKING:
    from .packed import Packed

FORMS = {"measure": 0, "scale": 1, "plain": 2, "nesterov": 3, "adjusted": 4}


def takes(types: set[torch.dtype]) -> bool:
    """Return whether there is a kernel for vectors of these types."""
    return len(types) == 1 and types <= REALS.keys()


def squares(x: Packed) -> float:
    """Return ‖x‖²."""
    return _run("measure", x, x, x, measured=True)


def scale_(x: Packed, a: float) -> None:
    """x ← a·x."""
    _run("scale", x, x, x, a)
    increment_version(x)


def move(
    form: str, x: Packed, u: Packed, v: Packed, gamma: float, mu: float, keep: float, skip: None, measured: bool
) -> float:
    """Move x and v; return the new ‖x‖², or 0 if it is not measured."""
    found = _run(form, x, u, v, gamma, mu, measured)
    increment_version(x)  # no graph holds a momentum buffer
    return found


def _run(
    form: str, x: Packed, u: Packed, v: Packed, gamma: float = 0.0, mu: float = 0.0, measured: bool = False
) -> float:
    """Make a pass over the memory."""
    table, columns = x.table.numbers.buffer_info()[0], (x.column, u.column, v.column)
    numbers = (FORMS[form], measured, torch.get_num_threads(), len(x), table, *columns, gamma, mu)
    found: float = kernels(x.dtype)(byref(Pass(*numbers)))
    if found < 0:
        raise MemoryError("There is no memory for a step's sums, 8 bytes for every 8192 parameters.")
    return found
