"""Grids: a row repeated with every combination of the values that `[grid]` lists.

A key is an option of the optimizers, `lr = [0.1, 1.0]`, another section of a row, `data =
["digits", "fashion-mnist"]`, or `task`, whose values are several sections under one name. The `grid`
of a row replaces that of the file.
"""

import difflib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from polyak_lab.config.strict import LARGEST_FLOAT32, as_table, is_float32, is_number, shown
from polyak_lab.errors import LabError

SECTIONS = ("data", "model", "schedule", "training", "objective")
TASK = "task"
"""All other keys of a grid are options of the optimizer."""
MOST_ROWS = 10_000
NUMBERS = f"numbers of at most {LARGEST_FLOAT32:g}, not NaN, such as [0.5, 0.9]"
WANTED = {
    "lr": "numbers, such as [0.1, 1.0]",
    TASK: 'tables with a name and sections, such as {name = "small", data = "digits", model = "mlp"}',
}


def on_grid(
    row: Mapping[str, Any], grid: Mapping[str, Any], defaults: Mapping[str, Any], where: str
) -> Iterator[Mapping[str, Any]]:
    """Repeat a row with every combination of the grid's values; its name says which."""
    own = {key: value for key, value in row.items() if key != "grid"}
    grid = _as_grid(row["grid"], where) if "grid" in row else grid
    if not grid:
        yield own
        return
    if not isinstance(row.get("name"), str):
        raise LabError(f"{where}: every [[row]] needs a name.")
    axes = [_axis(key, values, f"{where}: [grid]") for key, values in grid.items()]
    _refuse_overlaps(grid, f"{where}: [grid]")
    if math.prod(map(len, axes)) > MOST_ROWS:
        raise LabError(
            f"{where}: [grid] has {math.prod(map(len, axes))} combinations, but at most {MOST_ROWS} are run."
        )
    for point in itertools.product(*axes):
        yield _at(own, dict(zip(grid, point, strict=True)), defaults, where)


def _as_grid(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise LabError(f"{where}: grid is {shown(value)}, but must be a table, such as {{ lr = [0.1, 1.0] }}.")
    return value


def _axis(key: str, values: Any, where: str) -> Sequence[Any]:
    if not isinstance(values, list) or not values or not all(_is_value(key, value) for value in values):
        wanted = "names or tables, as a row has them" if key in SECTIONS else "values, such as [0.5, 0.9]"
        wanted = NUMBERS if _has_wrong_number(key, values) else WANTED.get(key, wanted)
        raise LabError(f"{where} {key} is {shown(values)}, but must be a list of {wanted}.")
    for value in values if key == TASK else ():
        _check_task(value, f"{where} task")
    return values


def _has_wrong_number(key: str, values: Any) -> bool:
    """Return whether a list of an option's values holds a number that no option can have."""
    if key == TASK or key in SECTIONS or not isinstance(values, list):
        return False
    parts = [part for value in values for part in (value if isinstance(value, list) else [value])]
    return any(is_number(part) and not _is_value(key, part) for part in parts)


def _check_task(task: Mapping[str, Any], where: str) -> None:
    """Refuse a task without a name or sections, and name the key that is wrong."""
    name = task.get("name")
    if not isinstance(name, str) or not name.strip():
        given = shown(name) if "name" in task else "missing"
        raise LabError(f'{where}: the name is {given}, but must be a text, such as name = "small".')
    where = f"{where} {shown(name)}"
    sections = {key: value for key, value in task.items() if key != "name"}
    for key, value in sections.items():
        if key not in SECTIONS:
            nearest = difflib.get_close_matches(key, SECTIONS, n=1, cutoff=0.75)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(SECTIONS)}."
            raise LabError(f"{where}: {shown(key)} is no section of a task; {hint}")
        if not _is_value(key, value):
            raise LabError(f"{where}: {key} is {shown(value)}, but must be a name, or a table with keys.")
    if not sections:
        raise LabError(f'{where} has no section: write what it trains, such as data = "digits".')


def _refuse_overlaps(grid: Mapping[str, Any], where: str) -> None:
    """Refuse a section that a task would replace, since the name of the row would still say it."""
    for section in SECTIONS:
        axis = grid.get(section, ())
        for task in grid.get(TASK, ()) if axis else ():
            own = task.get(section, {})
            both = {key for value in axis if isinstance(value, Mapping) for key in value} & {*as_table(own, section)}
            if own and (both or isinstance(own, str) or any(isinstance(value, str) for value in axis)):
                raise LabError(
                    f"{where} {section} and the {section} of the task {shown(task['name'])} replace each other: "
                    "write one of them."
                )


def _is_value(key: str, value: Any) -> bool:
    if key == TASK:
        return isinstance(value, Mapping)
    if key in SECTIONS:
        return isinstance(value, (str, Mapping)) and bool(value)
    if key == "lr" or is_number(value):
        return is_number(value) and is_float32(value) and value == value
    if isinstance(value, list):
        return bool(value) and all(is_number(item) and _is_value(key, item) for item in value)
    return isinstance(value, (bool, str))


def _at(row: Mapping[str, Any], point: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Lay a point of the grid over a row."""
    repeated = {**row, "name": ", ".join([row["name"], *(_label(key, value) for key, value in point.items())])}
    for key, value in point.items():
        sections = value if key == TASK else {key: value}
        for section in sections.keys() & set(SECTIONS):
            repeated[section] = _over(repeated.get(section, {}), sections[section], f"{where}: {section}")
        if key != TASK and key not in SECTIONS:
            optimizer = repeated.get("optimizer", defaults.get("optimizer", {}))
            repeated["optimizer"] = {**as_table(optimizer, f"{where}: optimizer"), key: value}
    return repeated


def _over(own: Any, value: Any, where: str) -> Any:
    """Lay a section over that of a row; a string replaces it, as in a row."""
    return value if isinstance(value, str) else {**as_table(own, where), **value}


def _label(key: str, value: Any) -> str:
    """Name a value in the name of its row: an option by key and value, a section by its name and other keys."""
    if key == TASK:
        return str(value["name"])
    if key not in SECTIONS:
        return f"{key} {_text(value)}"
    table = as_table(value, key)
    name = [_text(table["name"])] if "name" in table else []
    return ", ".join([*name, *(f"{k} {_text(item)}" for k, item in table.items() if k != "name")])


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_text, value))
    if isinstance(value, Mapping):
        return " ".join(f"{key} {_text(item)}" for key, item in value.items())
    return f"{value:g}" if is_number(value) else str(value).lower() if isinstance(value, bool) else str(value)
