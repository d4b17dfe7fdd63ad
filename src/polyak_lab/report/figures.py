"""Figures of runs: curves as inline SVG for a page, and single PNG or SVG files."""

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from polyak_lab.console import printable, shortened
from polyak_lab.errors import LabError
from polyak_lab.files import write_atomic
from polyak_lab.report.panels import Lines, by_data, losses, scores_by_lr
from polyak_lab.report.statistics import mean
from polyak_lab.report.table import Group, paper_score

PALETTE = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"),
    *("#56b4e9", "#8c6bb1", "#999933", "#7f7f7f", "#b2182b"),
)
INK, LINE = "#010203", "#040506"  # placeholders in the SVG for the page's own colours
THEME = {INK: "var(--soft)", LINE: "var(--line)"}
# What an axis can show, also on a logarithmic scale and with its margin.
SMALLEST, LARGEST = 1e-150, 1e150
FORMATS = (".png", ".svg")
LEGEND_WIDTH = 120  # characters side by side
DASHED = ("sgd", "adam", "adamw")  # methods that do not read the loss

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
    Curve("Test accuracy, %", "After each epoch. The axis leaves out the start.", "test_accuracy", factor=100.0),
    Curve("Test loss", "After each epoch, on a logarithmic axis.", "test_loss", log=True),
    Curve(
        "Step size",
        "Mean over the steps of an epoch, on a logarithmic axis. Dashed: the cap of a method that reads the loss.",
        "step_size",
        log=True,
    ),
)


def curves(rows: Sequence[Group]) -> list[Curve]:
    """Choose the curves that have a value to show: test loss only where there is no accuracy."""
    shown = [curve for curve in CURVES if any(curve.points(group) for group in rows)]
    has_accuracy = any(curve.key == "test_accuracy" for curve in shown)
    return [curve for curve in shown if not (has_accuracy and curve.key == "test_loss")]


def colour(index: int) -> str:
    """Choose the colour of a row."""
    return PALETTE[index % len(PALETTE)]


def clipped(value: float) -> float:
    """Move a number to the nearest one that an axis can show."""
    size = min(max(abs(value), SMALLEST), LARGEST)
    return math.copysign(size, value) if value else value


def inline_svg(curve: Curve, rows: Sequence[Group]) -> str:
    """Draw a curve of every row as an <svg> element."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": curve.key, "font.size": 10}):
        figure = Figure(figsize=(9.6, 3.2))
        # The same in every figure, so that the epochs line up.
        axes = figure.add_axes((0.07, 0.15, 0.86, 0.82))
        _style_axes(axes, curve)
        for index, group in enumerate(rows):
            _draw_line(axes, index, curve.points(group), linewidth=1.9, solid_capstyle="round")
        if curve.key == "step_size":
            _draw_caps(axes, rows)
        _set_limits(axes, curve, rows)
        return _svg_element(figure, curve)


def write_sensitivity(path: Path, rows: Sequence[Group]) -> None:
    """Draw scores against lr, a panel per data set; rows whose names differ only in ', lr VALUE' are one method."""
    panels = by_data(rows)
    lines = {name: scores_by_lr(members, without_data=len(panels) > 1) for name, members in panels.items()}
    if max((len(points) for panel in lines.values() for _, points in panel.values()), default=0) < 2:
        raise LabError("--plot-lr needs runs of one method with two or more finite values of lr.")

    def draw(axes: Axes, name: str) -> None:
        axes.set_xscale("log")
        axes.set_ylabel(paper_score(panels[name]).title)

    label = "lr: the learning rate; for methods that read the loss (solid lines) the cap on the step size"
    _save(path, lines, draw, label, marker="o")


def write_losses(path: Path, rows: Sequence[Group]) -> None:
    """Draw the training loss of every row over the epochs, a panel per data set."""
    panels = by_data(rows)
    lines = {name: losses(members, without_data=len(panels) > 1) for name, members in panels.items()}
    if not any(points for panel in lines.values() for _, points in panel.values()):
        raise LabError("--plot-loss needs an epoch whose training loss is positive and finite: no run has one yet.")

    def draw(axes: Axes, name: str) -> None:
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("training loss, mean over the epoch")

    _save(path, lines, draw, "epoch")


def _draw_line(axes: Axes, index: int, points: Points, alpha: float = 0.16, **style: Any) -> None:
    """Draw the mean over the seeds, and a band from the smallest to the largest value."""
    xs = sorted(points)
    if not xs:
        return
    axes.plot(xs, [mean(points[x]) for x in xs], color=colour(index), **style)
    low, high = [min(points[x]) for x in xs], [max(points[x]) for x in xs]
    axes.fill_between(xs, low, high, color=colour(index), alpha=alpha, linewidth=0)


def _draw_caps(axes: Axes, rows: Sequence[Group]) -> None:
    """Draw every cap once, in the colour of its row, or in neutral ink if several rows share it."""
    colours: dict[float, str] = {}
    for index, group in enumerate(rows):
        last = [run.records[-1] for run in group.runs if run.records]
        for cap in {clipped(record["lr"]) for record in last if _is_capped(record)}:
            colours[cap] = INK if cap in colours else colour(index)
    for cap, shade in colours.items():
        axes.axhline(cap, color=shade, linestyle=(0, (5, 4)), linewidth=1.3)
        place = axes.get_yaxis_transform()
        axes.annotate(f"cap {cap:g}", (1, cap), (6, 0), place, "offset points", color=INK, va="center")


def _is_capped(record: Mapping[str, Any]) -> bool:
    return record["capped"] is not None and 0 < record["lr"] < math.inf


def _set_limits(axes: Axes, curve: Curve, rows: Sequence[Group]) -> None:
    values = {float(value) for line in axes.lines for value in np.asarray(line.get_ydata())}
    if not curve.log:
        _leave_out_the_start(axes, curve, rows)
    elif len(values) == 1:  # a logarithmic axis does not choose a range around a single value
        (value,) = values
        axes.set_autoscaley_on(False)
        axes.set_ylim(value / 3, value * 3)


def _leave_out_the_start(axes: Axes, curve: Curve, rows: Sequence[Group]) -> None:
    """Start the axis at the values after the first quarter of the epochs."""
    later: list[float] = []
    for seeds in (list(curve.points(group).values()) for group in rows):
        later += [value for values in seeds[len(seeds) // 4 :] for value in values]
    if later and max(later) > min(later):
        axes.set_ylim(min(later) - 0.05 * (max(later) - min(later)))


def _style_axes(axes: Axes, curve: Curve) -> None:
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


def _svg_element(figure: Figure, curve: Curve) -> str:
    """Return the <svg> element without metadata, name spaces and fixed colours."""
    text = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(text, format="svg", transparent=True, metadata=no_metadata)
    svg = re.sub(r"\s*<metadata>.*?</metadata>|<!--.*?-->", "", text.getvalue(), flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg[svg.index("<svg") :])
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)
    for placeholder, themed in THEME.items():
        svg = svg.replace(placeholder, themed)
    return svg.replace("<svg", f'<svg role="img" aria-label="{curve.title} over the epochs"', 1)


def _save(
    path: Path,
    panels: Mapping[str, Lines],
    draw: Callable[[Axes, str], None],
    label: str,
    marker: str | None = None,
) -> None:
    """Write a figure without date and version, so that the same runs give the same file."""
    if path.suffix not in FORMATS:
        raise LabError(f"The picture {path} must be a file that ends in {' or '.join(FORMATS)}.")
    panels = {title: lines for title, lines in panels.items() if any(points for _, points in lines.values())}
    colours = {name: index for index, name in enumerate(dict.fromkeys(n for lines in panels.values() for n in lines))}
    with matplotlib.rc_context({"svg.hashsalt": "polyak", "font.size": 11}), warnings.catch_warnings():
        # A glyph that the font does not have is drawn as a box.
        warnings.filterwarnings("ignore", message=r"(?s)Glyph .* missing from")
        figure, all_axes = _subplots(len(panels))
        for axes, (title, lines) in zip(all_axes, panels.items(), strict=True):
            draw(axes, title)
            axes.set_title(printable(title) if len(panels) > 1 else "", parse_math=False)
            axes.grid(axis="y", linewidth=0.5, alpha=0.5)
            axes.spines[["top", "right"]].set_visible(False)
            for name, (method, points) in lines.items():
                style = "--" if method in DASHED else "-"
                shown = {clipped(x): [*map(clipped, values)] for x, values in points.items()}
                _draw_line(axes, colours[name], shown, alpha=0.13, linestyle=style, marker=marker, gid=name)
        figure.supxlabel(label, fontsize="medium")
        _add_legend(figure, {line.get_gid() or "": line for axes in all_axes for line in axes.lines})
        write_atomic(path, _rendered(figure, path.suffix))


def _subplots(count: int) -> tuple[Figure, list[Axes]]:
    """Make a figure with a panel for each data set, at most three side by side."""
    columns = min(count, 3)
    lines = math.ceil(count / columns)
    size = (9.6, 5.6) if count == 1 else (4.8 * columns, 3.9 * lines + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    return figure, [figure.add_subplot(lines, columns, place + 1) for place in range(count)]


def _add_legend(figure: Figure, lines: Mapping[str, Line2D]) -> None:
    """Add a legend with literal names; matplotlib interprets `$` and omits a leading `_`."""
    names = [*map(printable, lines)]
    columns = LEGEND_WIDTH // (max(map(len, names), default=0) + 8)
    options: dict[str, Any] = {"loc": "outside upper center", "fontsize": 10, "frameon": False}
    placeholders = [f"{number}" for number in range(len(names))]
    legend = figure.legend([*lines.values()], placeholders, ncols=min(4, max(1, columns)), **options)
    for text in legend.get_texts():
        text.set_parse_math(False)
    width = max(map(len, names), default=0)
    while True:  # letters differ in width, so only the drawn legend tells whether it fits
        for text, name in zip(legend.get_texts(), names, strict=True):
            text.set_text(shortened(name, width))
        figure.draw_without_rendering()
        excess = legend.get_window_extent().width / figure.bbox.width
        if excess <= 1 or width <= 1:
            return
        width = min(width - 1, int(width / excess))


def _rendered(figure: Figure, suffix: str) -> bytes:
    content = io.BytesIO()
    undated = {"Date": None} if suffix == ".svg" else {"Software": None}
    figure.savefig(content, format=suffix[1:], dpi=150, metadata=undated)
    return content.getvalue()
