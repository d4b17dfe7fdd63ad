"""The curves of a report: what is drawn over the epochs, as plain numbers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyak_lab.console import printable
from polyak_lab.report.statistics import mean
from polyak_lab.report.table import Group

PALETTE = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"),
    *("#56b4e9", "#8c6bb1", "#999933", "#7f7f7f", "#b2182b"),
)
# What an axis can show, also on a logarithmic scale and with its margin.
SMALLEST, LARGEST = 1e-150, 1e150
DIGITS = 5  # of a number in the page

Points = dict[float, list[float]]
"""The values of all seeds at each x."""


@dataclass(frozen=True)
class Curve:
    """A quantity that is drawn over the epochs."""

    title: str
    caption: str
    key: str
    log: bool = False
    factor: float = 1.0
    trimmed: bool = False
    """Whether the axis leaves out the first quarter of the epochs."""

    def points(self, group: Group) -> Points:
        """Collect the values of all seeds by epoch, up to the first epoch without a drawable one."""
        points: Points = {}
        for epoch in range(max((len(run.records) for run in group.runs), default=0)):
            records = [run.records[epoch] for run in group.runs if epoch < len(run.records)]
            values = [record.get(self.key) for record in records]
            drawn = [clipped(self.factor * x) for x in values if x is not None and self._is_drawable(x)]
            if not drawn:
                break
            points[epoch + 1] = drawn
        return points

    def _is_drawable(self, value: float) -> bool:
        return math.isfinite(value) and (value > 0 or not self.log)


CURVES = (
    Curve("Training loss", "Mean over the samples of an epoch, on a logarithmic axis.", "train_loss", log=True),
    Curve(
        "Test accuracy, %",
        "After each epoch; the axis leaves out the start.",
        "test_accuracy",
        factor=100.0,
        trimmed=True,
    ),
    Curve("Test loss", "After each epoch, on a logarithmic axis.", "test_loss", log=True),
    Curve("Test perplexity", "exp(loss) after each epoch, on a logarithmic axis.", "test_perplexity", log=True),
    Curve(
        "Step size",
        "Mean over the steps of an epoch, on a logarithmic axis. Dashed: the cap of a method that reads the loss.",
        "step_size",
        log=True,
    ),
    Curve("Capped steps, %", "The steps of an epoch whose size was the cap lr.", "capped", factor=100.0),
    Curve(
        "Gradient norm",
        "Mean over the steps of an epoch, on a logarithmic axis, for methods that measure it: those that read the "
        "loss, in their own norm, and clipped ones.",
        "gradient_norm",
        log=True,
    ),
    Curve("Weight norm", "At the end of each epoch. Dashed: the radius of the ball.", "weight_norm"),
)


def curves(rows: Sequence[Group]) -> list[Curve]:
    """Choose the curves that have a value to show: test loss only if it is all that some row has."""
    shown = [curve for curve in CURVES if any(curve.points(group) for group in rows)]
    accuracy = next((curve for curve in shown if curve.key == "test_accuracy"), None)
    all_have_it = accuracy is not None and all(accuracy.points(group) for group in rows if group.runs[0].records)
    return [curve for curve in shown if not (all_have_it and curve.key == "test_loss")]


def colour(index: int) -> str:
    """Choose the colour of a row."""
    return PALETTE[index % len(PALETTE)]


def is_dashed(index: int) -> bool:
    """Whether a row's line is dashed, since an earlier row has its colour."""
    return index // len(PALETTE) % 2 == 1


def clipped(value: float) -> float:
    """Move a number to the nearest one that an axis can show."""
    size = min(max(abs(value), SMALLEST), LARGEST)
    return math.copysign(size, value) if value else value


def page_data(rows: Sequence[Group]) -> dict[str, Any]:
    """Return what the script of the page draws, as JSON: the rows, and for each curve the values by epoch."""
    names = [
        {"name": printable(group.row), "colour": colour(index), "dashed": is_dashed(index)}
        for index, group in enumerate(rows)
    ]
    return {"rows": names, "charts": [_chart(curve, rows) for curve in curves(rows)]}


def _chart(curve: Curve, rows: Sequence[Group]) -> dict[str, Any]:
    values = [curve.points(group) for group in rows]
    epochs = int(max(max(points, default=0) for points in values))
    chart = {"title": curve.title, "caption": curve.caption, "log": curve.log, "trimmed": curve.trimmed}
    chart |= {"epochs": epochs, "lines": _lines(curve, rows)}
    return chart | {"rows": [_series(points) for points in values]}


def _series(points: Points) -> dict[str, list[float]]:
    """Return the mean over the seeds, and the smallest and largest value where there are several."""
    found = {"mean": [_rounded(mean(values)) for values in points.values()]}
    if any(len(values) > 1 for values in points.values()):
        found["low"] = [_rounded(min(values)) for values in points.values()]
        found["high"] = [_rounded(max(values)) for values in points.values()]
    return found


def _lines(curve: Curve, rows: Sequence[Group]) -> list[dict[str, Any]]:
    """Return the levels that bound a curve, each with the rows that it bounds."""
    name, level = {"step_size": ("cap", _cap), "weight_norm": ("radius", _radius)}.get(curve.key, ("", _no_level))
    found: dict[float, list[int]] = {}
    for index, group in enumerate(rows):
        levels = {level(group, run.records[-1]) for run in group.runs if run.records}
        for value in (value for value in levels if value is not None):
            found.setdefault(clipped(value), []).append(index)
    return [{"label": f"{name} {value:g}", "value": value, "rows": bounded} for value, bounded in found.items()]


def _cap(group: Group, record: Mapping[str, Any]) -> float | None:
    lr = record["lr"]
    return lr if record["capped"] is not None and 0 < lr < math.inf else None


def _radius(group: Group, record: Mapping[str, Any]) -> float | None:
    """Return the radius, which a run with a relative one records."""
    radius = record.get("ball_radius", group.runs[0].config["optimizer"].get("l2_ball"))
    return float(radius) if radius is not None and 0 < float(radius) < math.inf else None


def _no_level(group: Group, record: Mapping[str, Any]) -> None:
    return None


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
