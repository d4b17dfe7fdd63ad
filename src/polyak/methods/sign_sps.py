"""SignSPS, Polyak steps in the ℓ∞ norm (Crawshaw et al., ICML 2026)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack, final

from torch.optim.optimizer import ParamsT

from .._backend.scalars import Scalar
from .._backend.vector import AVERAGE, add_up, sums_abs
from .._step.decision import Line
from .._step.lines import after_first, mean_model
from .._step.optimizer import PolyakOptimizer
from .._step.options import Cap, CommonAndBuffers, Fraction, NonNegative
from .._step.parts import Group, Part


@final
class SignSPS(PolyakOptimizer):
    r"""Sign descent with momentum and a Polyak step: the ℓ∞ norm's steepest descent.

    .. code-block:: text

        m ← βm + (1 − β)∇f(x)      h ← βh + (1 − β)(f(x) − ⟨∇f(x), x⟩), both from the first batch
        γ = min{ (h + ⟨m, x⟩ − f*)₊ / ‖m‖₁, η }
        x ← Π((1 − ηλ)x − γ sign(m))

    Pass the mean loss of the mini-batch, the very value whose gradient was computed, without weight decay in it. While
    the cap is the smaller one, this is signSGD with momentum. Every coordinate moves by γ in each step.

    Args:
        params: parameters or parameter groups, as for every torch optimizer.
        lr: the cap η on the step size, ≥ 0. Default 0.01, of the values from 1e-5 to 0.1 that the authors try.
        momentum: β in [0, 1), how slowly the averages forget. Default 0.95, the authors' value.
        weight_decay: λ ≥ 0, decoupled as in AdamW. Default 0.

    Example:
        >>> import torch, polyak
        >>> w = torch.nn.Parameter(torch.ones(3))
        >>> target = torch.tensor([0.5, -0.5, 2.0])
        >>> optimizer = polyak.SignSPS([w], lr=0.05, momentum=0.0)
        >>> for _ in range(300):
        ...     loss = (w - target).square().sum()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss)
        >>> bool(loss < 0.5)  # from 3.5
        True

    Differences from the authors' code: the step is never negative; the averages are part of the state, and a batch
    whose loss or gradient is not finite leaves them as they were; a complex number counts as two real ones; the
    constraint is ours.

    Reference:
        M. Crawshaw, C. Modi, M. Liu, R. M. Gower, An Exploration of Non-Euclidean Gradient Descent: Muon and its Many
        Variants, ICML 2026, arXiv:2510.09827, with the ℓ∞ norm for all parameters.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Cap = 0.01,
        *,
        momentum: Fraction = 0.95,
        weight_decay: NonNegative = 0.0,
        **common: Unpack[CommonAndBuffers],
    ) -> None:
        super().__init__(params, lr, momentum=momentum, weight_decay=weight_decay, **common)

    takes_numbers = True
    shared = ("momentum",)
    takes_norm = False
    slope_is_squared = False

    def buffers(self, group: Group) -> Sequence[str]:
        """Return the name of m."""
        return (AVERAGE,)

    def averages(self) -> dict[str, float]:
        """k, h and the average of the bounds of calls."""
        return {"steps": 0, "model_average": 0.0, "bound_average": 0.0}

    def linearize(self, line: Line, parts: list[Part], averages: dict[str, Any]) -> Line:
        """Return the averaged model along sign(m), whose slope is ‖m‖₁."""
        k = averages["steps"] = averages["steps"] + 1
        line = mean_model(line, parts, averages, after_first(parts[0].group["momentum"], k))
        for part in parts:
            part.signed = True
        return line._replace(slope=add_up(sums_abs(parts, [part.u for part in parts]), parts[0].group["step_size"]))

    def step_size(self, line: Line, group: Group) -> tuple[Scalar, Scalar]:
        """γ = min{ (h + ⟨m, x⟩ − f*)₊ / ‖m‖₁, η }."""
        return line.gap / line.slope, group["lr"]
