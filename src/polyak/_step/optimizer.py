"""The one step of every method: measure the loss along a direction, decide γ from it, move, project."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from .._backend.distributed import Processes, is_initialized
from .._backend.moves import MOMENTUM, Form
from .._backend.scalars import Scalar
from ..constraints import Constraint
from ..constraints.balls import measured_ball
from . import options as _options
from . import state as _state
from .advice import Advice
from .decision import NONE, LastStep, Line, decide_on_numbers, decide_on_tensors, is_unusual, last_step_of
from .lines import after_move, measure
from .loss import Indices, WatchedLoss, as_norm, as_scalar, read_loss, refuse_inside_backward, refuse_without_loss
from .options import Cap, Choice, CommonAndMomentum, Finite, Flag, Fraction, ProcessGroup
from .parts import Group, Kept, Part, decay_momentum, parts_of, sum_squares
from .projection import check_constraint, keep_constraints, project, start_inside, take_radii
from .signature import check_added, check_options, complete, documented, options_of
from .torch_hooks import hook_step


class PolyakOptimizer(Optimizer):
    """Base of every method: the step is written here once, a method adds the formula of its step size.

    A method is a final class that defines `step_size`, and may define `memory` (scalars that follow every move) and
    `linearize` (for another line than the gradient's), with the `averages` and `buffers` that this line needs. Its
    constructor names the options of its own and takes the common ones as `**common`.

    Args:
        params: parameters or parameter groups, as for every torch optimizer.
        lr: the cap on the step size, ≥ 0; `math.inf` for none.
        own: the options of the method itself.
    """

    _ranges: ClassVar[dict[str, Any]] = {}
    _later: ClassVar[tuple[str, ...]] = ()  # the options that a step looks at when they are changed
    _finite_lr: ClassVar[bool] = False  # whether lr is no cap, but a factor
    _has_own_line: ClassVar[bool] = False
    takes_numbers: ClassVar[bool] = False  # whether `step_size` can do with plain numbers, which are faster on the CPU
    momentum_form: ClassVar[Form] = Form.NESTEROV
    takes_norm: ClassVar[bool] = True  # whether ‖g‖² is all that it needs of the whole gradient
    needs_norm: ClassVar[bool] = True  # whether `linearize` reads ‖g‖², the slope of the line that it is given
    slope_is_squared: ClassVar[bool] = True  # whether the line's slope is the square of a norm, not a norm
    shared: ClassVar[tuple[str, ...]] = ()  # the options of which one value holds for all groups
    _read = read_loss

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._has_own_line, cls.takes_norm = "linearize" in vars(cls), cls.takes_norm and not cls.momentum_form.holds_y
        if "__init__" in vars(cls):
            complete(cls, PolyakOptimizer.__init__)

    def __init__(
        self,
        params: ParamsT,
        lr: Cap,
        *,
        lower_bound: Finite = 0.0,
        momentum: Fraction = 0.0,
        float32_momentum: Flag = False,
        constraint: Constraint | None = None,
        foreach: Choice = None,
        fused: Choice = None,
        sync_loss: Flag = True,
        process_group: ProcessGroup | None = None,
        **own: Any,
    ) -> None:
        owner = type(self).__name__
        options = {"lr": lr, **own, "lower_bound": lower_bound, "foreach": foreach, "fused": fused}
        buffers = {"momentum": momentum, "float32_momentum": float32_momentum}
        options |= {name: buffers[name] for name in buffers if name in options_of(type(self))}
        self._constraint = check_constraint(owner, constraint)
        self._sync_loss = _options.check_value(owner, "sync_loss", sync_loss, self._ranges.get("sync_loss"))
        self._begin(_options.check_group(owner, process_group), ready=False)
        _options.check(owner, options, options, self._ranges)
        super().__init__(params, options)
        self._ready = True
        self._constraint = start_inside(self.param_groups, self._constraint, self._advice)

    def _begin(self, process_group: ProcessGroup | None = None, ready: bool = True) -> None:
        """Set what is not part of the state."""
        owner, self._last, self._squares = type(self).__name__, list[Any](), list[Any]()
        self._places, self._options = list[Any](), list[Any]()
        self._processes, self._advice = Processes(owner, process_group), Advice(owner)
        self._watched, self._ready, self._kept = WatchedLoss(), ready, list[Kept]()

    def step_size(self, line: Line, group: Group) -> tuple[Scalar, Scalar]:
        """Return the method's uncapped step size and its cap: γ = min(ratio, cap)."""
        raise NotImplementedError(f"{type(self).__name__} must define step_size(line, group).")

    def buffers(self, group: Group) -> Sequence[str]:
        """Return the names of the buffers that a method keeps for every parameter of a group."""
        return (MOMENTUM,) if "momentum" in self.defaults and group["momentum"] else ()

    def form(self, group: Group) -> Form:
        """Return how a group's momentum moves it."""
        adjusted = "adjusted_momentum" in self.defaults and group["adjusted_momentum"]
        moving = Form.ADJUSTED if adjusted else self.momentum_form
        return moving if MOMENTUM in self.buffers(group) else Form.PLAIN

    def memory(self, group: Group) -> dict[str, float]:
        """Return the scalars a group carries from step to step, with their first values."""
        return {}

    def averages(self) -> dict[str, Any]:
        """Return the scalars that follow every finite batch, whether it moves or not, with their first values."""
        return {}

    def linearize(self, line: Line, parts: list[Part], averages: dict[str, Any]) -> Line:
        """Return the line that the step follows, given the one along the gradient; write the new `averages`."""
        return line

    profile_hook_step = staticmethod(hook_step)  # torch puts it around `step`

    @final
    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], Any] | None = None,
        *,
        loss: Tensor | float | None = None,
        lower_bound: Tensor | float | None = None,
        grad_sq_norm: Tensor | float | None = None,
        indices: Indices | None = None,
    ) -> Tensor | None:
        """Make one step from the loss whose gradient the parameters hold.

        Args:
            closure: a callable that returns the loss, with or without computing the gradients.
            loss: the loss, unscaled, with one element, exactly the value whose gradient was computed.
            lower_bound: a bound on this call's loss from below, instead of each group's own; the mean over the
                processes is taken of it as of the loss.
            grad_sq_norm: ‖g‖² of the whole gradient, of which this optimizer holds a part (ZeroRedundancyOptimizer …).
            indices: the numbers of the samples in the data set, for ALIGPlus alone, whose loss has one value for each.

        Returns:
            The loss as a detached 0-dim tensor; None if there was none, and every `lr` is 0 or there is no gradient.

        Raises:
            TypeError, ValueError: both a closure and a loss, no single number, or indices without need were given.
            RuntimeError: there is no loss, a gradient is sparse, backward has not ended, the method needs more than
                `grad_sq_norm` or is not in training mode, or the processes differ.
        """
        if grad_sq_norm is None and not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            refuse_inside_backward(type(self).__name__)
        given, groups = self._read(closure, loss, indices), self.param_groups
        parts = parts_of(self)
        if given is None:
            refuse_without_loss(type(self).__name__, groups)
            return None
        scalar = groups[0]["step_size"] if groups else torch.zeros((), device="cpu")
        value = as_scalar(given, scalar)
        bound = NONE if lower_bound is None else as_scalar(lower_bound, scalar, "lower_bound")
        mean = self._processes.mean(self, value, bound, grad_sq_norm) if self._sync_loss and is_initialized() else None
        if not parts:
            return value if mean is None else self._processes.receive(mean, scalar, bound)[0]
        norm = sum_squares(parts, scalar, self.needs_norm) if grad_sq_norm is None else as_norm(grad_sq_norm, scalar)
        if mean is not None:
            value, bound = self._processes.receive(mean, scalar, bound)
        line, self._last[:] = Line(value, norm, bound), [value]  # in place: Dynamo of 2.11 sets no attribute
        self._move(measure(self, line, parts, groups, grad_sq_norm) if self._has_own_line else line, parts)
        if not torch.compiler.is_compiling() and is_unusual(self._advice, groups, parts, self._last):
            self._advice.after(self, parts, closure, grad_sq_norm)
        return value

    def _move(self, line: Line, parts: list[Part]) -> None:
        """Decide γ for every group from the line, move, and project."""
        ball = measured_ball(parts, self._constraint)
        squares: list[Any] = []
        for part in parts:
            decide = decide_on_numbers if part.numbers else decide_on_tensors
            decided = decide(self, line.above(part), part)
            self._last.append(decided)
            if decided.skip is True:
                decay_momentum(part, decided.keep)
            else:
                gamma = part.scaled(decided.gamma) if self._has_own_line else decided.gamma
                squares.append(part.move(gamma, decided.keep, decided.skip, ball is not None))
        if self._has_own_line:
            after_move(self, parts, self._last[1:])
        whole = ball if len(squares) == len(parts) else None
        self._squares[:] = [] if whole is None else [whole.shrink_(parts, squares)]
        if whole is None and squares:
            project(self.param_groups, self._constraint, parts)

    def watch(self, loss: Tensor, scaler: Any = None) -> Tensor:
        """Let backward itself report the loss, for loops whose step() carries none.

        The hook adds ∂objective/∂loss · loss when backward reaches the loss, so that the sum over micro-batches is the
        very objective whose gradient was accumulated. `step` uses the sum once; `zero_grad` drops it. A loss that is
        watched twice counts once, and so does a multiple of it; one that is watched after its multiple counts again.

        Args:
            loss: the loss of a micro-batch, before any division or scaling.
            scaler: the torch.amp.GradScaler that scales the loss afterwards, if there is one.

        Returns:
            The same tensor, for `loss = optimizer.watch(loss)`.

        Raises:
            TypeError, ValueError: the loss is not a real tensor, or has more than one element.
        """
        return self._watched.watch(loss, self.param_groups, scaler)

    def last_step(self, group: int = 0) -> LastStep:
        """Return what the last step did to a parameter group, as fresh 0-dim tensors on the device.

        Args:
            group: index of the parameter group.

        Returns:
            The loss, the slope, the ratio, the step size and the other fields of `LastStep`.

        Raises:
            RuntimeError: there was no step, or the group was not in it.
            IndexError, TypeError: there is no such group, or the index is no integer.
        """
        return last_step_of(self.param_groups, self._last, group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients, and forget a watched loss that no step used."""
        self._watched.take()
        super().zero_grad(set_to_none)

    _init_group = _state.init_group  # torch.compile runs a method of this name eagerly
    _check_options, _take_radii = check_options, take_radii

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; its options are checked, its constraint holds at once, and a refused group leaves no trace.

        Args:
            param_group: `params` and the options that differ from the optimizer's; a `constraint` holds for it alone.

        Raises:
            ValueError, TypeError: an option is misspelt or not allowed; a parameter is sparse or an integer tensor.
        """
        with _state.without_trace(self.param_groups):
            owner = type(self).__name__
            group = _state.own_keys(_options.as_group(owner, param_group), self._scalars(self.defaults))
            _options.check(owner, group, self.defaults, self._ranges)
            check_constraint(owner, group.get("constraint"))
            if "weight_decay" not in self.defaults:
                group.pop("weight_decay", None)
            super().add_param_group(group)
            check_added(self, group)
            _state.place_scalars(self)
            if self._ready:
                self._constraint = start_inside(self.param_groups, self._constraint, self._advice)
            self._advice.on_momentum(group, self.form(group))
        self._processes.compare_again()

    def _scalars(self, group: Group) -> dict[str, Any]:
        return {"step_size": 0.0, "skipped_steps": 0, **self.memory(group), **self.averages()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state: scalars as copies, buffers as the optimizer's own, as torch has it, and no constraints."""
        return _state.for_saving(super().state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; buffers keep a wider type than their parameters where the option asks for it.

        Args:
            state_dict: what `state_dict()` of the same method returned, in this version or an earlier one.

        Raises:
            ValueError: it is the state of another method or optimizer, or of other parameters.
        """
        with _state.prepared_for(self):
            super().load_state_dict(_state.as_dict(type(self).__name__, state_dict))

    def __getstate__(self) -> dict[str, Any]:
        """Keep what torch's own __getstate__ leaves out; a pickled optimizer has no process group."""
        own = {"_constraint": self._constraint, "_sync_loss": self._sync_loss}
        return {**super().__getstate__(), **own, "_process_group": _state.OfThisProcess(self._processes.group)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled optimizer or, when torch calls it from load_state_dict, the groups and state."""
        _state.unwrap_buffers(type(self).__name__, state["state"])
        self.__dict__.get("_kept", []).clear()
        keep_constraints(self.__dict__, state)
        super().__setstate__(state)
        if "_watched" not in self.__dict__:
            self._begin(state.get("_process_group", _state.OfThisProcess(None)).value)
        self._advice.start_again()
        self.defaults.pop("differentiable", None)  # torch has just put it there, but no method has it
        _state.follow_parameters(self)


PolyakOptimizer.__doc__ = documented(PolyakOptimizer.__doc__, CommonAndMomentum)
