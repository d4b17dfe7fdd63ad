"""The Polyak optimizer in the wrapper of a framework, and its step sizes for the framework's log."""

from __future__ import annotations

from typing import Any

from .._metrics import polyak_in
from .._step.optimizer import PolyakOptimizer


def step_sizes(optimizer: PolyakOptimizer) -> dict[str, Any]:
    """Return the γ of the last step for the log: a 0-dim tensor, or one for each group if they differ in number."""
    gammas = [group["step_size"] for group in optimizer.param_groups]
    if len(gammas) == 1:
        return {"step_size": gammas[0]}
    return {f"step_size/{i}": gamma for i, gamma in enumerate(gammas)}


def inner(optimizer: Any, without: str) -> PolyakOptimizer:
    """Return the Polyak optimizer in a wrapper; TypeError names what to write where there is none."""
    method = polyak_in(optimizer)
    if method is None:
        raise TypeError(
            f"Only a Polyak optimizer needs the loss, but a {type(optimizer).__name__} holds none: write {without}."
        )
    return method
