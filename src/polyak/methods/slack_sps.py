"""SlackSPS, SPSdam and SPSL1 (Gower, Blondel, Gazagnadou and Pedregosa, 2022)."""

from __future__ import annotations

import math
from typing import Any, Unpack, final

from torch.optim.optimizer import ParamsT

from .._backend.scalars import Scalar, minimum, positive_part, where
from .._step.decision import Line
from .._step.optimizer import PolyakOptimizer
from .._step.options import Cap, Common, Fraction, PositiveOrNone
from .._step.parts import Group, Part


@final
class SlackSPS(PolyakOptimizer):
    r"""Polyak steps towards a target that is learned: one slack variable s for the loss (SPSdam, SPSL1).

    .. code-block:: text

        ℓ = (f(x) − f*)₊
        SPSdam:  γ = (ℓ − (1 − λ)s)₊ / (‖∇f(x)‖² + 1 − λ)    s ← (1 − λ)(s + γ)
        SPSL1:   γ₁ = (ℓ − s + δλ)₊ / (‖∇f(x)‖² + δ)    s ← (s − δλ + δγ₁)₊    γ = min{ γ₁, ℓ / ‖∇f(x)‖² }
        x ← Π(x − min{ γ, η }∇f(x))

    Pass the mean loss of the mini-batch, the very value whose gradient was computed. The slack follows every finite
    batch whose gradient is not 0, with the γ before the cap.

    Args:
        params: parameters or parameter groups, as for every torch optimizer.
        lr: a cap η on the step size, ≥ 0. Default `math.inf`, none, as in the paper.
        slack: λ in [0, 1), how much a slack costs; close to 1, SPSdam is SPS with c = 1. Default 0.5, our choice: where
            the gradient vanishes, the γ of SPSdam tends to ℓλ / (1 − λ).
        delta: δ > 0 of SPSL1; None for SPSdam. Default None.

    Example:
        >>> import torch, polyak
        >>> w = torch.nn.Parameter(torch.tensor([4.0]))
        >>> optimizer = polyak.SlackSPS([w], lr=0.5)
        >>> for _ in range(20):
        ...     optimizer.zero_grad()
        ...     loss = (w[0] - 1).square() + 0.5  # its smallest value, 0.5, is not known to the optimizer
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss)
        >>> bool(abs(w[0] - 1) < 0.1)
        True

    Differences from the authors' code: the positive part of ℓ; a cap that does not enter the slack; the slack is part
    of the state, and a batch that is not finite leaves it as it was; all groups share it, with the options of the first
    group, above its bound or that of the call.

    Reference:
        R. M. Gower, M. Blondel, N. Gazagnadou, F. Pedregosa, Cutting Some Slack for SGD with Adaptive Polyak Stepsizes,
        2022, arXiv:2202.12328, Lemmas 3.2 (SPSL1) and 3.4 (SPSdam).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Cap = math.inf,
        *,
        slack: Fraction = 0.5,
        delta: PositiveOrNone = None,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(params, lr, slack=slack, delta=delta, **common)

    shared = ("slack", "delta")

    def averages(self) -> dict[str, float]:
        """s and the present γ, before the cap."""
        return {"slack_value": 0.0, "slack_step": 0.0}

    def linearize(self, line: Line, parts: list[Part], averages: dict[str, Any]) -> Line:
        """Update the slack and γ; the line stays that along the gradient."""
        group, s, squares = parts[0].group, averages["slack_value"], line.slope
        loss, free, delta = line.above(parts[0]).gap, 1.0 - group["slack"], group["delta"]
        moves = squares > 0
        if delta is None:
            gamma = positive_part(loss - free * s) / (squares + free)
            slack = free * (s + gamma)
        else:
            shift = delta * group["slack"]
            gamma = positive_part(loss - s + shift) / (squares + delta)
            slack = positive_part(s - shift + delta * gamma)
            gamma = minimum(gamma, loss / where(moves, squares, 1.0))
        averages["slack_value"], averages["slack_step"] = where(moves, slack, s), where(moves, gamma, 0.0)
        return line

    def step_size(self, line: Line, group: Group) -> tuple[Scalar, Scalar]:
        """γ, found with the slack, and its cap."""
        return group["slack_step"], group["lr"]
