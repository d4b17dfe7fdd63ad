"""SPS with a cap that grows smoothly (Loizou, Vaswani, Laradji and Lacoste-Julien, AISTATS 2021, section 4)."""

from __future__ import annotations

import math
from typing import Unpack, final

from torch.optim.optimizer import ParamsT

from .._backend.scalars import Scalar, minimum
from .._step.decision import Line
from .._step.optimizer import PolyakOptimizer
from .._step.options import Cap, CommonAndMomentum, Growth, NonNegative, Positive, PositiveOrInf, Steps
from .._step.parts import Group


@final
class SmoothSPS(PolyakOptimizer):
    r"""Stochastic Polyak step size that grows at most by a constant factor per epoch.

    .. code-block:: text

        γ_t = min{ (f(x) − f*)₊ / (c‖∇f(x)‖² + ε), τ^(b/n) γ_{t−1}, γ_b }      ‖·‖ over all parameters
        x ← Π(x − γ_t ∇f(x))

    Pass the mean loss of the mini-batch, the very value whose gradient was computed, without weight decay in it.

    Args:
        params: parameters or parameter groups, as for every torch optimizer.
        lr: a constant cap γ_b on top of the growing one, ≥ 0. Default `math.inf`, none, as in the authors' code.
        steps_per_epoch: n/b, the number of steps in which the cap may grow by `gamma`, ≥ 1: `len(data_loader)`.
        c: scale of the squared norm, > 0. Default 0.5 as in the authors' code; they use 0.2 for deep networks.
        gamma: τ ≥ 1, the growth of the cap per epoch. Default 2, the authors' value.
        init_step_size: γ_{−1} > 0, the step size before the first. Default 1, the authors' value.
        eps: ε ≥ 0, added to the scaled squared norm. Default 1e-8, as in the authors' code.

    Example:
        >>> import torch, polyak
        >>> w = torch.nn.Parameter(torch.tensor([0.0, -1.0]))
        >>> optimizer = polyak.SmoothSPS([w], steps_per_epoch=10)
        >>> for _ in range(100):
        ...     loss = (w[0] + 2).square() + 0.5 * (w[1] - 2).square()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss)
        >>> [round(value, 2) for value in w.tolist()]
        [-2.0, 2.0]

    Differences from the authors' code: a batch of zero loss or gradient leaves γ_{t−1} as it is (there it becomes 0 and
    every later step with it); f* and γ_b are respected; a loss below f* gives no step instead of an ascent.

    Reference:
        N. Loizou, S. Vaswani, I. Laradji, S. Lacoste-Julien, Stochastic Polyak Step-size for SGD: An Adaptive
        Learning Rate for Fast Convergence, AISTATS 2021, arXiv:2002.10542, section 4.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Cap = math.inf,
        *,
        steps_per_epoch: Steps,
        c: Positive = 0.5,
        gamma: Growth = 2.0,
        init_step_size: PositiveOrInf = 1.0,
        eps: NonNegative = 1e-8,
        **common: Unpack[CommonAndMomentum],
    ) -> None:
        own = {"steps_per_epoch": steps_per_epoch, "c": c, "gamma": gamma, "init_step_size": init_step_size}
        super().__init__(params, lr, eps=eps, **own, **common)

    takes_numbers = True

    def memory(self, group: Group) -> dict[str, float]:
        """γ_{t−1}, the last step size that was not 0."""
        return {"previous_step_size": group["init_step_size"]}

    def step_size(self, line: Line, group: Group) -> tuple[Scalar, Scalar]:
        """γ_t = min{ (f − f*)₊ / (c‖∇f‖² + ε), τ^(b/n) γ_{t−1}, γ_b }."""
        growth = group["gamma"] ** (1 / group["steps_per_epoch"])
        cap = minimum(growth * group["previous_step_size"], group["lr"])
        ratio = line.gap / (group["c"] * line.slope + group["eps"])
        group["previous_step_size"] = minimum(ratio, cap)
        return ratio, cap
