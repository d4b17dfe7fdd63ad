"""SPS (Loizou, Vaswani, Laradji and Lacoste-Julien, AISTATS 2021)."""

from __future__ import annotations

import math
from typing import Unpack, final

from torch.optim.optimizer import ParamsT

from .._backend.scalars import Scalar
from .._step.decision import Line
from .._step.optimizer import PolyakOptimizer
from .._step.options import Cap, CommonAndMomentum, NonNegative, Positive
from .._step.parts import Group


@final
class SPS(PolyakOptimizer):
    r"""Stochastic Polyak step size with a constant cap (SPS_max).

    .. code-block:: text

        γ = min{ (f(x) − f*)₊ / (c‖∇f(x)‖² + ε), γ_b }      ‖·‖ over all parameters of all groups
        x ← Π(x − γ∇f(x))

    Pass the mean loss of the mini-batch, the very value whose gradient was computed, without weight decay in it; f* is
    the smallest value that this batch's loss can take, 0 for a model that interpolates.

    Args:
        params: parameters or parameter groups, as for every torch optimizer.
        lr: the cap γ_b on the step size, ≥ 0. Default `math.inf`, no cap (a schedule cannot change that).
        c: scale of the squared norm, > 0. Default 0.5, the authors' value for strongly convex problems and the optimal
            one in their theory; they use 0.2 for deep networks and 1 for convex problems.
        eps: ε ≥ 0, added to the scaled squared norm. Default 1e-8, as in the authors' code.

    Example:
        >>> import torch, polyak
        >>> w = torch.nn.Parameter(torch.tensor([5.0, -1.0]))
        >>> optimizer = polyak.SPS([w], c=0.5)
        >>> for _ in range(100):
        ...     loss = (w[0] - 3).square() + 0.5 * (w[1] - 2).square() + 7
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss, lower_bound=7.0)
        >>> [round(value, 2) for value in w.tolist()]
        [3.0, 2.0]

    Differences from the authors' code: parameter groups, a per-call bound and an exact resume work; γ is 0 for a
    gradient that is exactly 0, not for every norm below 1e-8.

    Reference:
        N. Loizou, S. Vaswani, I. Laradji, S. Lacoste-Julien, Stochastic Polyak Step-size for SGD: An Adaptive
        Learning Rate for Fast Convergence, AISTATS 2021, arXiv:2002.10542, equation (3).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Cap = math.inf,
        *,
        c: Positive = 0.5,
        eps: NonNegative = 1e-8,
        **common: Unpack[CommonAndMomentum],
    ) -> None:
        super().__init__(params, lr, c=c, eps=eps, **common)

    takes_numbers = True

    def step_size(self, line: Line, group: Group) -> tuple[Scalar, Scalar]:
        """γ = min{ (f − f*)₊ / (c‖∇f‖² + ε), γ_b }."""
        return line.gap / (group["c"] * line.slope + group["eps"]), group["lr"]
