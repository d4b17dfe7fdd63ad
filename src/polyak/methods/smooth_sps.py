"""SPS with a cap that grows smoothly (Loizou, Vaswani, Laradji and Lacoste-Julien, AISTATS 2021, section 4)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, final

from torch import Tensor

from .._backend.scalars import Scalar, minimum
from .._step.decision import Line
from .._step.optimizer import PolyakOptimizer
from .._step.parts import Group

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.optim.optimizer import ParamsT

    from ..constraints import Constraint


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
        lower_bound: f* or a bound below it, any finite number. Default 0.
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
        >>> optimizer = polyak.SmoothSPS([w], steps_per_epoch=10)
        >>> for _ in range(100):
        ...     loss = (w[0] - 1).square() + 0.5 * (w[1] - 2).square()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss)
        >>> [round(value, 2) for value in w.tolist()]
        [1.0, 2.0]

    Differences from the authors' code: a batch of zero loss or gradient leaves γ_{t−1} as it is (there it becomes 0 and
    every later step with it); f* and γ_b are respected; a loss below f* gives no step instead of an ascent.

    Reference:
        N. Loizou, S. Vaswani, I. Laradji, S. Lacoste-Julien, Stochastic Polyak Step-size for SGD, AISTATS 2021,
        arXiv:2002.10542, section 4.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = math.inf,
        *,
        steps_per_epoch: int,
        c: float = 0.5,
        gamma: float = 2.0,
        init_step_size: float = 1.0,
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
            "steps_per_epoch": steps_per_epoch,
            "c": c,
            "gamma": gamma,
            "init_step_size": init_step_size,
            "eps": eps,
            "lower_bound": lower_bound,
            "momentum": momentum,
            "float32_momentum": float32_momentum,
            "foreach": foreach,
            "fused": fused,
        }
        super().__init__(params, options, constraint, sync_loss, process_group)

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
