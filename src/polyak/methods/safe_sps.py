"""SPS with a safeguard, and its averaged iterates (Oikonomou and Loizou, ICML 2026)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Unpack, final

from torch import Tensor
from torch.optim.optimizer import ParamsT

from .._backend.moves import MOMENTUM, Form
from .._backend.scalars import Scalar, maximum
from .._step.decision import Line
from .._step.lines import iterate_average, weight_after
from .._step.optimizer import PolyakOptimizer
from .._step.options import Cap, CommonAndMomentum, NonNegative
from .._step.parts import Group, Part
from .._step.state import LAST_MOMENTUM


@final
class SafeSPS(PolyakOptimizer):
    r"""Stochastic Polyak step size that does not explode for small gradients (SPS_safe, IMA-SPS_safe).

    .. code-block:: text

        γ = min{ (f(x) − f* + ⟨∇f(x), z − x⟩)₊ / max{ ‖∇f(x)‖², M }, γ_b }
        z ← z − γ∇f(x),  x ← Π((λx + z) / (1 + λ))      λ = β / (1 − β);  without momentum, z = x

    Pass the mean loss of the mini-batch, the very value whose gradient was computed, without weight decay in it.

    Args:
        params: parameters or parameter groups, as for every torch optimizer.
        lr: a cap γ_b on the step size, ≥ 0. Default `math.inf`, none, as in the paper.
        floor: M ≥ 0, below which the squared norm does not count: a step is at most (f − f*) / M. Default 1, the
            authors' value; 0 for none.
        momentum: β = λ/(1 + λ) in [0, 1), how much the average of the iterates forgets. Default 0; the authors average
            with λ = 1, which is 0.5.
        weight_decay: λ_wd ≥ 0 of x ← (1 − λ_wd γ)x. Default 0.

    Example:
        >>> import torch, polyak
        >>> w = torch.nn.Parameter(torch.tensor([3.0, -5.0]))
        >>> optimizer = polyak.SafeSPS([w], floor=0.1)
        >>> for _ in range(200):
        ...     loss = (w[0] - 1).square() + 0.5 * (w[1] + 2).square()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss)
        >>> [round(value, 1) for value in w.tolist()]
        [1.0, -2.0]

    Differences from the authors' code: the step is never negative; the averaged form decays weights, too, and does not
    fail where the bracket is negative; `floor=0` is no floor, where their averaged form takes the first ‖∇f(x)‖².

    Reference:
        D. Oikonomou, N. Loizou, Safeguarded Stochastic Polyak Step Sizes for Non-smooth Optimization: Robust
        Performance Without Small (Sub)Gradients, ICML 2026, arXiv:2512.02342, SPS_safe and IMA-SPS_safe.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Cap = math.inf,
        *,
        floor: NonNegative = 1.0,
        weight_decay: NonNegative = 0.0,
        **common: Unpack[CommonAndMomentum],
    ) -> None:
        super().__init__(params, lr, floor=floor, weight_decay=weight_decay, **common)

    takes_numbers = True
    momentum_form = Form.HEAVY_BALL
    takes_norm = False
    extrapolation = staticmethod(weight_after)

    def buffers(self, group: Group) -> Sequence[str]:
        """Return the name of the last move, if it averages or did so in the last step, and z is not x."""
        last = group.get(LAST_MOMENTUM, 0.0)
        return (MOMENTUM,) if group["momentum"] or isinstance(last, Tensor) or last else ()

    def linearize(self, line: Line, parts: list[Part], averages: dict[str, Any]) -> Line:
        """Return the line along the gradient, with the loss as it would be at z."""
        for part in parts:
            part.coupled_decay = part.group["weight_decay"]
        return iterate_average(line, parts)

    def step_size(self, line: Line, group: Group) -> tuple[Scalar, Scalar]:
        """γ = min{ (f − f* + ⟨∇f, z − x⟩)₊ / max{ ‖∇f‖², M }, γ_b }."""
        return line.gap / maximum(line.slope, group["floor"]), group["lr"]
