"""Reaching the optimizer inside a framework's wrapper."""

from __future__ import annotations

from typing import Any

from .._step.optimizer import PolyakOptimizer


def polyak_in(optimizer: Any) -> PolyakOptimizer | None:
    """Return the Polyak optimizer inside any number of wrappers, or None if another kind is in there."""
    while not isinstance(optimizer, PolyakOptimizer):
        optimizer = getattr(optimizer, "optimizer", None)
        if optimizer is None:
            return None
    return optimizer


def step_sizes(optimizer: PolyakOptimizer) -> dict[str, Any]:
    """Return the γ of the last step for the log: a 0-dim tensor, or one for each group if they differ in number."""
    gammas = [group["step_size"] for group in optimizer.param_groups]
    if len(gammas) == 1:
        return {"step_size": gammas[0]}
    return {f"step_size/{i}": gamma for i, gamma in enumerate(gammas)}
