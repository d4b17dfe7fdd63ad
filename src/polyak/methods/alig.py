"""ALI-G (Berrada, Zisserman and Kumar, ICML 2020)."""

from __future__ import annotations

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
class ALIG(PolyakOptimizer):
    r"""Adaptive Learning-rates for Interpolation with Gradients: one constant cap to tune, no schedule.

    .. code-block:: text

        γ = min{ ℓ(x) / (‖∇ℓ(x)‖² + δ), η }          ‖·‖ over all parameters of all groups
        x ← Π_Ω(x − γ∇ℓ(x))                          without momentum
        v ← μv − γ∇ℓ(x),  x ← Π_Ω(x − γ∇ℓ(x) + μv)   standard momentum
        v ← μv − ∇ℓ(x),   x ← Π_Ω(x − γ∇ℓ(x) + γμv)  adjusted momentum

    Pass the mean loss of the mini-batch, the very value whose gradient was computed, without weight decay in it: the
    method assumes that it can reach `lower_bound` (0 for cross-entropy without label smoothing).

    Args:
        params: parameters or parameter groups, as for every torch optimizer.
        lr: the cap η on the step size, ≥ 0; `math.inf` for none (a schedule cannot change that). Default 0.1, the
            value of the authors' CIFAR experiments. With momentum μ one gradient moves x by γ/(1 − μ) in all.
        momentum: μ in [0, 1). Default 0; the authors use 0.9.
        adjusted_momentum: keep γ outside the buffer, as torch.optim.SGD does. Default False, the authors' choice.
        eps: δ ≥ 0, added to the squared norm. Default 1e-5, the authors' value.
        lower_bound: a bound on the loss from below, any finite number. Default 0, as in the paper.
        constraint: the feasible set Ω, such as `polyak.L2Ball(100.0)`; the parameters are projected at construction
            and after every step. Default None. A group's own `constraint` holds for that group alone.
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
        >>> optimizer = polyak.ALIG([w], lr=1.0, eps=0.0)
        >>> for _ in range(100):
        ...     loss = (w[0] - 1).square() + 0.5 * (w[1] - 2).square()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss)
        >>> [round(value, 3) for value in w.tolist()]
        [1.0, 2.0]

    Differences from the authors' code: the loss below its bound gives no step instead of an ascent; a loss or gradient
    that is not finite skips the step; the cap is called `lr`, so that schedulers find it; the host never waits for the
    device.

    Reference:
        L. Berrada, A. Zisserman, M. P. Kumar, Training Neural Networks for and by Interpolation, ICML 2020,
        arXiv:1906.05661, Algorithm 1; the update as one line: Comment on Stochastic Polyak Step-Size, 2021,
        arXiv:2105.10011, equation (4).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        *,
        momentum: float = 0.0,
        adjusted_momentum: bool = False,
        eps: float = 1e-5,
        lower_bound: float = 0.0,
        float32_momentum: bool = False,
        constraint: Constraint | None = None,
        foreach: bool | None = None,
        fused: bool | None = None,
        sync_loss: bool = True,
        process_group: ProcessGroup | None = None,
    ) -> None:
        options = {
            "lr": lr,
            "momentum": momentum,
            "float32_momentum": float32_momentum,
            "adjusted_momentum": adjusted_momentum,
            "eps": eps,
            "lower_bound": lower_bound,
            "foreach": foreach,
            "fused": fused,
        }
        super().__init__(params, options, constraint, sync_loss, process_group)

    takes_numbers = True

    def step_size(self, line: Line, group: Group) -> tuple[Scalar, Scalar]:
        """γ = min{ ℓ / (‖∇ℓ‖² + δ), η }."""
        return line.gap / (line.slope + group["eps"]), group["lr"]
