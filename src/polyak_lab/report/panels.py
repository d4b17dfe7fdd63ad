"""The panels of a picture: the rows of each data set, and the lines that they become."""

import json
import math
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from polyak_lab.report.table import Group, paper_score

LR = re.compile(r"lr (inf|[\d.]+(e[+-]?\d+)?)")
Lines = dict[str, tuple[str, dict[float, list[float]]]]
"""For each name its method, and the values of all seeds at each x."""


@dataclass(frozen=True)
class Panel:
    """The rows of a data set."""

    title: str
    rows: list[Group]
    hidden: frozenset[str] = frozenset()
    """The parts of the rows' names that the lines do not repeat, as letters."""


def by_data(rows: Sequence[Group]) -> list[Panel]:
    """Put the rows of a data set together, titled by its name and the options that tell apart two of one name.

    What the names of a panel's rows, and of no others, have in common, such as a task, is written in its title.
    """
    found: dict[str, list[Group]] = {}
    for group in rows:
        found.setdefault(json.dumps(_data(group), sort_keys=True), []).append(group)
    if len(found) < 2:
        return [Panel(str(_data(members[0])["name"]), members) for members in found.values()]
    panels = [*found.values()]
    names = [str(_data(first)["name"]) for first, *_ in panels]
    same_name = [[_data(other[0]) for other, name in zip(panels, names, strict=True) if name == own] for own in names]
    titles = [_title(_data(panel[0]), others) for panel, others in zip(panels, same_name, strict=True)]
    data = [{_letters(text) for text in _texts(_data(first))} for first, *_ in panels]
    return [
        Panel(_with_parts(title, panel[0], common - shown), panel, frozenset(shown | common))
        for title, panel, shown, common in zip(titles, panels, data, _common_parts(panels, data), strict=True)
    ]


def _common_parts(panels: Sequence[list[Group]], data: Sequence[set[str]]) -> list[set[str]]:
    """Return the parts that all names of a panel have and no others, where rows without them are in other panels."""
    names = [[set(map(_letters, _parts(group))) for group in panel] for panel in panels]
    everywhere = [set.union(*parts) for parts in names]
    common = []
    for place, parts in enumerate(names):
        others = set[str]().union(*(every for other, every in enumerate(everywhere) if other != place))
        common.append(set.intersection(*parts) - others)
    left = [
        {frozenset(part - own - shown) for part in parts} - {frozenset()}
        for parts, own, shown in zip(names, common, data, strict=True)
    ]
    return [
        own if any(left[place] & other for index, other in enumerate(left) if index != place) else set()
        for place, own in enumerate(common)
    ]


def _with_parts(title: str, group: Group, parts: set[str]) -> str:
    """Add the parts of a row's name to a title that does not say them."""
    added = ", ".join(part for part in _parts(group) if _letters(part) in parts and part not in title)
    return f"{title} ({added})" if added else title


def _parts(group: Group) -> list[str]:
    """Split the name of a row, and leave out its lr."""
    return [part for part in group.row.split(", ") if not LR.fullmatch(part)]


def scores_by_lr(rows: Sequence[Group], hidden: Set[str] = frozenset()) -> Lines:
    """Collect for each method the name of its optimizer and its scores by lr."""
    score = paper_score(rows)
    methods: Lines = {}
    for group in rows:
        lr = _lr(group)
        values = [value for value in score.values(group) if math.isfinite(value)]
        if values and 0 < lr < math.inf:
            name = _line_name(group, hidden, without_lr=True)
            methods.setdefault(name, (_method(group), {}))[1].setdefault(lr, []).extend(values)
    return methods


def losses(rows: Sequence[Group], hidden: Set[str] = frozenset()) -> Lines:
    """Collect the training losses of every row by epoch."""
    lines: Lines = {}
    for group in rows:
        name = _line_name(group, hidden, without_lr=False)
        _, points = lines.setdefault(name, (_method(group), {}))
        for record in (record for run in group.runs for record in run.records):
            if 0 < record["train_loss"] < math.inf:
                points.setdefault(record["epoch"], []).append(record["train_loss"])
    return lines


def _line_name(group: Group, hidden: Set[str], *, without_lr: bool) -> str:
    """Name the line of a row: its name without the parts that the panel or the axis shows."""
    parts = _parts(group) if without_lr else group.row.split(", ")
    return ", ".join(part for part in parts if _letters(part) not in hidden) or group.row


def _lr(group: Group) -> float:
    """Read lr, which is stored as 'inf' where there is no cap; NaN where the method has none."""
    lr = group.runs[0].config["optimizer"]["options"].get("lr")
    try:
        return float(lr)
    except (TypeError, ValueError):
        return math.nan


def _method(group: Group) -> str:
    return str(group.runs[0].config["optimizer"]["name"])


def _data(group: Group) -> Mapping[str, Any]:
    data = group.runs[0].config.get("data", {})
    return {"name": "", **{key: value for key, value in data.items() if key != "sha256"}}


def _title(data: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    differing = [key for key in data if len({repr(other.get(key)) for other in others}) > 1]
    return ", ".join([str(data["name"]), *(f"{key} {data[key]}" for key in differing)])


def _texts(data: Mapping[str, Any]) -> list[str]:
    return [str(data["name"]), *(f"{key} {value}" for key, value in data.items() if key != "name")]


def _letters(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum() or letter == ".")
