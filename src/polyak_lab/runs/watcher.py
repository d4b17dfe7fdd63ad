"""Runs read again and again while they are trained, without their locks and without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyak_lab.errors import LabError
from polyak_lab.runs import documents, stored
from polyak_lab.runs.stored import StoredRun

FILES = ("config.json", "metrics.jsonl", "timings.jsonl", "summary.json")
Signature = tuple[tuple[int, int] | None, ...]


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment."""

    path: Path
    run: StoredRun | None
    problem: str = ""
    timings: tuple[Mapping[str, Any], ...] = ()
    changed: float = 0.0
    """When a file of the run changed last, in seconds since 1970."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more is expected of it: it is finished, or cannot be read."""
        return self.run is None or self.run.finished


class Watcher:
    """Reads the runs of a folder again and again, those that changed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[Path, tuple[Signature, Snapshot]] = {}

    def look(self) -> list[Snapshot]:
        """Return all runs at or below the folder."""
        return [self._snapshot(folder) for folder in stored.run_folders(self.root, lambda problem: None)]

    def _snapshot(self, folder: Path) -> Snapshot:
        signature = tuple(_status(folder / name) for name in FILES)
        known = self._known.get(folder)
        if known is None or known[0] != signature:
            known = self._known[folder] = (signature, _read(folder, signature))
        return known[1]


def _read(folder: Path, signature: Signature) -> Snapshot:
    changed = max((status[0] for status in signature if status), default=0) / 1e9
    try:
        run = stored.load_run(folder)
    except LabError as error:
        return Snapshot(folder, None, str(error), changed=changed)
    try:
        timings = documents.read_timings(folder / "timings.jsonl")
    except LabError:
        timings = []
    return Snapshot(folder, run, timings=tuple(timings), changed=changed)


def _status(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
