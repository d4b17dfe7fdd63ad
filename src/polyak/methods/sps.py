"""SPS (Loizou, Vaswani, Laradji and Lacoste-Julien, AISTATS 2021)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, final

from torch import Tensor

from .._backend.scalars import Scalar
from .._step.decision import Line
from .._step.optimizer import PolyakOptimizer
from .._step.parts import Group

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.optim.optimizer import ParamsT

    from ..constraints import Constraint


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
        lower_bound: f* or a bound below it, any finite number. Default 0. `step(..., lower_bound=b)` sets one batch's.
        momentum: μ in [0, 1) of ALI-G's standard momentum (not part of the paper). Default 0.
        constraint: a convex set such as `polyak.L2Ball(100.0)`, projected on at construction and after every step.
        float32_momentum: keep the momentum of bfloat16 and float16 parameters in float32. Default False.
        foreach: use multi-tensor kernels; None picks them on CUDA devices, and pieces that fit the cache on the CPU.
        fused: move and measure in one pass over the memory, on CUDA by Triton kernels, on the CPU by kernels that the
            machine's C compiler builds at the first use. Default None, which is False.
        sync_loss: average the loss over processes when torch.distributed is initialised, as DDP and FSDP2 average the
            gradients. Default True; with False every process steps on its own loss.
        process_group: the processes that share the loss; None for all.

    Raises:
        ValueError: an option is outside its range, or a group misspells one.
        TypeError: an argument does not exist, the constraint is none, or a parameter is sparse or not floating-point.
        RuntimeError: `fused` is True where there is no C compiler (CPU) or no Triton (CUDA).

    Example:
        >>> import torch, polyak
        >>> w = torch.nn.Parameter(torch.tensor([3.0, -1.0]))
        >>> optimizer = polyak.SPS([w], c=0.5)
        >>> for _ in range(100):
        ...     loss = (w[0] - 1).square() + 0.5 * (w[1] - 2).square() + 7
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss, lower_bound=7.0)
        >>> [round(value, 2) for value in w.tolist()]
        [1.0, 2.0]

    Differences from the authors' code: parameter groups, a per-call bound and an exact resume work; γ is 0 for a
    gradient that is exactly 0, not for every norm below 1e-8.

    Reference:
        N. Loizou, S. Vaswani, I. Laradji, S. Lacoste-Julien, Stochastic Polyak Step-size for SGD, AISTATS 2021,
        arXiv:2002.10542, equation (3).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = math.inf,
        *,
        c: float = 0.5,
        eps: float = 1e-8,
        lower_bound: float = 0.0,
        momentum: float = 0.0,
        float32_momentum: bool = False,
        constraint: Constraint | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        sync_loss: bool = True,
        process_group: ProcessGroup | None = None,
    ) -> None:
        options = {
            "lr": lr,
            "c": c,
            "eps": eps,
            "lower_bound": lower_bound,
            "momentum": momentum,
            "float32_momentum": float32_momentum,
            "foreach": foreach,
            "fused": fused,
        }
        super().__init__(params, options, constraint, sync_loss, process_group)

    takes_numbers = True

    def step_size(self, line: Line, group: Group) -> tuple[Scalar, Scalar]:
        """γ = min{ (f − f*)₊ / (c‖∇f‖² + ε), γ_b }."""
        return line.gap / (group["c"] * line.slope + group["eps"]), group["lr"]
