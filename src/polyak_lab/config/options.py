"""The keyword arguments of an optimizer as flags of the command line."""

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
    named = {"lr": lr, "momentum": momentum}
    options = {key: value for key, value in named.items() if value is not None}
    for pair in set:
        options |= _parse(pair)
    return options


def _parse(pair: str) -> dict[str, Any]:
    """Parse KEY=VALUE as a recipe does."""
    try:
        parsed = tomllib.loads(pair)
    except (ValueError, RecursionError) as error:
        raise _no_pair(pair) from error
    if not parsed:
        raise _no_pair(pair)
    return parsed


def _no_pair(pair: str) -> LabError:
    return LabError(f"--set {shown(pair)}: write KEY=VALUE, such as c=0.2 or nesterov=true.")
