"""The constructors of the methods: each option is written, typed and documented once.

A method names the options of its own and takes the common ones as `**common: Unpack[CommonAndMomentum]`. From the base
class its signature and its docstring are completed, so that `help()`, editors and Sphinx show every option.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import is_
from typing import Annotated, Any, get_args, get_origin, get_type_hints, is_typeddict

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.parameter import is_lazy

from .._backend.chunks import INTERPRETED
from .._backend.cpu_build import C_TYPES, kernels
from .._backend.scalars import TYPES, quoted
from .options import Allowed, Common, check, check_lr, is_matrix, is_off, unknown
from .projection import check_constraint, check_fit

NOT_OPTIONS = frozenset({"self", "params", "constraint", "sync_loss", "process_group"})  # they belong to no group
KERNELS = frozenset({"cpu", "cuda", "meta"})  # devices on which fused=True runs
FIXED = frozenset({"samples"})  # options of which only the constructor's value fits what the groups hold


def complete(cls: type, base: Callable[..., Any]) -> None:
    """Complete a method's constructor from its base's, its docstring, and `_ranges`: what each option may be."""
    init = vars(cls)["__init__"]
    hints, base_hints, defaults = _hints(init), _hints(base), inspect.signature(base).parameters
    common = next((get_args(hint)[0] for hint in hints.values() if _is_options(hint)), None)
    names = sorted(get_type_hints(common), key=Common.__annotations__.__contains__) if common else []  # momentum first
    own = [p for p in inspect.signature(init).parameters.values() if not (common and p.kind is p.VAR_KEYWORD)]
    more = [defaults[name] for name in names if name not in hints]
    types = base_hints | hints
    parameters = [p.replace(annotation=_plain(types.get(p.name, p.annotation))) for p in (*own, *more)]
    cls.__init__ = _checked(init, inspect.Signature(parameters))  # type: ignore[misc]
    cls._ranges = {p.name: allowed for p in parameters if (allowed := _range(types.get(p.name)))}  # type: ignore[attr-defined]
    cls._finite_lr = "lr" in cls._ranges and not cls._ranges["lr"].test(math.inf)  # type: ignore[attr-defined]
    later = (name for name in cls._ranges if name not in ("lr", "sync_loss"))  # type: ignore[attr-defined]
    cls._later = (*later, "constraint")  # type: ignore[attr-defined]
    if common:
        cls.__doc__ = documented(cls.__doc__, common)


def options_of(cls: type) -> list[str]:
    """Return the names of the options that a group of a method may have."""
    parameters = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
    return [p.name for p in parameters if p.name not in NOT_OPTIONS and p.kind is not p.VAR_KEYWORD]


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the types of a constructor's arguments; none if a name in them cannot be found."""
    try:
        return {name: hint for name, hint in get_type_hints(function, include_extras=True).items() if name != "return"}
    except NameError:
        return {}


def _is_options(hint: Any) -> bool:
    return len(get_args(hint)) == 1 and is_typeddict(get_args(hint)[0])


def _plain(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _range(hint: Any) -> Allowed | None:
    ranges = [extra for extra in get_args(hint)[1:] if isinstance(extra, Allowed)]
    return ranges[0] if ranges else None


def _checked(init: Callable[..., None], signature: inspect.Signature) -> Callable[..., None]:
    """Return a constructor that refuses options it does not have, but takes the weight_decay=0.0 of trainers."""
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    options = {name: None for name in signature.parameters if name not in ("self", "params")}
    positional = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD][1:]

    @functools.wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        if is_off(kwargs.get("weight_decay")):  # which is every method's default, if it has the option
            del kwargs["weight_decay"]
        for name in () if open_ended else kwargs:
            if name not in signature.parameters:
                raise TypeError(unknown(type(self).__name__, name, options))
        if len(args) > len(positional):
            raise TypeError(
                f"{type(self).__name__} takes only {' and '.join(positional)} by position, but {len(args)} arguments "
                "were given: write the options by name, such as lower_bound=0.0."
            )
        init(self, *args, **kwargs)

    wrapper.__signature__ = signature  # type: ignore[attr-defined]
    return wrapper


def check_options(self: Any) -> None:
    """Raise ValueError if an option in a group has got a value since the last step that is not allowed."""
    groups = self.param_groups
    for group in groups:
        check_lr(type(self).__name__, group, self.defaults, self._ranges.get("lr"))
    values = [group.get(name) for group in groups for name in self._later]
    if len(values) == len(self._options) and all(map(is_, values, self._options)):
        return
    for group in groups:
        changed = {name: group[name] for name in self._later if name in group}
        check(type(self).__name__, changed, self.defaults | {"lr": group["lr"]}, self._ranges)
        _check_later_constraint(type(self).__name__, changed.get("constraint"))
        group.update(changed)
    check_together(self, groups)
    check_fit(self)
    self._options[:] = [group.get(name) for group in groups for name in self._later]


def check_together(self: Any, groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError if groups differ in an option that is one for all, or a norm is not for their parameters."""
    owner = type(self).__name__
    for name in self.shared:
        given = [group[name] for group in groups if name in group]
        first = self.defaults[name] if name in FIXED or not given else given[0]
        for other in given:
            if other != first:
                raise ValueError(
                    f"{owner}: one value of {name} holds for all parameter groups, but {quoted(first)} and "
                    f"{quoted(other)} were given: give every group the same."
                )
    for group, own in zip(groups, self.param_groups, strict=False):  # torch refuses another number of groups
        if "norm" in self.defaults and group.get("norm") == "spectral":
            check_params(owner, own["params"], norm="spectral")


def _check_later_constraint(owner: str, constraint: Any) -> None:
    """Raise TypeError or ValueError for a constraint that a group cannot have after construction."""
    if getattr(check_constraint(owner, constraint), "radius", 0.0) is None:
        raise ValueError(f"{owner}: {constraint} gets its radius at construction only: write L2Ball(radius) later.")


def check_added(self: Any, group: Mapping[str, Any]) -> None:
    """Raise unless the parameters of a new group can be moved as it asks, beside the groups that are there."""
    norm = group.get("norm") if "norm" in self.defaults else None  # else it is a key of other code
    check_params(type(self).__name__, group["params"], group.get("fused"), norm)
    check_together(self, self.param_groups)


def check_params(owner: str, params: Iterable[Tensor], fused: bool | None = None, norm: str | None = None) -> None:
    """Raise TypeError unless all parameters can be moved, ValueError or RuntimeError unless as it is asked."""
    for p in params:
        if isinstance(p, Parameter) and not p.requires_grad:
            continue  # such as the quantised weights under an adapter
        if p.dtype.to_real() not in TYPES:
            raise TypeError(f"{owner} moves floating-point and complex parameters: leave the {p.dtype} tensor out.")
        if not is_lazy(p) and (p.is_conj() or p.is_neg()):
            raise TypeError(
                f"{owner} moves tensors in place, but one of shape {tuple(p.shape)} is a conjugate or negative view: "
                "give it p.resolve_conj().resolve_neg() instead."
            )
        if p.layout != torch.strided or p.is_nested:
            other = "nested one" if p.is_nested else f"sparse one of shape {tuple(p.shape)}"
            raise TypeError(f"{owner} moves dense parameters: leave the {other} out.")
        if norm == "spectral" and not is_matrix(p, norm):
            raise ValueError(
                f"{owner}: norm='spectral' is for real matrices, but a {p.dtype} parameter has shape {tuple(p.shape)}: "
                "put it in a group with norm='adam'."
            )
        if fused and p.device.type not in KERNELS:
            raise ValueError(f"{owner}: fused=True has no kernel for the device {p.device}: leave it out.")
        if fused and p.is_cpu and not INTERPRETED and p.dtype in C_TYPES:
            kernels(p.dtype)


def documented(doc: str | None, common: type) -> str | None:
    """Add the lines on the common options to the arguments of a docstring, and the common errors after them."""
    arguments = re.search(r"^    Args:\n(?:        .*\n)+", doc or "", re.MULTILINE)
    if doc is None or arguments is None:
        return doc
    names = sorted(get_type_hints(common), key=Common.__annotations__.__contains__)
    entries = _entries(f"{common.__doc__}{Common.__doc__}", "Args")
    added = "".join(entries[name] for name in names if f"\n        {name}: " not in doc)
    doc = f"{doc[: arguments.end()]}{added}{doc[arguments.end() :]}"
    own, end = _entries(doc, "Raises"), arguments.end() + len(added)
    errors = "".join(text for name, text in _entries(Common.__doc__, "Raises").items() if name not in own)
    if not own:
        return f"{doc[:end]}\n    Raises:\n{errors}{doc[end:]}"
    last = [*own.values()][-1]
    return doc.replace(last, last + errors, 1)


def _entries(doc: str | None, section: str) -> dict[str, str]:
    """Return the entries of all sections of one name in a docstring, by what they describe."""
    lines = "".join(re.findall(rf"^    {section}:\n((?:        .*\n)+)", doc or "", re.MULTILINE))
    return {
        name: text for text, name in re.findall(r"^(        (\w+): .*\n(?:            .*\n)*)", lines, re.MULTILINE)
    }
