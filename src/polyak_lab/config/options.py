"""Keyword arguments as flags of the command line."""

import tomllib
from typing import Any

from tyro.conf import UseAppendAction

from polyak_lab.config.strict import shown
from polyak_lab.errors import LabError


def options_from_flags(
    lr: float | None = None,
    momentum: float | None = None,
    set: UseAppendAction[tuple[str, ...]] = (),
) -> dict[str, Any]:
    """Collect the keyword arguments that are given.

    Args:
        lr: Learning rate; for methods that read the loss, the cap on the step size.
        momentum: Momentum.
        set: Any other keyword argument of the optimizer, as KEY=VALUE: --set c=0.2 --set
            weight_decay=5e-4.
    """
    named = {key: value for key, value in {"lr": lr, "momentum": momentum}.items() if value is not None}
    parsed = _parse_all(set, "--set")
    for key in named.keys() & parsed.keys():
        raise LabError(f"--{key} {named[key]:g} and --set {key}={shown(parsed[key])} are given: write one of them.")
    return named | parsed


def data_options(data_set: UseAppendAction[tuple[str, ...]] = ()) -> dict[str, Any]:
    """Collect the keyword arguments of the user's own data.

    Args:
        data_set: A keyword argument of your own data, as KEY=VALUE.
    """
    return _parse_all(data_set, "--data-set")


def model_options(model_set: UseAppendAction[tuple[str, ...]] = ()) -> dict[str, Any]:
    """Collect the keyword arguments of the user's own model.

    Args:
        model_set: A keyword argument of your own network, as KEY=VALUE.
    """
    return _parse_all(model_set, "--model-set")


def objective_options(objective_set: UseAppendAction[tuple[str, ...]] = ()) -> dict[str, Any]:
    """Collect the keyword arguments of the user's own loss.

    Args:
        objective_set: A keyword argument of your own loss, as KEY=VALUE.
    """
    return _parse_all(objective_set, "--objective-set")


def _parse_all(pairs: tuple[str, ...], flag: str) -> dict[str, Any]:
    """Parse KEY=VALUE as a recipe does."""
    options: dict[str, Any] = {}
    for pair in pairs:
        try:
            parsed = tomllib.loads(pair)
        except (ValueError, RecursionError) as error:
            raise _no_pair(pair, flag) from error
        if not parsed:
            raise _no_pair(pair, flag)
        for key in parsed.keys() & options.keys():
            raise LabError(f"{flag} gives {shown(key)} twice: write it once.")
        options |= parsed
    return options


def _no_pair(pair: str, flag: str) -> LabError:
    return LabError(f"{flag} {shown(pair)}: write KEY=VALUE, such as c=0.2 or nesterov=true.")
