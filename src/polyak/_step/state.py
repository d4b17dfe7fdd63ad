"""What is kept between steps: whether a state_dict fits, copies of it, and what belongs to one process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor
from torch.utils._pytree import tree_map_only

METHOD = "polyak_method"  # the key of a group that names its method
POLYAK = frozenset({METHOD, "step_size", "skipped_steps", "lower_bound"})  # every state has one of them
EARLIEST = {  # states of 0.1.0 name no method, but these options tell
    "adjusted_momentum": "ALIG",
    "steps_per_epoch": "SmoothSPS",
    "init_step_size": "SmoothSPS",
    "gamma": "SmoothSPS",
    "c": "SPS",
}


class OfThisProcess:
    """A value that copies share, and that is left behind when the optimizer is pickled."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[type[Self], tuple[None]]:
        return type(self), (None,)


def check_state(owner: str, state_dict: Any) -> None:
    """Raise ValueError unless a state_dict has the form of a torch optimizer's and names the same method."""
    groups = state_dict.get("param_groups") if isinstance(state_dict, Mapping) else None
    if not isinstance(groups, list) or not isinstance(state_dict.get("state"), Mapping):
        raise ValueError(f"{owner}: not the state_dict of an optimizer: load what {owner}.state_dict() returned.")
    for group in groups:
        method = _method_of(group)
        if method not in (None, owner):
            raise ValueError(
                f"{owner}: the state_dict belongs to {method}: load one that {owner}.state_dict() returned."
            )


def _method_of(group: Mapping[str, Any]) -> str | None:
    """Return the name of the method that a saved group belongs to; None for a method of one's own in 0.1.0."""
    if POLYAK.isdisjoint(group):
        keys = ", ".join(sorted(str(key) for key in group if key != "params")[:5])
        return f"another kind of optimizer (its options are {keys} …)" if keys else "another kind of optimizer"
    return group.get(METHOD) or next((method for name, method in EARLIEST.items() if name in group), None)


def check_buffers(owner: str, state: Mapping[Tensor, Mapping[str, Any]]) -> None:
    """Raise ValueError unless every momentum buffer has the shape of its parameter."""
    for p, held in state.items():
        buffer = held.get("momentum_buffer", p)
        if not isinstance(buffer, Tensor) or buffer.shape != p.shape:
            shape = tuple(buffer.shape) if isinstance(buffer, Tensor) else type(buffer).__name__
            raise ValueError(
                f"{owner}: the state holds a momentum of shape {shape} for a parameter of shape "
                f"{tuple(p.shape)}: load the state of an optimizer with the same parameters in the same order."
            )


def for_saving(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return a state_dict with copies of the scalars, which later steps change in place, and without constraints."""
    groups = tree_map_only(Tensor, lambda scalar: scalar.detach().clone(), state_dict["param_groups"])
    for group in groups:
        if "constraint" in group:  # the key stays, since torch.distributed.checkpoint expects every key of a group
            group["constraint"] = None
    return {**state_dict, "param_groups": groups}
