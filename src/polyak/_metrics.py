"""What the last step did, as plain numbers for a log."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ._backend.scalars import as_tensor
from ._step.optimizer import PolyakOptimizer
from .constraints import L2Ball


def metrics(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return what the last step did as plain numbers, for any logger.

    All of them are read from the device at once, which waits for it once.

    Args:
        optimizer: a Polyak optimizer, or the wrapper of one whose attribute `optimizer` leads to it (Accelerate's,
            Lightning's).

    Returns:
        A flat dict: `step_size`, the γ that was taken; `cap`, the largest one allowed, `inf` for none; `capped`, 1 if
        the cap was below the ratio; `ratio`, the uncapped step size; `gradient_norm`, the norm of the gradient over all
        groups (for methods that average, that of their direction, in the method's norm: Adam's, ‖·‖₁ for `SignSPS`,
        √(π/2)‖·‖₁ for `ScheduleFreePlus`, and for `MuonMoMo` the slope ⟨m, u⟩, the nuclear norm of matrices);
        `skipped`, 1 if nothing moved as something was not finite; `skipped_steps`, how many so far; and `weight_norm`
        after the step (that of z for a schedule-free method), if an `L2Ball` measured it. With several parameter
        groups, the names of what differs between them end in `/0`, `/1` …

    Raises:
        TypeError: there is no Polyak optimizer in `optimizer`.
        RuntimeError: no step was made yet, or a group was not in the last one.

    Example:
        >>> import torch, polyak
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = polyak.ALIG([w], lr=0.1, constraint=polyak.L2Ball(10.0))
        >>> loss = w.square().sum()
        >>> loss.backward()
        >>> _ = optimizer.step(loss=loss)
        >>> {name: round(value, 4) for name, value in polyak.metrics(optimizer).items()}
        {'step_size': 0.1, 'cap': 0.1, 'capped': 1.0, 'ratio': 0.25, 'skipped': 0.0, 'skipped_steps': 0.0,
        'gradient_norm': 10.0, 'weight_norm': 4.0}
    """
    inner = polyak_in(optimizer)
    if inner is None:
        raise TypeError(
            f"polyak.metrics needs a Polyak optimizer, but a {type(optimizer).__name__} holds none: "
            "give what was built by polyak.ALIG(...) or another method."
        )
    return as_floats(measurements(inner))


def measurements(optimizer: PolyakOptimizer) -> dict[str, Tensor]:
    """Return the same as 0-dim tensors, without a synchronisation."""
    named, several = dict[str, Tensor](), len(optimizer.param_groups) > 1
    for i in range(len(optimizer.param_groups)):
        last = optimizer.last_step(i)
        values = {
            "step_size": last.step_size,
            "cap": last.cap,
            "capped": last.capped,
            "ratio": last.ratio,
            "skipped": last.skipped,
            "skipped_steps": last.skipped_steps,
        }
        named |= {f"{name}/{i}" if several else name: value for name, value in values.items()}
    if optimizer.param_groups:
        named["gradient_norm"] = gradient_norm(optimizer)
    if optimizer._squares and isinstance(ball := optimizer._constraint, L2Ball) and ball.radius is not None:
        norm = as_tensor(optimizer._squares[0], optimizer.param_groups[0]["step_size"]).sqrt()
        named["weight_norm"] = norm.clamp(max=ball.radius)
    return named


def gradient_norm(optimizer: PolyakOptimizer) -> Tensor:
    """Return the norm of the gradient in the last step, in the method's norm, as a 0-dim tensor."""
    slope = optimizer.last_step().grad_sq_norm
    return slope.sqrt() if optimizer.slope_is_squared else slope


def has_stepped(optimizer: PolyakOptimizer) -> bool:
    """Return whether there are numbers: every group was in the last step."""
    return len(optimizer._last) > len(optimizer.param_groups)


def as_floats(values: dict[str, Tensor]) -> dict[str, float]:
    """Read 0-dim tensors from the device, all at once."""
    if not values:
        return {}
    first = next(iter(values.values()))
    types = (value.dtype for value in values.values() if value.dtype.is_floating_point)
    dtype = functools.reduce(torch.promote_types, types, torch.float32)
    numbers = torch.stack([value.to(first.device, dtype, non_blocking=True) for value in values.values()]).tolist()
    return dict(zip(values, numbers, strict=True))


def polyak_in(optimizer: Any) -> PolyakOptimizer | None:
    """Return the Polyak optimizer inside any number of wrappers, or None if another kind is in there."""
    while not isinstance(optimizer, PolyakOptimizer):
        optimizer = getattr(optimizer, "optimizer", None)
        if optimizer is None:
            return None
    return optimizer
