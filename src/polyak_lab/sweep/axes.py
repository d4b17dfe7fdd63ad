"""The axes of a sweep: which values of each option are tried."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from polyak_lab.config.run import BALLS, NONE, Run
from polyak_lab.config.strict import read
from polyak_lab.errors import LabError


@dataclass(frozen=True)
class Interval:
    """An axis from `low` to `high`, in logarithms if `log`."""

    low: float
    high: float
    log: bool = False


Axis = Interval | list[Any]


def read_axes(declared: Mapping[str, Any], where: str) -> dict[str, Axis]:
    """Read the axes that a recipe declares, and refuse those that hold no values."""
    return {name: _axis(axis, f"{where}.{name}") for name, axis in declared.items()}


def check_values(
    axes: Mapping[str, Axis],
    base: Run,
    resolve: Callable[[Run], Run],
    where: str,
) -> None:
    """Refuse unknown options and values out of range, before the first trial."""
    for name, axis in axes.items():
        for value in [axis.low, axis.high] if isinstance(axis, Interval) else axis:
            try:
                resolve(with_values(base, {name: value}))
            except LabError as error:
                raise LabError(f"{where}.{name} = {value!r}: {error}") from error


def combinations(axes: Mapping[str, Axis], most: int) -> list[dict[str, Any]]:
    """Return every combination of the axes' values; none if there are more than `most`, or an axis is an interval."""
    lists = [axis for axis in axes.values() if isinstance(axis, list)]
    if len(lists) < len(axes) or math.prod(map(len, lists)) > most:
        return []
    return [dict(zip(axes, values, strict=True)) for values in product(*lists)]


def with_values(run: Run, values: Mapping[str, Any]) -> Run:
    """Give a run the values of a trial."""
    options = {key: value for key, value in values.items() if key not in BALLS}
    balls: dict[str, Any] = {key: None if values[key] == NONE else values[key] for key in BALLS if key in values}
    optimizer = replace(run.optimizer, **balls, options={**run.optimizer.options, **options})
    return replace(run, optimizer=optimizer)


def _axis(declared: Any, where: str) -> Axis:
    if isinstance(declared, list):
        return _choices(declared, where)
    if isinstance(declared, Mapping):
        return _interval(read(Interval, declared, where), where)
    raise LabError(f"{where} is {declared!r}, but must be a list of values or a table: {{ low = 0.01, high = 1.0 }}.")


def _choices(values: list[Any], where: str) -> list[Any]:
    for value in values:
        if not isinstance(value, (bool, int, float, str)) or value != value:
            raise LabError(f"{where} holds {value!r}, but values must be numbers, strings, true or false.")
    if not values:
        raise LabError(f"{where} is empty: name the values to try.")
    return values


def _interval(axis: Interval, where: str) -> Interval:
    if not (math.isfinite(axis.low) and math.isfinite(axis.high) and axis.low <= axis.high):
        raise LabError(f"{where} goes from {axis.low} to {axis.high}, but needs finite numbers with low <= high.")
    if axis.log and axis.low <= 0:
        raise LabError(f"{where} begins at {axis.low}, but with log = true low must be above 0.")
    return axis
