"""The user's own networks, by import path."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from polyak_lab import imports
from polyak_lab.errors import RowError

BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def build(path: str, shape: tuple[int, ...], outputs: int | None, options: Mapping[str, Any]) -> nn.Module:
    """Call a function or a class with the shape of an input and the number of outputs, or without them.

    Parameters named `shape` and `outputs` are given by name. Otherwise two parameters without
    default are given by position; if there are none, it is called with the options alone.

    Raises:
        RowError: There is no such function, it takes other arguments, raises, or returns no module.
    """
    what = f"model {path!r}"
    builder = imports.load(path, "model")
    if not callable(builder):
        raise RowError(f"{what} is no function or class that returns a module.")
    imports.check_options(builder, options, what)
    positional, named = _arguments(builder, shape, outputs, options, what)
    if outputs is None and (positional or "outputs" in named):
        raise RowError(f"{what} needs the number of outputs, which the data does not tell: write data.outputs.")
    with imports.own_code(what):
        model = builder(*positional, **named)
    if not isinstance(model, nn.Module):
        raise RowError(f"{what} returned {type(model).__name__}, not a torch.nn.Module.")
    return model


def _arguments(
    builder: Callable[..., Any], shape: tuple[int, ...], outputs: int | None, options: Mapping[str, Any], what: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and the named arguments of a builder."""
    parameters = imports.parameters_of(builder)
    given = {"shape": shape, "outputs": outputs}
    named = {name: value for name, value in given.items() if name in parameters} | dict(options)
    needed = [
        parameter
        for name, parameter in parameters.items()
        if name not in named and parameter.default is parameter.empty and parameter.kind not in VARIADIC
    ]
    if not needed:
        return (), named
    if len(needed) == 2 and not given.keys() & named.keys() and all(p.kind in BY_POSITION for p in needed):
        return (shape, outputs), named
    names = ", ".join(parameter.name for parameter in needed)
    raise RowError(
        f"{what} needs {names[:80]}: it must take (shape, outputs) or nothing without default; write the others as "
        "model.options."
    )
