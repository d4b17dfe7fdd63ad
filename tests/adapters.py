"""Methods that need more than one loss, as the tests of promises call them: with a loss and gradients alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import polyak
from polyak._step.loss import check_single


class ALIGPlus(polyak.ALIGPlus):
    """ALIGPlus for tests that give one loss: step t is of sample t mod N."""

    linearize = polyak.ALIGPlus.linearize  # the base looks for it in the class itself

    def step(self, closure: Any = None, **given: Any) -> Tensor | None:  # type: ignore[override]
        """Make a step with the index of the sample."""
        if isinstance(given.get("loss"), Tensor):
            check_single(given["loss"])
        group = self.param_groups[0] if self.param_groups else {"steps": 0, "targets": [0.0]}
        given.setdefault("indices", group["steps"] % len(group["targets"]))
        return polyak.PolyakOptimizer.step(self, closure, **given)


ALIGPlus.__doc__ = polyak.ALIGPlus.__doc__


class SAMSPS(polyak.SAMSPS):
    """SAMSPS for tests that give one loss and its gradients, which both evaluations then see."""

    linearize = polyak.SAMSPS.linearize  # the base looks for it in the class itself

    def step(self, closure: Any = None, *, loss: Any = None, twice: bool = False, **given: Any) -> Tensor | None:  # type: ignore[override]
        """Make a step of a loss that is linear in the parameters, or evaluate the closure `twice`."""
        if twice or (closure is not None and loss is not None):
            return polyak.PolyakOptimizer.step(self, closure, loss=loss, **given)
        with torch.enable_grad():
            loss = closure() if callable(closure) else loss
        watched = self._watched.take()
        loss = watched if loss is None or (closure is not None and watched is not None) else loss
        if loss is None or not (closure is None or callable(closure)):
            return polyak.PolyakOptimizer.step(self, None if loss is None else closure, **given)
        params = [p for group in self.param_groups for p in group["params"]]
        grads = [p.grad for p in params]

        def again() -> Any:
            for p, grad in zip(params, grads, strict=True):
                p.grad = None if grad is None else grad.detach()
            return loss

        try:
            return polyak.PolyakOptimizer.step(self, again, **given)
        finally:
            for p, grad in zip(params, grads, strict=True):
                p.grad = grad


SAMSPS.__doc__ = polyak.SAMSPS.__doc__
