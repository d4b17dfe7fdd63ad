"""How the parameters move once γ is known: each form of momentum, written once for every method.

A move takes one chunk of the parameters x, the direction u and the momentum buffer v, and changes x and v in place, by
the two operations of a backend. The compiled kernels (`cpu_kernels.c`, `cuda_kernels.py`) make the same moves in one
pass over the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, Protocol

from .chunks import Vector


class Form(IntEnum):
    """The form of momentum; the numbers are those of `enum form` in `cpu_kernels.c`."""

    PLAIN = 2
    NESTEROV = 3
    ADJUSTED = 4


class Operations(Protocol):
    """What a backend does with one chunk."""

    def axpy_(self, x: Vector, y: Vector, a: Any) -> None:
        """x ← x + a·y."""

    def accumulate_(self, x: Vector, u: Vector, v: Vector, mu: Any, b: Any, w: Any) -> None:
        """v ← μv + b·u;  x ← x + w·v."""


def plain(on: Operations, x: Vector, u: Vector, v: Vector, gamma: Any, mu: Any) -> None:
    """x ← x − γu."""
    on.axpy_(x, u, -gamma)


def nesterov(on: Operations, x: Vector, u: Vector, v: Vector, gamma: Any, mu: Any) -> None:
    """v ← μv − γu;  x ← x − γu + μv: the step size is inside the buffer (ALI-G's standard momentum)."""
    on.axpy_(x, u, -gamma)
    on.accumulate_(x, u, v, mu, -gamma, mu)


def adjusted(on: Operations, x: Vector, u: Vector, v: Vector, gamma: Any, mu: Any) -> None:
    """v ← μv − u;  x ← x − γu + γμv: the step size is outside the buffer, as in torch.optim.SGD."""
    on.axpy_(x, u, -gamma)
    on.accumulate_(x, u, v, mu, -1.0, gamma * mu)


MOVES: dict[Form, Callable[..., None]] = {
    Form.PLAIN: plain,
    Form.NESTEROV: nesterov,
    Form.ADJUSTED: adjusted,
}
