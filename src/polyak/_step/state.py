"""What an optimizer keeps from step to step: scalars in its groups, buffers beside its parameters, a state_dict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from .._backend.distributed import RADIUS
from .._backend.moves import MOMENTUM
from .._backend.scalars import TYPES, away_from_zero, is_number, quoted
from .._backend.vector import AVERAGE, SQUARES, WIDE, add_, local_real_view, scalar_dtype
from .options import check
from .parts import Group
from .projection import check_fit
from .signature import check_together
from .torch_hooks import reshard

METHOD = "polyak_method"  # the key of a group that names its method
POLYAK = frozenset({METHOD, "step_size", "skipped_steps", "lower_bound"})  # every state has one of them
EARLIEST = {  # states of 0.1.0 name no method, but these options tell
    "adjusted_momentum": "ALIG",
    "steps_per_epoch": "SmoothSPS",
    "init_step_size": "SmoothSPS",
    "gamma": "SmoothSPS",
    "c": "SPS",
}
TRAIN_MODE = "train_mode"  # the key of a schedule-free group that is False while its parameters hold the average
LAST_MOMENTUM = "last_momentum"  # the key of the momentum with which the last step averaged, whatever the option is now
KEPT = frozenset({METHOD, RADIUS, TRAIN_MODE, LAST_MOMENTUM})
BUFFERS = {MOMENTUM: "momentum", AVERAGE: "gradient average", SQUARES: "average of squares"}


class OfThisProcess:
    """A value that copies share, and that is left behind when the optimizer is pickled."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[type[Self], tuple[None]]:
        return type(self), (None,)


def as_dict(owner: str, state_dict: Any) -> dict[str, Any]:
    """Return a state_dict of any mapping type as a dict."""
    if not isinstance(state_dict, Mapping):
        raise _not_a_state(owner)
    return dict(state_dict)


@contextmanager
def prepared_for(optimizer: Any) -> Iterator[None]:
    """Let `_prepare` see a loaded state_dict after all hooks that may still change it."""
    last = optimizer.register_load_state_dict_pre_hook(_prepare)
    try:
        yield
    finally:
        last.remove()


def _prepare(optimizer: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Check what the hooks on loading made of a state_dict, and return it with its buffers as they are.

    torch would round them to the type of their parameters.
    """
    check_state(optimizer, state_dict)
    check_together(optimizer, state_dict["param_groups"])
    state = {
        key: {name: OfThisProcess(value) if name in BUFFERS else value for name, value in buffers.items()}
        for key, buffers in state_dict["state"].items()
    }
    return {**state_dict, "state": state}


def check_state(optimizer: Any, state_dict: Mapping[str, Any]) -> None:
    """Raise ValueError unless a state_dict is a torch optimizer's, names the same method and holds allowed values."""
    owner, defaults = type(optimizer).__name__, optimizer.defaults
    if not _is_state(state_dict):
        raise _not_a_state(owner)
    for group in state_dict["param_groups"]:
        method = _method_of(group)
        if method not in (None, owner):
            raise ValueError(
                f"{owner}: the state_dict belongs to {method}: load one that {owner}.state_dict() returned."
            )
        options = {name: value for name, value in group.items() if name in defaults}
        check(owner, options, defaults, optimizer._ranges)
        for name, first in optimizer._scalars(defaults | options).items():
            if name in group:
                _check_scalar(owner, name, group[name], first)
        if group.get(LAST_MOMENTUM) is not None:
            _check_scalar(owner, LAST_MOMENTUM, group[LAST_MOMENTUM], 0.0)
        if not isinstance(group.get(TRAIN_MODE, True), bool):
            raise ValueError(f"{owner}: the state holds {TRAIN_MODE}={quoted(group[TRAIN_MODE])}, {DAMAGED}")


def _not_a_state(owner: str) -> ValueError:
    """Return the error that refuses what is no state_dict."""
    return ValueError(f"{owner}: not the state_dict of an optimizer: load what {owner}.state_dict() returned.")


def _is_state(state_dict: Mapping[str, Any]) -> bool:
    """Return whether a state_dict has the form that torch gives it."""
    groups, state = state_dict.get("param_groups"), state_dict.get("state")
    if not isinstance(groups, list) or not isinstance(state, Mapping):
        return False
    fit = [isinstance(group, Mapping) and isinstance(group.get("params"), list | tuple) for group in groups]
    return all(fit) and all(isinstance(buffers, Mapping) for buffers in state.values())


DAMAGED = "which it cannot be: load the state of an earlier step."


def _check_scalar(owner: str, name: str, value: Any, first: Any) -> None:
    """Raise ValueError unless a value may be that of a scalar, or of a table, whose first value is given."""
    valid = is_number(value)
    if isinstance(value, torch.Tensor):
        shape = first.shape if isinstance(first, torch.Tensor) else ()
        valid = not value.is_complex() and (value.shape == shape or value.numel() == 1 == max(shape, default=1))
    if valid and not (isinstance(value, torch.Tensor) and value.is_meta):
        numbers = value if isinstance(value, Tensor) else torch.tensor(value, device="cpu")
        valid = not bool(numbers.isnan().any()) and not (isinstance(first, int) and bool((numbers < 0).any()))
    if not valid:
        raise ValueError(f"{owner}: the state holds {name}={quoted(value)}, {DAMAGED}")


def _method_of(group: Mapping[str, Any]) -> str | None:
    """Return the name of the method that a saved group belongs to; None for a method of one's own in 0.1.0."""
    if POLYAK.isdisjoint(group) or not isinstance(group.get(METHOD, ""), str | None):
        keys = ", ".join(sorted(str(key) for key in group if key != "params")[:5])
        return f"another kind of optimizer (its options are {keys} …)" if keys else "another kind of optimizer"
    return group.get(METHOD) or next((method for name, method in EARLIEST.items() if name in group), None)


def unwrap_buffers(owner: str, state: Mapping[Any, dict[str, Any]]) -> None:
    """Put copies of loaded buffers beside their parameters; raise ValueError unless they have the same shape."""
    for p, buffers in state.items():
        for name in buffers.keys() & BUFFERS:
            loaded = buffers[name]
            buffer = loaded.value if isinstance(loaded, OfThisProcess) else loaded
            if isinstance(p, Tensor):  # torch keeps what belongs to no parameter
                _check_buffer(owner, name, buffer, p)
            if loaded is not buffer:
                buffers[name] = buffer.to(p.device, copy=True) if isinstance(p, Tensor) else buffer


def _check_buffer(owner: str, name: str, buffer: Any, p: Tensor) -> None:
    if not isinstance(buffer, Tensor) or buffer.shape != p.shape:
        shape = tuple(buffer.shape) if isinstance(buffer, Tensor) else type(buffer).__name__
        raise ValueError(
            f"{owner}: the state holds a {BUFFERS[name]} of shape {shape} for a parameter of shape "
            f"{tuple(p.shape)}: load the state of an optimizer with the same parameters in the same order."
        )


def for_saving(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return a state_dict with copies of the scalars, which later steps change in place, and without constraints."""
    groups = tree_map_only(Tensor, lambda scalar: scalar.detach().clone(), state_dict["param_groups"])
    for group in groups:
        if "constraint" in group:  # the key stays, since torch.distributed.checkpoint expects every key of a group
            group["constraint"] = None
        if isinstance(last := group.get(LAST_MOMENTUM), Tensor) and not last.is_meta:  # always a number or None
            group[LAST_MOMENTUM] = last.item()
    return {**state_dict, "param_groups": groups}


def place_scalars(optimizer: Any) -> None:
    """Keep every group's scalars on the device of its parameters, in one type that is float32 or wider."""
    owner, groups, scalars = type(optimizer).__name__, optimizer.param_groups, optimizer._scalars
    shared = optimizer.averages().keys()
    dtype = scalar_dtype([p for group in groups for p in group["params"]])
    for group in groups:
        group[METHOD] = owner
        if hasattr(optimizer, "eval"):
            group.setdefault(TRAIN_MODE, groups[0].get(TRAIN_MODE, True))
        device = group["params"][0].device if group["params"] else torch.device("cpu")
        for name, first in scalars(group).items():
            value, kind = group.get(name, first), torch.int64 if isinstance(first, int) else dtype
            if kind is dtype and getattr(value, "dtype", None) != dtype:
                value = away_from_zero(value, dtype)
            group[name] = torch.as_tensor(value, dtype=kind, device=device).contiguous()
            if name in shared and group[name].device == groups[0][name].device:
                group[name] = groups[0][name]
        if hasattr(optimizer, "extrapolation"):
            first = getattr(optimizer, "annealed_momentum", itemgetter("momentum"))  # of a state without the key
            last = group[LAST_MOMENTUM] if LAST_MOMENTUM in group else first(group)
            group[LAST_MOMENTUM] = last.to(device) if isinstance(last, Tensor) else last
        if isinstance(group["lr"], Tensor) and group["lr"].dim():  # a captured graph reads this very tensor
            group["lr"] = group["lr"].reshape(())


def follow_parameters(optimizer: Any) -> None:
    """Complete the groups, and bring scalars and buffers to the types and devices of the parameters."""
    for group in optimizer.param_groups:
        for name, default in optimizer.defaults.items():
            group.setdefault(name, default)
    optimizer._check_options()
    place_scalars(optimizer)
    for group in optimizer.param_groups:
        for p in group["params"]:
            buffers = optimizer.state.get(p, {})
            for name in buffers.keys() & BUFFERS:
                buffers[name] = buffers[name].to(p.device, buffer_dtype(group, p, name))


def buffer_dtype(group: Group, p: Tensor, name: str) -> torch.dtype:
    """Return the type of a buffer: its parameter's, or at least float32 if it needs that or the group asks for it."""
    wide = name in WIDE or group.get("float32_momentum")
    known = p.dtype.to_real() in TYPES  # which a frozen float8 weight is not
    return p.dtype if not wide else torch.promote_types(p.dtype, torch.float32) if known else torch.float32


def init_group(self: Any) -> None:
    """Create the buffers that are missing; torch.compile runs a method of this kind eagerly."""
    self._check_options()
    check_fit(self)
    if self._places != (present := places(self.param_groups)):  # a model was moved, or got another type
        follow_parameters(self)
        self._places = present
    for group in self.param_groups:
        add_buffers(self.state, group, self.buffers(group))


def places(groups: Sequence[Group]) -> list[Any]:
    """Return what scalars and buffers depend on: the type of every parameter, and the first device of every group."""
    types: list[Any] = [p.dtype for group in groups for p in group["params"]]
    return types + [group["params"][0].device for group in groups if group["params"]]


def add_buffers(state: Mapping[Tensor, dict[str, Any]], group: Group, names: Sequence[str]) -> None:
    """Create the buffers of the parameters with a gradient that are missing, with zeros."""
    for p in group["params"] if names else ():
        if p.grad is not None:
            buffers = state[p]
            for name in names:
                if name not in buffers:
                    buffers[name] = torch.zeros_like(p, dtype=buffer_dtype(group, p, name))


def own_keys(group: Group, scalars: Mapping[str, float]) -> Group:
    """Return a group without what only a step writes into it."""
    return {name: value for name, value in group.items() if name not in {*scalars, *KEPT}}


@contextmanager
def without_trace(groups: list[Group]) -> Iterator[None]:
    """Leave the groups as they were if a new one is refused."""
    before = [dict(group) for group in groups]
    try:
        yield
    except Exception:
        del groups[len(before) :]
        for group, old in zip(groups, before, strict=True):
            group.update(old)
        raise


# What the parameters of a schedule-free method hold.


def train(self: Any) -> None:
    """Let the parameters hold y again, at which gradients are taken; call it before the first batch after `eval()`."""
    _switch(self, True)


def evaluate(self: Any) -> None:
    """Let the parameters hold the averaged iterate x, to evaluate or to export the model; `step()` then raises."""
    _switch(self, False)


@torch.no_grad()
def _switch(optimizer: Any, training: bool) -> None:
    for group in optimizer.param_groups:
        if group[TRAIN_MODE] is training:
            continue
        group[TRAIN_MODE] = training
        moved = [p for p in group["params"] if MOMENTUM in optimizer.state.get(p, {})]
        if moved:
            x, v = [local_real_view(p) for p in moved], [local_real_view(optimizer.state[p][MOMENTUM]) for p in moved]
            a = (1.0 - group[LAST_MOMENTUM]) * optimizer.extrapolation(group)
            add_(x, v, a if training else -a, foreach=group["foreach"])
            reshard(moved)


def check_training(group: Group) -> None:
    """Raise RuntimeError if the parameters hold the averaged iterate, at which no gradient is taken."""
    if not group[TRAIN_MODE]:
        raise RuntimeError(
            f"{group[METHOD]}.step() after eval(): the parameters hold the averaged iterate, so call optimizer.train() "
            "before the forward pass, and optimizer.eval() only to evaluate or to export the model."
        )
