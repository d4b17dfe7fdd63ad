"""The panels of a picture: the rows of each data set, and the lines that they become."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from polyak_lab.report.table import Group, paper_score

LR = re.compile(r"lr (inf|[\d.]+(e[+-]?\d+)?)")
Lines = dict[str, tuple[str, dict[float, list[float]]]]
"""For each name its method, and the values of all seeds at each x."""


def by_data(rows: Sequence[Group]) -> dict[str, list[Group]]:
    """Put the rows of a data set together under its name, with the options that tell apart two of one name."""
    found: dict[str, list[Group]] = {}
    for group in rows:
        found.setdefault(json.dumps(_data(group), sort_keys=True), []).append(group)
    panels = [*found.values()]
    names = [str(_data(first)["name"]) for first, *_ in panels]
    same_name = [[_data(other[0]) for other, name in zip(panels, names, strict=True) if name == own] for own in names]
    titles = [_title(_data(panel[0]), others) for panel, others in zip(panels, same_name, strict=True)]
    return dict(zip(titles, panels, strict=True))


def scores_by_lr(rows: Sequence[Group], *, without_data: bool = False) -> Lines:
    """Collect for each method the name of its optimizer and its scores by lr."""
    score = paper_score(rows)
    methods: Lines = {}
    for group in rows:
        lr = _lr(group)
        values = [value for value in score.values(group) if math.isfinite(value)]
        if values and 0 < lr < math.inf:
            name = _line_name(group, without_data=without_data, without_lr=True)
            methods.setdefault(name, (_method(group), {}))[1].setdefault(lr, []).extend(values)
    return methods


def losses(rows: Sequence[Group], *, without_data: bool = False) -> Lines:
    """Collect the training losses of every row by epoch."""
    lines: Lines = {}
    for group in rows:
        name = _line_name(group, without_data=without_data, without_lr=False)
        _, points = lines.setdefault(name, (_method(group), {}))
        for record in (record for run in group.runs for record in run.records):
            if 0 < record["train_loss"] < math.inf:
                points.setdefault(record["epoch"], []).append(record["train_loss"])
    return lines


def _line_name(group: Group, *, without_data: bool, without_lr: bool) -> str:
    """Name the line of a row: its name without the parts that the panel or the axis shows."""
    shown = {_letters(text) for text in _texts(_data(group))} if without_data else set()
    parts = [part for part in group.row.split(", ") if _letters(part) not in shown]
    if without_lr:
        parts = [part for part in parts if not LR.fullmatch(part)]
    return ", ".join(parts) or group.row


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
