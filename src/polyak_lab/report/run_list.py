"""The runs of a report one by one: how far each came, its time, its speed and its configuration."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from polyak_lab.console import counted, printable
from polyak_lab.errors import LabError
from polyak_lab.report.statistics import mean
from polyak_lab.report.table import EMPTY, Group
from polyak_lab.runs import documents, stored
from polyak_lab.runs.stored import Files, StoredRun, UnreadableRunError


class Timing(NamedTuple):
    """The seconds of a run, with its evaluations, and its training samples per second; None if unknown."""

    seconds: float | None
    speed: float | None


class RunLine(NamedTuple):
    """A run in the list."""

    folder: str
    link: str | None
    file: str
    row: str
    seed: str
    state: str
    time: str
    speed: str
    is_problem: bool


def lines(
    rows: Sequence[Group], unreadable: Sequence[UnreadableRunError], timings: Mapping[Files, Timing], page: Path
) -> list[RunLine]:
    """List all runs by their folders, so that a damaged one stands where it belongs."""
    found = {run.files: _line(group.row, run, timings[run.files], page) for group in rows for run in group.runs}
    found |= {error.files: _unreadable(error, page) for error in unreadable}
    root = place(rows, unreadable)
    ordered = sorted(found, key=lambda files: files.path)
    return [found[files]._replace(folder=_shown(files.path, root)) for files in ordered]


def place(rows: Sequence[Group], unreadable: Sequence[UnreadableRunError]) -> Path:
    """Return the folder that holds all of the runs."""
    files = [run.files for group in rows for run in group.runs] + [error.files for error in unreadable]
    parents = [one.path.parent for one in files]
    try:
        return Path(os.path.commonpath(parents))
    except ValueError:  # absolute and relative ones, or several drives of Windows
        return Path()


def state(run: StoredRun) -> str:
    """Describe how far a run came."""
    epochs, done = run.config["training"].get("epochs"), len(run.records)
    if run.finished:
        return f"finished, {counted(done, 'epoch')}"
    if not done:
        return "empty: no epoch is finished yet"
    return f"unfinished: {done} of {counted(epochs, 'epoch')}" if epochs else f"unfinished: {counted(done, 'epoch')}"


def read_timing(run: StoredRun) -> Timing:
    """Read the time and the speed of a run; where lines are missing or damaged, both are unknown."""
    epochs = stored.read_times(run)
    if not epochs:
        return Timing(None, None)
    trained = sum(epoch["seconds"] for epoch in epochs)
    samples = sum(epoch["seconds"] * epoch["images_per_second"] for epoch in epochs)
    return Timing(trained + sum(epoch["evaluation_seconds"] for epoch in epochs), samples / trained)


def means(group: Group, timings: Mapping[Files, Timing]) -> tuple[str, str]:
    """Write the mean time and speed of a row's finished runs."""
    found = [timings[run.files] for run in group.finished]
    seconds = [timing.seconds for timing in found if timing.seconds is not None]
    speeds = [timing.speed for timing in found if timing.speed is not None]
    return write_time(mean(seconds) if seconds else None), _speed(mean(speeds) if speeds else None)


def write_time(seconds: float | None) -> str:
    """Write a duration as people do."""
    if seconds is None:
        return EMPTY
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.1f} min" if minutes < 100 else f"{hours:.1f} h"


def link(target: Path, page: Path) -> str | None:
    """Return the address of a file relative to the page; None if there is no relative path."""
    try:
        relative = os.path.relpath(os.path.realpath(target), os.path.realpath(page.parent))
    except ValueError:  # another drive of Windows
        return None
    return "./" + quote(os.fsencode(Path(relative).as_posix()))


def _line(row: str, run: StoredRun, timing: Timing, page: Path) -> RunLine:
    config = run.files.config_file
    time, speed = write_time(timing.seconds), _speed(timing.speed)
    whole = run.finished and bool(run.records)
    return RunLine(
        "", link(config, page), config.name, printable(row), str(run.seeds[0]), state(run), time, speed, not whole
    )


def _unreadable(error: UnreadableRunError, page: Path) -> RunLine:
    row, seed = _named(error.files)
    config = error.files.config_file
    return RunLine("", link(config, page), config.name, row, seed, printable(str(error)), EMPTY, EMPTY, True)


def _named(files: Files) -> tuple[str, str]:
    """Read the row and the seed of a damaged run, if its configuration is whole."""
    try:
        content = documents.read_config(files.get("config.json"))
    except LabError:
        return EMPTY, EMPTY
    return printable(content["label"]["row"]), str(content["run"]["training"]["seed"])


def _speed(speed: float | None) -> str:
    return EMPTY if speed is None else f"{speed:,.0f}"


def _shown(path: Path, root: Path) -> str:
    return printable((path.relative_to(root) if path.is_relative_to(root) else path).as_posix())
