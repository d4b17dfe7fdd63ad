"""Warnings of probable mistakes, once each: a step that can never move, a loss that grows, an option without effect.

Nothing is read from a device, and nothing happens in compiled code. Where the loss is missing, the last part names the
line to write for the loop that is on the call stack.
"""

from __future__ import annotations

import gc
import math
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from .._backend.moves import Form
from .._backend.scalars import number
from .decision import Decision
from .options import INSTEAD, REFUSED, is_off
from .parts import Part

PATIENCE = 50  # steps without a move
ROUNDING = 1e-5  # of the first loss, to which a model of the loss in float32 is exact
RISEN = 20  # steps with a loss far above the first one; in runs that converged the loss came nowhere near that
# Options of single methods; names that other code may use, too, are left out.
METHODS_OPTIONS = frozenset(
    {"adjusted_momentum", "c", "c0", "eps", "float32_momentum", "floor", "gamma", "init_step_size", "steps_per_epoch"}
    | {"learn_lower_bound", "slack", "polar", "polar_steps", "stale"}
    | {"final_momentum", "anneal_steps", "norm_beta", "averaging_warmup"}
)
Groups = Sequence[Mapping[str, Any]]


class Advice:
    """The warnings of one optimizer, each of which comes once."""

    SOUGHT = frozenset({2, 20, 200})  # steps in which a scheduler is looked for that leaves no trace in the groups

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self._given: set[str] = set()
        self.keys, self.steps, self.is_due = 0, 0, False  # `is_due`: the next step is to be looked at, too
        self._idle, self._suspects, self._has_moved = 0, False, False
        self.high, self._first = math.inf, math.nan  # a loss above `high` is far above the first one
        self._rising_since, self._last_high = 0, 0

    def give(self, topic: str, sentence: str) -> None:
        """Warn, unless there was a warning on this topic before."""
        if topic not in self._given:
            self._given.add(topic)
            warnings.warn(f"{self.owner}: {sentence}", UserWarning, stacklevel=_callers_level())

    def leave_out(self, topic: str) -> None:
        """Never warn on a topic."""
        self._given.add(topic)

    def start_again(self) -> None:
        """Look at the options anew: a state was loaded, so that the next loss is not that of an untrained model."""
        self.leave_out("rise")
        self.keys = 0

    def on_momentum(self, group: Mapping[str, Any], form: Form) -> None:
        """Warn of a momentum that makes steps without a cap many times too long."""
        has_own_cap = "init_step_size" in group  # from which that of SmoothSPS grows
        if form not in (Form.NESTEROV, Form.ADJUSTED) or has_own_cap:
            return
        if group["momentum"] > 0.5 and _is_infinite(group["lr"]):
            factor = 1 / (1 - group["momentum"])
            self.give(
                "momentum",
                f"momentum={group['momentum']:g} multiplies every step by {factor:.3g} in all and lr=inf does not "
                "cap it, so the loss will probably grow: give a finite lr.",
            )

    def after(self, optimizer: Any, parts: Sequence[Part], closure: Any, grad_sq_norm: Any) -> None:
        """Look at an unusual step; given the norm, another process may hold all the gradients."""
        groups, decisions = optimizer.param_groups, optimizer._last[1:]
        if self._suspects or sum(map(len, groups)) != self.keys or self.steps in self.SOUGHT:
            self._read(groups, optimizer)
        self._look_at_loss(decisions[0].line.value, decisions[0].line.lower_bound)
        if not any(part.params for part in parts):
            if grad_sq_norm is None:
                self.give("gradient", WITHOUT_GRADIENT[closure is not None])
        elif any(isinstance(decision.gamma, Tensor) or decision.gamma != 0 for decision in decisions):
            self._idle, self._has_moved = 0, True
        elif any(decision.cap > 0 for decision in decisions) and not (self._has_moved and self._is_at_bound(optimizer)):
            self._idle += 1
            if self._idle == PATIENCE:
                self.give("idle", _why_idle(decisions[0], number(optimizer._last[0])))
        self.is_due = self._idle > 0 or self._suspects

    def _is_at_bound(self, optimizer: Any) -> bool:
        """Return whether the loss, or the method's model of it, is its bound but for rounding: training has ended."""
        loss, decision = number(optimizer._last[0]), optimizer._last[1]
        value, bound = decision.line.value, decision.line.lower_bound
        rounding = max(0.0, ROUNDING * (self._first - bound))  # 0 if there was no first loss above the bound
        return not decision.skip and min(abs(loss - bound), abs(value - bound)) <= rounding

    def _look_at_loss(self, value: Any, lower_bound: Any) -> None:
        """Warn of a loss that stays far above the first one; on a device it is not read."""
        if value.__class__ is not float:
            return
        if self.steps == 1 and lower_bound < value < math.inf:
            self._first, self.high = value, value + (value - lower_bound)
        elif value > self.high:
            if self._last_high != self.steps - 1:
                self._rising_since = self.steps
            self._last_high = self.steps
            if self.steps - self._rising_since == RISEN - 1:
                self.give(
                    "rise",
                    f"the loss has stayed above {self.high:.3g} for {RISEN} steps running, but was {self._first:.3g} "
                    "in the first: give a smaller lr (a finite one where it is inf) or less momentum.",
                )

    def _read(self, groups: Groups, optimizer: Any) -> None:
        """Read the keys of the groups, which rarely change."""
        others = (METHODS_OPTIONS | REFUSED) - optimizer.defaults.keys()
        self.keys, self._suspects = sum(map(len, groups)), any(others & group.keys() for group in groups)
        for group in groups:
            for name in sorted(others & group.keys()):
                if name in METHODS_OPTIONS or not is_off(group[name]):
                    instead = INSTEAD.get(name, "it is an option of another method")
                    self.give(name, f"{name}={group[name]!r} in a parameter group has no effect: {instead}.")
        uncapped = any(_is_infinite(group["lr"]) for group in groups)
        if uncapped and (any("initial_lr" in group for group in groups) or self._has_plateau(optimizer)):
            self.give(
                "schedule", "a schedule has no effect while lr=inf, which stays inf times any factor: give a finite lr."
            )

    def _has_plateau(self, optimizer: Any) -> bool:
        """Return whether a scheduler that leaves no trace in the groups acts on the optimizer; takes a while."""
        if self.steps not in self.SOUGHT:
            return False
        return any(type(each) is ReduceLROnPlateau and each.optimizer is optimizer for each in gc.get_objects())


WITHOUT_GRADIENT = (
    "step(loss=loss) moves nothing, as no parameter has a gradient: call loss.backward() before it.",
    "step(closure) moves nothing, as no parameter has a gradient: call loss.backward() in the closure.",
)


def _why_idle(decision: Decision, loss: float) -> str:
    line = decision.line
    what = "the loss"
    if loss > line.lower_bound:  # averaged, or linearised
        loss, what = line.value, "the method's model of the loss"
    if decision.skip:
        why = "the loss, the gradient or the step was not finite or too large: see last_step() for which"
    elif not line.slope > 0:
        why = "the gradient was 0"
    else:
        why = f"{what} ({loss:g}) was not above lower_bound={line.lower_bound:g}: give a bound below the loss"
    return f"nothing has moved for {PATIENCE} steps running, since {why}."


def _is_infinite(lr: Any) -> bool:
    """Return whether a cap is known to be none; a device is not asked."""
    return math.isinf(lr) if not isinstance(lr, Tensor) or lr.is_cpu else False


def _callers_level() -> int:
    """Return the stack level of the first caller outside of torch and this package."""
    level, frame = 0, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("polyak", "torch"):
        level, frame = level + 1, frame.f_back
    return level


# Which loop called step() without a loss, and the line to write there.

THREE_WAYS = (
    "write optimizer.step(loss=loss), pass a closure that returns the loss, "
    "or watch it before backward with loss = optimizer.watch(loss)"
)

_TRAINER = (
    "the Lightning Trainer hands none over, so write Trainer(callbacks=[PolyakCallback()]) "
    "with the callback of polyak.integrations.lightning"
)
_FABRIC = (
    "Fabric hands none over, so write backward(fabric, optimizer, loss) from polyak.integrations.fabric instead of "
    "fabric.backward(loss)"
)

# By the module that is on the call stack, the outermost loop first: the HF Trainer drives Accelerate, and so on.
LINES = {
    "transformers.trainer": "the HF Trainer hands none over, so write class PolyakTrainer(PolyakTrainerMixin, Trainer) "
    "with the mixin of polyak.integrations.transformers",
    "lightning.pytorch": _TRAINER,
    "pytorch_lightning": _TRAINER,
    "lightning.fabric": _FABRIC,
    "lightning_fabric": _FABRIC,
    "accelerate.optimizer": "Accelerate hands none over, so write backward(accelerator, optimizer, loss) "
    "from polyak.integrations.accelerate instead of accelerator.backward(loss)",
    "torch.amp.grad_scaler": "the GradScaler hands over what it is given, so write scaler.step(optimizer, loss=loss) "
    "with the unscaled loss, or watch it before backward with loss = optimizer.watch(loss, scaler)",
}


def line_to_write() -> str:
    """Return what to write where the loss is missing, for the loop that is on the call stack."""
    modules = {str(frame.f_globals.get("__name__", "")) for frame, _ in traceback.walk_stack(None)}
    for loop, line in LINES.items():
        if any(module == loop or module.startswith(f"{loop}.") for module in modules):
            return line
    return THREE_WAYS
