"""ScheduleFree+ (Defazio, 2026)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Unpack, final

from torch.optim.optimizer import ParamsT

from .._backend.general import average_all_
from .._backend.moves import MOMENTUM, Form
from .._backend.scalars import Scalar, bias_correction, maximum, minimum, number, where
from .._backend.vector import AVERAGE, SQUARES, add_up, sums_abs
from .._step.decision import Line
from .._step.lines import adam, along_momentum
from .._step.optimizer import PolyakOptimizer
from .._step.options import Betas, CommonAndBuffers, Count, Factor, Finite, Fraction, NonNegative
from .._step.parts import Group, Part
from .._step.state import LAST_MOMENTUM, check_training, evaluate, train


@final
class ScheduleFreePlus(PolyakOptimizer):
    r"""Schedule-free AdamC whose learning rate is multiplied by a Polyak step.

    .. code-block:: text

        y = βx + (1 − β)z, where gradients are taken
        m, v: Adam's bias-corrected averages of ∇f(y) and its squares, by β₁ and β₂      D = ε + √v
        n ← β_p n + (1 − β_p)√(π/2)‖∇f(y)‖₁, divided by 1 − β_pᵏ
        γ = lr (f(y) − f* + β⟨∇f(y), z − x⟩)₊ / n
        z ← Π(z − γD⁻¹m − γ²λy),  x ← (1 − c)x + cz      c = w / Σw,  w = kʳ (max γ)ᵖ in step k

    Pass the mean loss of the mini-batch, the very value whose gradient was computed, without weight decay in it. The
    parameters hold y; call `optimizer.eval()` before evaluating or exporting the model, and `optimizer.train()` before
    training goes on, as for `ScheduleFreeSPS`.

    Args:
        params: parameters or parameter groups, as for every torch optimizer.
        lr: a factor ≥ 0 on the Polyak step, not a cap; finite. Default 1, the author's value.
        betas: β₁ and β₂ in [0, 1). Default (0.9, 0.95), the author's values.
        eps: ε ≥ 0, added to the root. Default 1e-8, as in Adam.
        weight_decay: λ ≥ 0 of AdamC, which γ² multiplies: values of 20 to 50 are usual. Default 0.
        momentum: β in [0, 1) at the start, the share of x in y. Default 0.9, the author's value.
        final_momentum: β in [0, 1) after `anneal_steps`. Default 0.965, the author's value.
        anneal_steps: the steps over which 1 − β goes geometrically to its last value. Default 0, the author's
            value: β is constant.
        norm_beta: β_p in [0, 1), how slowly the norm's average forgets. Default 0, the author's value: no average.
        r: the power of k in the weight of z, a finite number. Default 0, the author's value.
        weight_lr_power: the power p ≥ 0 of the largest step so far in it. Default 2, the author's value.
        averaging_warmup: the steps in which x is z, before averaging begins. Default 0, the author's value.

    Example:
        >>> import torch, polyak
        >>> model = torch.nn.Linear(4, 1)
        >>> x = torch.randn(64, 4)
        >>> y = x.sum(1, keepdim=True)
        >>> optimizer = polyak.ScheduleFreePlus(model.parameters())
        >>> for _ in range(300):
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.mse_loss(model(x), y)
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss)
        >>> optimizer.eval()
        >>> bool(torch.nn.functional.mse_loss(model(x), y) < 0.01)
        True

    Differences from the authors' code: a lower bound f* is subtracted; `lr` may be 0, where theirs is `eps` at least;
    the average of the norm is corrected for its start without being overwritten; a gradient of zero moves nothing; the
    loss is averaged over processes; x is not stored, since y and a buffer give it; the constraint is ours, and holds
    for z.

    Reference:
        A. Defazio, ScheduleFree+: Scaling Learning-Rate-Free & Schedule-Free Learning to Large Language Models, 2026,
        arXiv:2605.19095.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Factor = 1.0,
        *,
        betas: Betas = (0.9, 0.95),
        eps: NonNegative = 1e-8,
        weight_decay: NonNegative = 0.0,
        momentum: Fraction = 0.9,
        final_momentum: Fraction = 0.965,
        anneal_steps: Count = 0,
        norm_beta: Fraction = 0.0,
        r: Finite = 0.0,
        weight_lr_power: NonNegative = 2.0,
        averaging_warmup: Count = 0,
        **common: Unpack[CommonAndBuffers],
    ) -> None:
        averaging: dict[str, Any] = {"r": r, "weight_lr_power": weight_lr_power, "averaging_warmup": averaging_warmup}
        own: dict[str, Any] = {"final_momentum": final_momentum, "anneal_steps": anneal_steps, "norm_beta": norm_beta}
        own |= {"betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, lr, momentum=momentum, **own, **averaging, **common)

    takes_numbers = True
    slope_is_squared = False
    shared = ("betas", "norm_beta")
    momentum_form = Form.SCHEDULE_FREE
    train, eval = train, evaluate

    def buffers(self, group: Group) -> Sequence[str]:
        """Return the names of the buffer that gives x and z, of m and of v."""
        return (MOMENTUM, AVERAGE, SQUARES)

    def averages(self) -> dict[str, float]:
        """k and n."""
        return {"steps": 0, "norm_average": 0.0}

    def memory(self, group: Group) -> dict[str, float]:
        """The largest γ, Σw divided by its power p, and c."""
        return {"largest_step": group["eps"], "total_weight": 0.0, "share": 1.0}

    @staticmethod
    def extrapolation(group: Group) -> Scalar:
        """Return 1 − c."""
        ahead: Scalar = 1.0 - group["share"]
        return ahead

    @staticmethod
    def annealed_momentum(group: Group) -> Any:
        """Return the β of the last step."""
        return annealed(group, group["steps"].to(group["step_size"].dtype) - 1.0)

    def linearize(self, line: Line, parts: list[Part], averages: dict[str, Any]) -> Line:
        """Return the line along D⁻¹m, with the loss as it would be at z, and n as its slope."""
        k, like = averages["steps"], parts[0].group["step_size"]
        (beta1, beta2), beta_p = parts[0].group["betas"], parts[0].group["norm_beta"]
        averages["steps"] = k + 1
        for part in parts:
            group = part.group
            check_training(group)
            last, share = (group[LAST_MOMENTUM], group["share"])
            last, share = (number(last), number(share)) if part.numbers else (last * 1.0, share)  # see `schedule_free`
            part.beta, part.next_beta, part.mu = last, annealed(group, k), 1.0 - share
            part.apart = part.mu
            part.preconditioner = adam(group, bias_correction(beta2, k + 1), k + 1)
        ahead = along_momentum(parts, [part.next_beta * part.mu for part in parts])
        average_all_(parts, beta1, beta2)
        for part in parts:
            part.u, part.divisor = part.buffers[AVERAGE], bias_correction(beta1, k + 1)
            part.squared_decay = part.group["weight_decay"]
        norm = math.sqrt(math.pi / 2) * add_up(sums_abs(parts, [part.g for part in parts]), like)
        norm = averages["norm_average"] = beta_p * averages["norm_average"] + (1.0 - beta_p) * norm
        return line._replace(value=line.value + ahead, slope=norm / bias_correction(beta_p, k + 1))

    def step_size(self, line: Line, group: Group) -> tuple[Scalar, Scalar]:
        """γ = lr (f − f* + β⟨∇f, z − x⟩)₊ / n."""
        positive = line.slope > 0
        gamma = where(positive, group["lr"] * (line.gap / where(positive, line.slope, 1.0)), 0.0)
        weigh(group, gamma)
        return gamma, where(group["lr"] > 0, math.inf, 0.0)  # no cap, but 0 is meant


def annealed(group: Group, k: Scalar) -> Any:
    """Return the β of step k, counted from 0."""
    first, last, steps = group["momentum"], group["final_momentum"], group["anneal_steps"]
    progress = minimum(k / steps, 1.0) if steps else 0.0
    return 1.0 - (1.0 - first) ** (1.0 - progress) * (1.0 - last) ** progress if steps else first


def weigh(group: Group, gamma: Scalar) -> None:
    """Write the share c = w / Σw of this step, where w = kʳ(max γ)ᵖ; Σw is kept divided by the newest (max γ)ᵖ."""
    k = group["steps"].to(group["step_size"].dtype)
    largest = maximum(group["largest_step"], gamma)
    fallen = where(largest > 0, group["largest_step"] / where(largest > 0, largest, 1.0), 1.0)
    weight = where(k > group["averaging_warmup"], k ** group["r"], 0.0)
    total = group["total_weight"] * fallen ** group["weight_lr_power"] + weight
    group["share"] = where(total > 0, weight / where(total > 0, total, 1.0), 1.0)
    group["largest_step"], group["total_weight"] = largest, total
