"""The step sizes of an optimizer for a framework's log."""

from __future__ import annotations

from typing import Any

from .._step.optimizer import PolyakOptimizer


def step_sizes(optimizer: PolyakOptimizer) -> dict[str, Any]:
    """Return the γ of the last step for the log: a 0-dim tensor, or one for each group if they differ in number."""
    gammas = [group["step_size"] for group in optimizer.param_groups]
    if len(gammas) == 1:
        return {"step_size": gammas[0]}
    return {f"step_size/{i}": gamma for i, gamma in enumerate(gammas)}
