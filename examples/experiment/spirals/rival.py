"""A rival of one's own: steps along the sign of an average of the gradients."""

from collections.abc import Iterable

import torch
from torch import Tensor


class SignMomentum(torch.optim.Optimizer):
    """Signs of an exponential average."""

    def __init__(self, params: Iterable[Tensor], lr: float = 0.001, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Take a step."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                average = state.setdefault("average", torch.zeros_like(p))
                average.lerp_(p.grad, 1 - group["beta"])
                p.sub_(average.sign(), alpha=group["lr"])
