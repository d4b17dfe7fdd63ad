"""What `polyak watch` shows: one run with its curves, or a line for each of several."""

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from polyak_lab.console import capped_share, cell
from polyak_lab.report.curves import CURVES
from polyak_lab.runs.stored import StoredRun
from polyak_lab.runs.watcher import Snapshot

BLOCKS, LETTERS = "▁▂▃▄▅▆▇█", "_.-~=+*#"
COLUMNS = {"epoch": 0, "train loss": 80, "test": 60, "step size": 90, "capped": 100}
"""The columns of several runs, each with the width of a terminal that has place for it."""
SILENT = 30.0
"""Seconds beyond three epochs after which a run without news may have stopped."""


def render(snapshots: Sequence[Snapshot], console: Console, now: float) -> RenderableType:
    """Lay out the runs for the size that the terminal has now."""
    if len(snapshots) == 1 and (run := snapshots[0].run) is not None:
        return _one(snapshots[0], run, console, now)
    return _several(snapshots, console, now)


def epochs(run: StoredRun | None) -> Any:
    """Return the number of epochs that a run will have."""
    return "?" if run is None else run.config["training"].get("epochs", "?")


def _one(snapshot: Snapshot, run: StoredRun, console: Console, now: float) -> RenderableType:
    total, done = epochs(run), len(run.records)
    head = cell(f"{run.label.row}, seed {run.seeds[0]}")
    head.stylize("bold")
    state = cell(f"epoch {done} of {total}, {_state(snapshot, now)}")
    bar = Table.grid()  # a line of its own
    length = total if isinstance(total, int) else None
    bar.add_row(ProgressBar(total=length, completed=done, width=min(60, console.width)))
    place = cell(str(snapshot.path))
    return Group(head, place, bar, state, cell(_pace(snapshot)), _curves(run, console))


def _curves(run: StoredRun, console: Console) -> Table:
    grid = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(no_wrap=True, overflow="crop")
    width = max(console.width - 36, 8)
    for curve in CURVES:
        values = [record.get(curve.key) for record in run.records]
        if any(value is not None for value in values):
            last = values[-1]
            number = "–" if last is None else f"{curve.factor * last:.4g}"
            drawn = Text(sparkline(values, width, curve.log, _letters(console)))
            grid.add_row(cell(curve.title.lower()), cell(number), drawn)
    return grid


def _several(snapshots: Sequence[Snapshot], console: Console, now: float) -> RenderableType:
    problems = 2 * sum(snapshot.run is None for snapshot in snapshots)  # lines of their sentences
    shown = _fitting(snapshots, max(console.height - 3 - problems, 3))
    listed = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    listed.add_column("run", overflow="ellipsis", no_wrap=True, min_width=12, max_width=max(12, console.width // 4))
    names = [name for name, least in COLUMNS.items() if console.width >= least]
    for name in names:
        listed.add_column(name, justify="right", no_wrap=True)
    listed.add_column("state", overflow="ellipsis", no_wrap=True)
    for snapshot in shown:
        values = _values(snapshot)
        listed.add_row(
            cell(title(snapshot)), *(cell(values.get(name, "")) for name in names), cell(_state(snapshot, now))
        )
    over = sum(snapshot.is_over for snapshot in snapshots)
    hidden = len(snapshots) - len(shown)
    more = f", {hidden} not shown" if hidden else ""
    sentences = [cell(snapshot.problem) for snapshot in snapshots if snapshot.run is None]
    return Group(listed, *sentences, cell(f"{over} of {len(snapshots)} runs are over{more}."))


def _fitting(snapshots: Sequence[Snapshot], most: int) -> list[Snapshot]:
    """Leave out the runs that are over first, then those that changed longest ago."""
    kept = sorted(snapshots, key=lambda snapshot: (not snapshot.is_over, snapshot.changed))[-most:]
    return [snapshot for snapshot in snapshots if any(snapshot is one for one in kept)]


def title(snapshot: Snapshot) -> str:
    """Name a run by its row and seed; one that cannot be read by its folder."""
    run = snapshot.run
    return snapshot.path.name or str(snapshot.path) if run is None else f"{run.label.row}, seed {run.seeds[0]}"


def _values(snapshot: Snapshot) -> dict[str, str]:
    """Write the numbers of the last epoch by the names of their columns."""
    if (run := snapshot.run) is None:
        return {}
    last = run.records[-1] if run.records else {}
    accuracy, capped = last.get("test_accuracy"), last.get("capped")
    values = {"epoch": f"{len(run.records)}/{epochs(run)}", "train loss": _number(last.get("train_loss"))}
    values["test"] = f"{100 * accuracy:.2f} %" if accuracy is not None else _number(last.get("test_loss"))
    values |= {"step size": _number(last.get("step_size")), "capped": "" if capped is None else f"{100 * capped:.0f} %"}
    return values


def _state(snapshot: Snapshot, now: float) -> str:
    if snapshot.is_over:
        return "cannot be read" if snapshot.run is None else "finished"
    age = max(now - snapshot.changed, 0.0)
    news = f"last change {_duration(age)} ago"
    patience = SILENT + 3 * (_epoch_seconds(snapshot) or math.inf)
    return f"{news}: stopped?" if age > patience else news


def _pace(snapshot: Snapshot) -> str:
    """Describe the speed, and how long the rest takes at the pace of the last epochs."""
    run, seconds = snapshot.run, _epoch_seconds(snapshot)
    if run is None or seconds is None:
        return ""
    parts = [f"{seconds:.3g} s per epoch", f"{snapshot.timings[-1]['images_per_second']:,.0f} samples/s"]
    total = epochs(run)
    if isinstance(total, int) and not run.finished:
        parts.append(f"{_duration(seconds * (total - len(run.records)))} left")
    if run.records and run.records[-1].get("capped") is not None:
        parts.append(f"capped {capped_share(run.records[-1]['capped'])}")
    return ", ".join(parts)


def _epoch_seconds(snapshot: Snapshot) -> float | None:
    last = [timing["seconds"] + timing["evaluation_seconds"] for timing in snapshot.timings[-5:]]
    return sum(last) / len(last) if last else None


def sparkline(values: Sequence[float | None], width: int, log: bool, letters: str) -> str:
    """Draw values as letters of rising height, `width` of them at most; a gap where a value cannot be drawn."""
    last = len(values) - 1
    places = range(last + 1) if last < width else [round(place * last / (width - 1)) for place in range(width)]
    drawn = [_height(values[place], log) for place in places]
    known = [value for value in drawn if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    scale = (len(letters) - 1) / (high - low) if high > low else 0.0
    return "".join(" " if value is None else letters[round(scale * (value - low))] for value in drawn)


def _height(value: float | None, log: bool) -> float | None:
    if value is None or not math.isfinite(value) or (log and value <= 0):
        return None
    return math.log(value) if log else value


def _letters(console: Console) -> str:
    try:
        BLOCKS.encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        return LETTERS
    return BLOCKS


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2e}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
