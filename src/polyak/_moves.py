"""How the parameters move once γ is known: each momentum form, written once for every method and backend.

A move takes one chunk of the parameters x, the direction u and the momentum buffer v, and changes x and v in place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ._vector import Vector, axpy_, chunks, scale_

Move = Callable[[Vector, Vector, Vector, Tensor, float, Tensor | None], None]


def plain(x: Vector, u: Vector, v: Vector, gamma: Tensor, mu: float, skip: Tensor | None) -> None:
    """x ← x − γu."""
    axpy_(x, u, -gamma, skip)


def nesterov(x: Vector, u: Vector, v: Vector, gamma: Tensor, mu: float, skip: Tensor | None) -> None:
    """v ← μv − γu;  x ← x − γu + μv: the step size is inside the buffer (ALI-G's standard momentum)."""
    scale_(v, mu, skip)
    axpy_(v, u, -gamma, skip)
    axpy_(x, u, -gamma, skip)
    axpy_(x, v, mu, skip)


def adjusted_nesterov(x: Vector, u: Vector, v: Vector, gamma: Tensor, mu: float, skip: Tensor | None) -> None:
    """v ← μv − u;  x ← x − γu + γμv: the step size is outside the buffer, as in torch.optim.SGD."""
    scale_(v, mu, skip)
    axpy_(v, u, -1.0, skip)
    axpy_(x, u, -gamma, skip)
    axpy_(x, v, gamma * mu, skip)


def move(group: dict[str, Any], x: Vector, u: Vector, v: Vector, gamma: Tensor, skip: Tensor | None) -> None:
    """Move the parameters of a group along −γu in the momentum form the group asks for."""
    form = _form(group)
    for x_chunk, u_chunk, v_chunk in chunks(x, u, v or x, foreach=group["foreach"]):
        form(x_chunk, u_chunk, v_chunk, gamma, group["momentum"], skip)


def _form(group: dict[str, Any]) -> Move:
    if not group["momentum"]:
        return plain
    return adjusted_nesterov if group.get("adjusted_momentum") else nesterov
