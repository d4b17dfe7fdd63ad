"""The one step of every method: measure the loss along a direction, decide γ from it, move, project."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self, final

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import _options
from ._line import Block, Group, LastStep, Line
from ._loss import THREE_WAYS, WatchedLoss, as_scalar, read_loss
from ._moves import move
from ._vector import Vector, read_on_cpu, real, scalar_dtype, sum_squares

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT

    from .constraints import Constraint


class PolyakOptimizer(Optimizer):
    """Base of every method: the step is written here once, a method adds the formula of its step size.

    A method is a final class that defines `step_size`, and may define `memory` (scalars carried between steps) and
    `linearize` (methods that measure along another direction than the gradient).

    Args:
        params: parameters or parameter groups, as for every torch optimizer.
        options: the value of each option for groups that name none; the key of the cap is `lr`.
        constraint: the set the parameters stay in, or None.

    Raises:
        ValueError: an option of a group does not exist or has a value that is not allowed.
        TypeError: an argument of the constructor does not exist, or a parameter is an integer tensor.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        _options.check_names(cls, kwargs)
        return super().__new__(cls)

    def __init__(self, params: ParamsT, options: Mapping[str, Any], constraint: Constraint | None) -> None:
        self._constraint = _options.check_constraint(type(self).__name__, constraint)
        self._group_constraints: list[Constraint | None] = []
        self._watched = WatchedLoss()
        self._last: list[tuple[Line, Tensor, Tensor | float, Tensor, Tensor]] = []
        self._ready = False
        _options.check(type(self).__name__, options, options)
        super().__init__(params, dict(options))
        self._ready = True
        self._project()

    # What a method defines

    def step_size(self, line: Line, group: Group) -> tuple[Tensor, Tensor | float]:
        """Return the method's uncapped step size and its cap: γ = min(ratio, cap)."""
        raise NotImplementedError(f"{type(self).__name__} must define step_size(line, group).")

    def memory(self, group: Group) -> dict[str, float]:
        """Return the scalars a group carries from step to step, with their first values."""
        return {}

    def linearize(self, value: Tensor, blocks: list[Block]) -> tuple[Line, list[Vector]]:
        """Measure the loss along the direction of each group: here the gradient, whose slope is ‖g‖² over all groups."""
        norms = [sum_squares(block.g, foreach=block.group["foreach"]) for block in blocks if block.g]
        slope = torch.stack([norm.to(value) for norm in norms]).sum() if norms else torch.zeros_like(value)
        return Line(value, slope), [block.g for block in blocks]

    # The step

    @final
    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], Any] | None = None,
        *,
        loss: Tensor | float | None = None,
        lower_bound: Tensor | float | None = None,
    ) -> Tensor | None:
        """Make one step from the loss whose gradient the parameters hold.

        Args:
            closure: a callable that returns the loss, with or without computing the gradients.
            loss: the loss, unscaled, with one element, exactly the value whose gradient was computed.
            lower_bound: a bound on this call's loss from below, instead of each group's own.

        Returns:
            The loss as a detached 0-dim tensor; None if there was none and every `lr` is 0 (nothing moves then).

        Raises:
            TypeError: both a closure and a loss were given, or something that is no loss.
            ValueError: the loss has more than one element.
            RuntimeError: there is no loss, or a gradient is sparse.
        """
        given = read_loss(self._watched, closure, loss)
        blocks = [self._init_group(group) for group in self.param_groups]
        if given is None:
            self._refuse_without_loss()
            return None
        scalar = self.param_groups[0]["step_size"]
        value = as_scalar(given, scalar.dtype, scalar.device)
        line, directions = self.linearize(value, blocks)
        self._last = []
        for block, u in zip(blocks, directions, strict=True):
            gamma, skip = self._decide(line, block, lower_bound)
            skipped = read_on_cpu(skip)
            if not skipped:
                move(block.group, block.x, u, block.v, gamma, skip if skipped is None else None)
        self._project()
        return value

    def watch(self, loss: Tensor, scaler: Any = None) -> Tensor:
        """Let backward itself report the loss, for loops whose step() carries none.

        The hook adds ∂objective/∂loss · loss when backward reaches the loss, so that the sum over micro-batches is the
        very objective whose gradient was accumulated. `step` uses the sum once; `zero_grad` drops it.

        Args:
            loss: the loss of a micro-batch, before any division or scaling.
            scaler: the torch.amp.GradScaler that scales the loss afterwards, if there is one.

        Returns:
            The same tensor, so that the call fits in one line: `loss = optimizer.watch(loss)`.

        Raises:
            TypeError: the loss is not a real tensor.
            ValueError: the loss has more than one element.
        """
        return self._watched.watch(loss, scaler)

    def last_step(self, group: int = 0) -> LastStep:
        """Return what the last step did to a parameter group, as fresh 0-dim tensors on the device.

        Args:
            group: index of the parameter group.

        Returns:
            The loss, the squared norm ‖u‖² over all groups, the uncapped ratio, the step size γ, whether the cap was
            smaller than the ratio, whether the step was skipped, and how many steps were skipped so far.

        Raises:
            RuntimeError: no step was made yet.
        """
        if not self._last:
            raise RuntimeError("last_step() has nothing to tell before the first step(loss=loss).")
        line, ratio, cap, gamma, skip = self._last[group]
        skipped_steps = self.param_groups[group]["skipped_steps"].clone()
        return LastStep(line.value, line.slope, ratio, gamma, (ratio > cap) & ~skip, skip, skipped_steps)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, and forget a watched loss that no step used."""
        self._watched.take()
        super().zero_grad(set_to_none)

    def _decide(self, line: Line, block: Block, lower_bound: Tensor | float | None) -> tuple[Tensor, Tensor]:
        """Return γ and whether the step is skipped; the group's memory follows only a step that moves."""
        group = block.group
        line = line.of(group, lower_bound)
        memory = {name: group[name] for name in self.memory(group)}
        ratio, cap = self.step_size(line, group)
        cap = _usable_cap(cap, ratio)
        gamma = torch.where(line.slope > 0, ratio.clamp(max=cap), 0.0)
        # ‖γu‖² must be finite in the parameters' own type; the comparison is false for NaN as well.
        sane = (gamma * (gamma * line.slope) <= _largest(block.x)) & ((line.value - line.value) == 0)
        gamma, skip = torch.where(sane, gamma, 0.0), ~sane
        for name, before in memory.items():
            group[name] = before.copy_(torch.where(gamma > 0, group[name], before))
        group["step_size"] = gamma
        group["skipped_steps"].add_(skip)
        self._last.append((line, ratio, cap, gamma, skip))
        return gamma, skip

    def _refuse_without_loss(self) -> None:
        """Accept a call that is only meant to create the state; distributed checkpointing makes it with lr = 0."""
        if any(group["lr"] != 0 for group in self.param_groups):
            raise RuntimeError(f"{type(self).__name__}.step() needs the loss: {THREE_WAYS}.")

    def _init_group(self, group: Group) -> Block:
        block = Block(group, [], [], [])
        for p in group["params"]:
            if p.grad is not None:
                _check_dense(p)
                block.x.append(real(p))
                block.g.append(real(p.grad))
                if group["momentum"]:
                    block.v.append(real(self._momentum_buffer(p)))
        return block

    def _momentum_buffer(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return state["momentum_buffer"]  # type: ignore[no-any-return]

    # Constraints: over all groups that name none, or over one group

    @torch.no_grad()
    def _project(self) -> None:
        shared: Vector = []
        for group, constraint in zip(self.param_groups, self._group_constraints, strict=True):
            x = [p for p in group["params"] if p.requires_grad]
            if constraint is self._constraint:
                shared += x
            elif constraint is not None:
                constraint.project_(x)
        if self._constraint is not None and shared:
            self._constraint.project_(shared)

    # Groups and state

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; its options are checked, and its constraint holds at once."""
        owner = type(self).__name__
        group = dict(param_group)
        _options.check(owner, group, self.defaults, self._scalars(self.defaults | group))
        constraint = _options.check_constraint(owner, group.pop("constraint", self._constraint))
        group.pop("weight_decay", None)
        super().add_param_group(group)
        if not all(p.is_floating_point() or p.is_complex() for p in group["params"]):
            self.param_groups.pop()
            raise TypeError(
                f"{owner} moves floating-point or complex parameters: leave integer tensors out of the group."
            )
        self._group_constraints.append(constraint)
        self._place_scalars()
        if self._ready:
            self._project()

    def _scalars(self, group: Group) -> dict[str, float]:
        return {"step_size": 0.0, "skipped_steps": 0, **self.memory(group)}

    def _place_scalars(self) -> None:
        """Keep every group's scalars on the device of its parameters, in one type that is float32 or wider."""
        dtype = scalar_dtype([p for group in self.param_groups for p in group["params"]])
        for group in self.param_groups:
            device = group["params"][0].device if group["params"] else None
            for name, first in self._scalars(group).items():
                kind = torch.int64 if name == "skipped_steps" else dtype
                group[name] = torch.as_tensor(group.get(name, first), dtype=kind, device=device)

    def __getstate__(self) -> dict[str, Any]:
        """Keep what torch's own __getstate__ leaves out."""
        own = {"_constraint": self._constraint, "_group_constraints": self._group_constraints}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled optimizer or, when torch calls it from load_state_dict, the groups and state."""
        super().__setstate__(state)
        for name, value in (("_watched", WatchedLoss()), ("_last", []), ("_ready", True)):
            self.__dict__.setdefault(name, value)
        for group in self.param_groups:
            for name, default in self.defaults.items():
                group.setdefault(name, default)
        self._place_scalars()


def _usable_cap(cap: Tensor | float, ratio: Tensor) -> Tensor | float:
    if isinstance(cap, Tensor):
        return cap.reshape(()).to(ratio, non_blocking=True)
    if not cap >= 0:
        raise ValueError(
            f"lr={cap!r} is no cap on a step size: a schedule needs a finite lr > 0, since inf · 0 is NaN."
        )
    return cap


def _largest(x: Vector) -> float:
    return min((torch.finfo(dtype).max for dtype in {tensor.dtype for tensor in x}), default=0.0)


def _check_dense(p: Tensor) -> None:
    if p.grad is not None and p.grad.layout != torch.strided:
        raise RuntimeError(
            f"A parameter of shape {tuple(p.shape)} has a sparse gradient, but a Polyak step needs dense ones: "
            "build the layer with sparse=False."
        )
