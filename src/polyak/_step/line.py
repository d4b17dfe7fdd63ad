"""What a step measures and what it leaves to read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from .._backend.chunks import Vector, reads_nothing
from .._backend.distributed import aligned, send
from .._backend.packed import COMMON, KIND, pack
from .._backend.scalars import Scalar, as_tensor, away_from_zero, number, positive_part
from .._backend.vector import real, scalar_dtype
from .options import check_dense
from .state import METHOD

Group = dict[str, Any]
ZERO = 0.0  # the usual bound, which needs no subtraction


class Line(NamedTuple):
    """The loss along a direction u: f(x − γu) ≈ value − γ·slope, known to stay above lower_bound."""

    value: Any  # 0-dim tensors, or plain numbers where they may be read
    slope: Any
    lower_bound: Scalar = ZERO

    @property
    def gap(self) -> Any:
        """(value − lower_bound)₊, how far the loss can still fall."""
        return positive_part(self.value if self.lower_bound is ZERO else self.value - self.lower_bound)

    def of(self, group: Group, lower_bound: Tensor | None) -> Line:
        """Return the line as a group sees it: above the call's bound or its own, in numbers where it may read them."""
        scalar = group["step_size"]
        bound = (group["lower_bound"] or ZERO) if lower_bound is None else lower_bound
        if not reads_nothing(scalar.device):
            return Line(number(self.value), number(self.slope), number(bound))
        return Line(self.value, self.slope, bound).tensors(scalar)

    def tensors(self, like: Tensor) -> Line:
        """Return the line in 0-dim tensors of a type and on a device; an option stays a number."""
        bound = send(self.lower_bound, like) if isinstance(self.lower_bound, Tensor) else self.lower_bound
        return Line(send(as_tensor(self.value, like), like), send(as_tensor(self.slope, like), like), bound)


class Block(NamedTuple):
    """The parameters of one group that have a gradient, and their local pieces as vectors of real tensors."""

    group: Group
    params: list[Tensor]
    x: Vector
    g: Vector
    v: Vector

    @classmethod
    def of(cls, group: Group, state: Mapping[Tensor, dict[str, Tensor]]) -> Block:
        """Collect what a step of the group reads and moves."""
        moving = [p for p in group["params"] if p.grad is not None]
        grads = [p.grad for p in moving]
        held = [state[p]["momentum_buffer"] for p in moving] if group["momentum"] else []
        if group.get("fused") and moving and moving[0].device == group["step_size"].device:
            packed = pack([moving, grads, held] if held else [moving, grads])
            if packed:
                return cls(group, moving, *packed, *([] if held else [[]]))
        if {*map(KIND, moving), *map(KIND, grads)} <= COMMON:
            return cls(group, moving, [*moving], grads, held)
        for grad in grads:
            check_dense(grad)
        g = [real(aligned(grad, p)) for grad, p in zip(grads, moving, strict=True)]
        return cls(group, moving, [*map(real, moving)], g, [*map(real, held)])


def place_scalars(owner: str, groups: list[Group], scalars: Callable[[Group], dict[str, float]]) -> None:
    """Keep every group's scalars on the device of its parameters, in one type that is float32 or wider."""
    dtype = scalar_dtype([p for group in groups for p in group["params"]])
    for group in groups:
        group[METHOD] = owner
        device = group["params"][0].device if group["params"] else None
        for name, first in scalars(group).items():
            value, kind = group.get(name, first), torch.int64 if name == "skipped_steps" else dtype
            if kind is dtype and getattr(value, "dtype", None) != dtype:
                value = away_from_zero(value, dtype)
            group[name] = torch.as_tensor(value, dtype=kind, device=device)
        if isinstance(group["lr"], Tensor):
            group["lr"] = group["lr"].reshape(())


def buffer_dtype(group: Group, p: Tensor) -> torch.dtype:
    """Return the type of a momentum buffer: its parameter's, or at least float32 if the group asks for it."""
    return torch.promote_types(p.dtype, torch.float32) if group.get("float32_momentum") else p.dtype


def restore_buffers(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Take wide buffers from a state dict once more, since torch has rounded them to their parameters' type."""
    for group, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
        for p, key in zip(group["params"], saved["params"], strict=True):
            buffer = state_dict["state"].get(key, {}).get("momentum_buffer")
            if buffer is not None and buffer_dtype(group, p) != p.dtype:
                optimizer.state[p]["momentum_buffer"] = buffer.to(p.device, buffer_dtype(group, p), copy=True)


class LastStep(NamedTuple):
    """What one step did to one parameter group; every field is a 0-dim tensor on the device."""

    loss: Tensor
    grad_sq_norm: Tensor
    ratio: Tensor
    step_size: Tensor
    capped: Tensor
    skipped: Tensor
    skipped_steps: Tensor

    @classmethod
    def of(cls, group: Group, line: Line, ratio: Scalar, cap: Scalar, gamma: Scalar, skip: Any) -> LastStep:
        """Put what a step has left, in numbers or in tensors, on the group's device."""
        like = group["step_size"]
        loss, slope, ratio, gamma = (as_tensor(scalar, like) for scalar in (line.value, line.slope, ratio, gamma))
        above, skip = (torch.as_tensor(flag, device=like.device) for flag in (ratio > cap, skip))
        return cls(loss, slope, ratio, gamma, above & ~skip, skip, group["skipped_steps"].clone())
