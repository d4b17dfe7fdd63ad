"""The curves of a report as inline SVG, whose ink follows the colours of the page."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from polyak_lab.report.table import Group, mean

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#999933", "#7f7f7f", "#b2182b")
INK, LINE = "#010203", "#040506"  # stand-ins in the SVG for the page's own colours
THEME = {INK: "var(--soft)", LINE: "var(--line)"}
SMALLEST, LARGEST = 1e-150, 1e150  # what an axis shows, also in logarithms and with its margin


@dataclass(frozen=True)
class Curve:
    """What is drawn over the epochs."""

    title: str
    caption: str
    key: str
    log: bool = False
    factor: float = 1.0


CURVES = (
    Curve("Training loss", "Mean over the samples of an epoch, on a logarithmic axis.", "train_loss", log=True),
    Curve("Test accuracy, %", "After each epoch. The axis leaves out the start.", "test_accuracy", factor=100.0),
    Curve("Test loss", "After each epoch, on a logarithmic axis.", "test_loss", log=True),
    Curve(
        "Step size",
        "Mean over the steps of an epoch, on a logarithmic axis. Dashed: the cap of a method that reads the loss.",
        "step_size",
        log=True,
    ),
)


def drawable(rows: Sequence[Group]) -> list[Curve]:
    """Choose the curves that have a value to show: test loss only where there is no accuracy."""
    shown = [curve for curve in CURVES if any(_values(group, curve) for group in rows)]
    has_accuracy = any(curve.key == "test_accuracy" for curve in shown)
    return [curve for curve in shown if not (has_accuracy and curve.key == "test_loss")]


def colour(index: int) -> str:
    """Choose the colour of a row."""
    return PALETTE[index % len(PALETTE)]


def clipped(value: float) -> float:
    """Move a number to the nearest one that an axis can show."""
    size = min(max(abs(value), SMALLEST), LARGEST)
    return math.copysign(size, value) if value else value


def draw(curve: Curve, rows: Sequence[Group]) -> str:
    """Draw one curve of every row."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": curve.key, "font.size": 10}):
        figure = Figure(figsize=(9.6, 3.2))
        axes = figure.add_axes((0.07, 0.15, 0.86, 0.82))  # the same in every figure, so that the epochs line up
        _dress(axes, curve)
        for index, group in enumerate(rows):
            _draw_row(axes, curve, group, colour(index))
        if curve.key == "step_size":
            _draw_caps(axes, rows)
        _set_limits(axes, curve, rows)
        return _as_inline_svg(figure, curve)


def _draw_row(axes: Axes, curve: Curve, group: Group, shade: str) -> None:
    band = _values(group, curve)
    if not band:
        return
    epochs = range(1, len(band) + 1)
    axes.plot(epochs, [mean(seeds) for seeds in band], color=shade, linewidth=1.9, solid_capstyle="round")
    low, high = [min(seeds) for seeds in band], [max(seeds) for seeds in band]
    axes.fill_between(epochs, low, high, color=shade, alpha=0.16, linewidth=0)


def _draw_caps(axes: Axes, rows: Sequence[Group]) -> None:
    """Draw every cap once, in the colour of its row, or in neutral ink if several rows share it."""
    caps: dict[float, str] = {}
    for index, group in enumerate(rows):
        for cap in {
            clipped(run.records[-1]["lr"]) for run in group.runs if run.records and _is_capped(run.records[-1])
        }:
            caps[cap] = INK if cap in caps else colour(index)
    for cap, shade in caps.items():
        axes.axhline(cap, color=shade, linestyle=(0, (5, 4)), linewidth=1.3)
        place = axes.get_yaxis_transform()
        axes.annotate(f"cap {cap:g}", (1, cap), (6, 0), place, "offset points", color=INK, va="center")


def _is_capped(record: Mapping[str, Any]) -> bool:
    return record["capped"] is not None and 0 < record["lr"] < math.inf


def _set_limits(axes: Axes, curve: Curve, rows: Sequence[Group]) -> None:
    shown = {float(value) for line in axes.lines for value in np.asarray(line.get_ydata())}
    if not curve.log:
        _leave_out_the_start(axes, curve, rows)
    elif len(shown) == 1:  # a logarithmic axis finds no width for one value by itself
        (value,) = shown
        axes.set_autoscaley_on(False)
        axes.set_ylim(value / 3, value * 3)


def _leave_out_the_start(axes: Axes, curve: Curve, rows: Sequence[Group]) -> None:
    """Begin the axis where the first quarter of the epochs has led: the first values would flatten the rest."""
    bands = [_values(group, curve) for group in rows]
    later = [value for band in bands for seeds in band[len(band) // 4 :] for value in seeds]
    if later and max(later) > min(later):
        axes.set_ylim(min(later) - 0.05 * (max(later) - min(later)))


def _values(group: Group, curve: Curve) -> list[list[float]]:
    """Collect the finite values of all seeds, epoch by epoch, up to the first epoch that no seed has."""
    band = []
    for epoch in range(max((len(run.records) for run in group.runs), default=0)):
        found = [run.records[epoch].get(curve.key) for run in group.runs if epoch < len(run.records)]
        seeds = [clipped(curve.factor * value) for value in found if value is not None and _drawable(value, curve)]
        if not seeds:
            break
        band.append(seeds)
    return band


def _drawable(value: float, curve: Curve) -> bool:
    return math.isfinite(value) and (value > 0 or not curve.log)


def _dress(axes: Axes, curve: Curve) -> None:
    if curve.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=7))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("epoch", color=INK)
    axes.margins(x=0.01)
    axes.tick_params(colors=INK, length=0, pad=6)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINE)


def _as_inline_svg(figure: Figure, curve: Curve) -> str:
    """Take the <svg> element alone: its metadata, name spaces and fixed colours do not belong in a page."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = re.sub(r"\s*<metadata>.*?</metadata>|<!--.*?-->", "", text.getvalue(), flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg[svg.index("<svg") :])
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)
    for stand_in, themed in THEME.items():
        svg = svg.replace(stand_in, themed)
    return svg.replace("<svg", f'<svg role="img" aria-label="{curve.title} over the epochs"', 1)
