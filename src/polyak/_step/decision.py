"""What a step measures, the loss along a line, and what it decides from it.

A decision exists in two versions: on plain numbers, where the host may read them, and on 0-dim tensors elsewhere. Both
evaluate the method's formula on a copy of the group: its memory follows only a step that moves.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from .._backend.chunks import chunks
from .._backend.distributed import send
from .._backend.general import as_general
from .._backend.moves import MOMENTUM, Form
from .._backend.scalars import LARGEST, TINY, Scalar, as_tensor, minimum, number, positive_part, quoted, store_
from .._backend.vector import add_up, over_processes
from .parts import Group, Part

if TYPE_CHECKING:
    from .optimizer import PolyakOptimizer


class Line(NamedTuple):
    """The loss along a direction u: f(x − γu) ≈ value − γ·slope, known to stay above lower_bound.

    Plain numbers where the host may read them, else 0-dim tensors.

    Attributes:
        value: the loss at x, or that of the method's model of it.
        slope: ⟨∇f, u⟩, by which the loss falls for each unit of γ: ‖∇f‖² along the gradient.
        lower_bound: a number that the loss does not fall below.
    """

    value: Any
    slope: Any
    lower_bound: Scalar = 0.0

    @property
    def gap(self) -> Any:
        """(value − lower_bound)₊, how far the loss can still fall."""
        gap = self.value if self.lower_bound is NONE else self.value - self.lower_bound
        return gap.clamp(min=0.0) if isinstance(gap, Tensor) else 0.0 if gap < 0 else gap

    def above(self, part: Part) -> Line:
        """Return the line above its own bound, or that of the part's group, in the scalars that the part takes."""
        bound = part.group["lower_bound"] or NONE if self.lower_bound is NONE else self.lower_bound
        if part.numbers:
            scalars = (self.value, self.slope, bound)
            return Line(*[scalar.item() if isinstance(scalar, Tensor) else scalar for scalar in scalars])
        return Line(self.value, self.slope, bound).on(part.group["step_size"])

    def as_numbers(self) -> Line:
        """Return the line in plain numbers."""
        return Line(number(self.value), number(self.slope), number(self.lower_bound))

    def on(self, like: Tensor) -> Line:
        """Return the line in 0-dim tensors of a type and on a device; a bound that is an option stays a number."""
        value, slope = (send(as_tensor(scalar, like), like) for scalar in (self.value, self.slope))
        bound = send(self.lower_bound, like) if isinstance(self.lower_bound, Tensor) else self.lower_bound
        return Line(value, slope, bound)


NONE: float = Line._field_defaults["lower_bound"]  # the usual bound, which needs no subtraction


class Decision(NamedTuple):
    """What was decided for one group: the ratio and the cap of the formula, the step size γ, and whether to skip.

    A skipped step multiplies the momentum by `keep`: μ, or 1 after a measurement that is not finite.
    """

    counter: Tensor
    """The group's `skipped_steps`."""
    line: Line
    ratio: Scalar
    cap: Scalar
    gamma: Scalar
    keep: Scalar
    skip: Any


def decide_on_numbers(method: PolyakOptimizer, line: Line, part: Part) -> Decision:
    """Decide the step size of a group; its memory, its `step_size` and its count of skipped steps follow."""
    group, memory, seen = part.group, method.memory(part.group), dict(part.group)
    chosen: tuple[Any, Any] | None = None
    if method.takes_numbers:
        for name in (*memory, "lr"):
            if isinstance(seen[name], Tensor):
                seen[name] = seen[name].item()
        if seen["lr"] < 0:
            seen["lr"] = 0.0
        try:
            chosen = method.step_size(line, seen)
        except ZeroDivisionError:  # a ratio of tensors is inf or NaN
            chosen = None
    if chosen is None:
        seen = {**group, "lr": positive_part(group["lr"])}
        on_tensors = method.step_size(line.on(group["step_size"]), seen)
        chosen = number(on_tensors[0]), number(on_tensors[1])
    ratio, cap = chosen
    cap = 0.0 if cap < 0 else cap
    gamma = 0.0 if not line.slope > 0 else cap if cap < ratio or cap != cap else ratio  # NaN if either is
    skip, keep = _refuse_numbers(gamma, line, part)
    if skip:
        gamma = 0.0
        group["skipped_steps"].add_(1)
    for name in memory:
        if gamma >= TINY[group["step_size"].dtype] or (part.form.holds_y and not skip):
            store_(group[name], as_tensor(seen[name], group[name]))
    like = group["step_size"]
    group["step_size"] = torch.scalar_tensor(gamma, dtype=like.dtype, device=like.device)  # faster than torch.full_like
    return Decision(group["skipped_steps"], line, ratio, cap, gamma, keep, skip)


def decide_on_tensors(method: PolyakOptimizer, line: Line, part: Part) -> Decision:
    """Decide the same on the device, which the host does not wait for."""
    group, memory, seen = part.group, method.memory(part.group), dict(part.group)
    seen["lr"] = positive_part(seen["lr"]) if isinstance(seen["lr"], Tensor) else seen["lr"]
    for name in memory:
        seen[name] = seen[name].to(group["step_size"].dtype)  # counts, too: their root would be float32
    uncapped, cap = method.step_size(line, seen)
    ratio = cast(Tensor, uncapped)
    cap = positive_part(send(cap, ratio).to(ratio.dtype) if isinstance(cap, Tensor) else cap)
    zero = torch.zeros_like(group["step_size"])  # a number would be sent to the device once for each `where`
    gamma = torch.where(line.slope > 0, minimum(ratio, cap), zero)
    skip, keep = _refuse_tensors(gamma, line, part)
    gamma = torch.where(skip, zero, gamma)
    group["skipped_steps"].add_(skip)
    for name in memory:
        moves = ~skip if part.form.holds_y else gamma >= TINY[gamma.dtype]
        store_(group[name], torch.where(moves, seen[name], group[name]))
    group["step_size"] = gamma
    return Decision(group["skipped_steps"], line, ratio, cap, gamma, keep, skip)


def _refuse_numbers(gamma: float, line: Line, part: Part) -> tuple[bool, float]:
    """Return whether to skip the step, and what the momentum is then multiplied by.

    A step is skipped if the loss or the norm is not finite, or if the types cannot hold the step. In the second case
    the momentum decays, since a buffer that is too long would otherwise refuse every later step.
    """
    scalars = LARGEST[part.group["step_size"].dtype]  # a larger tensor of this type would be inf, and so would the step
    slope = line.slope if line.slope <= scalars else line.slope * math.inf
    length = gamma * (gamma * slope) + (line.value - line.value)  # NaN if a measurement is not finite
    representable = length <= part.largest and gamma <= scalars
    if part.form is Form.ADJUSTED:
        representable = representable and _buffer_fits(gamma, slope, part)
    if representable and part.has_float16:
        representable = sum_after(part, gamma) < math.inf
    return not representable, part.mu if length == length else 1.0


def _refuse_tensors(gamma: Tensor, line: Line, part: Part) -> tuple[Tensor, Tensor]:
    """Return the same on the device."""
    length = gamma * (gamma * line.slope) + (line.value - line.value)
    representable = length <= part.largest
    if part.form is Form.ADJUSTED:
        representable &= _buffer_fits(gamma, line.slope, part)
    if part.has_float16:
        representable &= cast(Tensor, sum_after(part, gamma)) < math.inf
    if part.form is Form.PLAIN:
        return ~representable, gamma  # there is no momentum to keep
    return ~representable, torch.where(length == length, as_tensor(part.mu, length), 1.0)


def _buffer_fits(gamma: Any, slope: Any, part: Any) -> Any:
    """Return whether a buffer of gradients stays finite with the next one, and is short enough for the present γ."""
    largest, squared = part.largest, part.momentum_squares
    both = slope + (part.sum_squares(part.buffers[MOMENTUM]) if squared is None else squared)
    short = both <= min(largest * largest / 4, LARGEST[part.group["step_size"].dtype])
    return (gamma * (gamma * both) <= largest) & short


def store(groups: list[Group], name: str, scalar: Any, skip: Any) -> None:
    """Store a scalar in all groups, which share one tensor if they are on one device."""
    stored: list[Any] = []
    for group in groups:
        old = group[name]
        if not any([old is tensor for tensor in stored]):
            new = as_tensor(scalar, old).to(old.device)
            store_(old, new if skip is None else torch.where(skip.to(old.device), old, new))
            stored.append(old)


def is_unusual(advice: Any, groups: Sequence[Group], parts: Sequence[Part], last: Sequence[Any]) -> bool:
    """Count the step, and return whether it is of a kind on which there may be advice; no device is read."""
    advice.steps += 1
    gamma, value = last[1].gamma, last[1].line.value
    if (gamma.__class__ is float and gamma == 0.0) or not parts[0].params:
        return True
    if value.__class__ is float and value > advice.high:
        return True
    return bool(advice.is_due or sum(map(len, groups)) != advice.keys or advice.steps in advice.SOUGHT)


class LastStep(NamedTuple):
    """What one step did to one parameter group; every field is a 0-dim tensor on the device.

    Attributes:
        loss: the loss of the step.
        grad_sq_norm: the slope of the method's line over all groups, which is ‖∇f‖² along the gradient.
        ratio: the step size that the formula gives without its cap.
        step_size: γ; 0 in a step that was skipped.
        capped: whether `ratio` was above `cap`, in a step that was not skipped.
        skipped: whether the step was left out, since something was not finite or too large.
        skipped_steps: how many steps were skipped so far.
        cap: the largest γ that the formula allows.
    """

    loss: Tensor
    grad_sq_norm: Tensor
    ratio: Tensor
    step_size: Tensor
    capped: Tensor
    skipped: Tensor
    skipped_steps: Tensor
    cap: Tensor

    @classmethod
    def of(cls, group: Group, loss: Tensor, decision: Decision) -> LastStep:
        """Return a decision as tensors on the group's device."""
        like, (_, line, ratio, cap, gamma, _, skip) = group["step_size"], decision
        loss, slope, ratio, gamma, most = (as_tensor(scalar, like) for scalar in (loss, line.slope, ratio, gamma, cap))
        above, skip = (torch.as_tensor(flag, device=like.device) for flag in (ratio > cap, skip))
        ratio, skipped_steps = ratio.clone(), group["skipped_steps"].clone()  # later steps change what a group keeps
        return cls(send(loss, like), slope, ratio, gamma, above & ~skip, skip, skipped_steps, most)


def last_step_of(groups: Sequence[Group], last: Sequence[Any], index: int) -> LastStep:
    """Return what the last step, its loss and a decision for every group, did to one of the groups."""
    try:
        index = operator.index(index)
    except TypeError as error:
        raise TypeError(f"last_step() takes the index of a parameter group, but {quoted(index)} was given.") from error
    if not -len(groups) <= index < len(groups):
        raise IndexError(f"last_step({index}): the optimizer has {len(groups)} parameter groups, counted from 0.")
    for decided in last[1:]:
        if decided.counter is groups[index]["skipped_steps"]:  # compiled code keeps the identity of tensors alone
            return LastStep.of(groups[index], last[0], decided)
    reason = "the group was not in the last step" if last else "there was no step"
    raise RuntimeError(f"last_step({index or ''}) has no result, as {reason}: call it after step(loss=loss).")


def sum_after(part: Any, gamma: Any) -> Scalar:
    """Return Σ|x| + Σ|v| over what is float16, as a move would leave it: inf or NaN if float16 cannot hold that."""
    general, gamma = as_general(part), part.scaled(gamma)
    general.same_move(part)
    rows = [*zip(part.owners, *general.columns(), strict=True)]
    narrow = [row for row in rows if torch.float16 in (row[1].dtype, row[3].dtype)]

    def local_sum(some: list[tuple[Tensor, ...]]) -> Scalar:
        norms: list[Scalar] = []
        _, *columns = [[*column] for column in zip(*some, strict=True)]
        for x, u, v, *others in chunks(*columns, foreach=part.group["foreach"]):
            trial, buffer = [tensor.clone() for tensor in x], [tensor.clone() for tensor in v]
            general.move_chunk([trial, u, buffer, *others], gamma)
            moved = trial if part.form is Form.PLAIN else [*trial, *buffer]
            norms += [torch.linalg.vector_norm(tensor, 1, dtype=torch.float32) for tensor in moved]
        return add_up(norms, part.group["step_size"])

    scalar = over_processes(local_sum, [row[0] for row in narrow], narrow)
    return number(scalar) if part.numbers else scalar
