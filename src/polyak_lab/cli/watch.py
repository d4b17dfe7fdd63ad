"""`polyak watch`: follow runs in a terminal. It only reads their folders, so that it can start and end at any time."""

import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live

from polyak_lab.cli import watch_view as view
from polyak_lab.cli.signals import Terminated
from polyak_lab.console import say
from polyak_lab.errors import LabError
from polyak_lab.files import exists, is_folder
from polyak_lab.progress import sentence
from polyak_lab.runs.watcher import Snapshot, Watcher

LONGEST_INTERVAL = 86400.0
GRACE = 10.0
"""Seconds after the last run of a folder is finished in which the next one may begin."""


def watch(root: Path, wait: bool, interval: float, console: Console) -> None:
    """Follow the runs of a folder until they are finished, or until Ctrl-C."""
    if not 0 < interval <= LONGEST_INTERVAL:
        raise LabError(f"--interval is {interval:g}, but must be a positive number of seconds, at most 86400 (a day).")
    watcher = Watcher(root)
    try:
        looks = _looks(watcher, wait, interval, console)
        if console.is_terminal and not console.is_dumb_terminal:
            _show_live(looks, console)
        else:
            _print_lines(looks, console)
    except Terminated:
        raise
    except KeyboardInterrupt:
        say(console, "Detached: the runs go on as before.")


def _looks(watcher: Watcher, wait: bool, interval: float, console: Console) -> Iterator[list[Snapshot]]:
    """Yield the runs every `interval` seconds, and end when all are over."""
    _wait_for_a_run(watcher, wait, interval, console)
    is_one, over_since = exists(watcher.root / "config.json"), -GRACE
    seen: list[Snapshot] | None = None
    while True:
        before, seen = seen, watcher.look()
        now = time.monotonic()
        if is_one and seen and seen[0].run is None:
            raise LabError(seen[0].problem)
        yield seen
        if not all(snapshot.is_over for snapshot in seen):
            over_since = now
        elif is_one or before is None or now - over_since >= GRACE:
            return
        time.sleep(interval)


def _wait_for_a_run(watcher: Watcher, wait: bool, interval: float, console: Console) -> None:
    said = False
    while not (is_folder(watcher.root) and watcher.look()):
        if not wait:
            state = "has no run" if is_folder(watcher.root) else "is not a folder"
            raise LabError(f"{watcher.root} {state}: name the folder of a run, or wait for one to begin with --wait.")
        if not said:
            say(console, f"Waiting for a run in {watcher.root}; Ctrl-C ends this.")
        said = True
        time.sleep(interval)


def _show_live(looks: Iterator[list[Snapshot]], console: Console) -> None:
    """Show the runs on a screen of its own, and leave the last view behind."""
    last: list[Snapshot] = []

    def render() -> RenderableType:
        return view.render(last, console, time.time())

    try:
        with Live(get_renderable=render, console=console, screen=True, refresh_per_second=4):
            for snapshots in looks:
                last = snapshots
    finally:
        if last:
            console.print(render())


def _print_lines(looks: Iterator[list[Snapshot]], console: Console) -> None:
    """Print a line for every epoch and for the end of every run."""
    printed: dict[Path, int] = {}
    over: set[Path] = set()
    for snapshots in looks:
        for snapshot in snapshots:
            records = [] if snapshot.run is None else snapshot.run.records
            start = printed.get(snapshot.path, max(len(records) - 1, 0))  # of those before, the last one alone
            for record in records[start:]:
                epochs = view.epochs(snapshot.run)
                say(console, f"{view.title(snapshot)}: epoch {record['epoch']}/{epochs}: {sentence(record)}")
            printed[snapshot.path] = len(records)
            if snapshot.is_over and snapshot.path not in over:
                over.add(snapshot.path)
                say(console, f"{view.title(snapshot)}: {snapshot.problem or 'finished'}")
