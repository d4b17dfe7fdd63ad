"""DecSPS (Orvieto, Lacoste-Julien and Loizou, NeurIPS 2022)."""

from __future__ import annotations

import math
from typing import Unpack, final

from torch.optim.optimizer import ParamsT

from .._backend.scalars import Scalar, minimum
from .._step.decision import Line
from .._step.optimizer import PolyakOptimizer
from .._step.options import Cap, Common, Positive
from .._step.parts import Group


@final
class DecSPS(PolyakOptimizer):
    r"""Decreasing stochastic Polyak step size: converges without interpolation, under any lower bound.

    .. code-block:: text

        γ_k = min{ (f(x) − ℓ*)₊ / ‖∇f(x)‖², c_{k−1}γ_{k−1} } / c_k      c_k = c₀√(k + 1)
        x ← Π(x − γ_k∇f(x))                                             c_{−1}γ_{−1} = c₀γ_b

    Pass the mean loss of the mini-batch, the very value whose gradient was computed; ℓ* is any bound of it from below.

    Args:
        params: parameters or parameter groups, as for every torch optimizer.
        lr: the cap γ_b on the first step size, ≥ 0. Default 10, the authors' value.
        c0: c₀ > 0, the scale of the sequence. Default 1, the authors' value.

    Example:
        >>> import torch, polyak
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
        >>> optimizer = polyak.DecSPS([w])
        >>> for _ in range(400):
        ...     loss = (w[0] + 1).square() + 0.5 * (w[1] - 2).square()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss)
        >>> [round(value, 2) for value in w.tolist()]
        [-1.0, 2.0]

    Differences from the authors' code: nothing is added to the norm; a batch of zero loss or gradient gives no step,
    and leaves γ_{k−1} as it is, instead of ending the run.

    Reference:
        A. Orvieto, S. Lacoste-Julien, N. Loizou, Dynamics of SGD with Stochastic Polyak Stepsizes: Truly Adaptive
        Variants and Convergence to Exact Solution, NeurIPS 2022, arXiv:2205.04583, equation (6).
    """

    def __init__(self, params: ParamsT, lr: Cap = 10.0, *, c0: Positive = 1.0, **common: Unpack[Common]) -> None:
        super().__init__(params, lr, c0=c0, **common)

    takes_numbers = True

    def memory(self, group: Group) -> dict[str, float]:
        """k, and c_{k−1}γ_{k−1}."""
        return {"steps": 0, "previous": math.inf}

    def step_size(self, line: Line, group: Group) -> tuple[Scalar, Scalar]:
        """γ_k = min{ (f − ℓ*)₊ / ‖∇f‖², c_{k−1}γ_{k−1} } / c_k."""
        c_k = group["c0"] * (group["steps"] + 1) ** 0.5
        ratio, cap = line.gap / line.slope, minimum(group["previous"], group["c0"] * group["lr"])
        group["steps"], group["previous"] = group["steps"] + 1, minimum(ratio, cap)
        return ratio / c_k, cap / c_k
