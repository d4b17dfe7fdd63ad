"""What lies in run folders, read without torch: for tables and reports."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyak_lab.config.run import content_hash
from polyak_lab.errors import LabError
from polyak_lab.files import exists, said_clearly
from polyak_lab.runs import files as run_files


@dataclass(frozen=True)
class Label:
    """A run's place in a table; it may change without changing the run."""

    row: str
    table: str | None = None
    position: int = 0
    paper: float | None = None


@dataclass(frozen=True)
class StoredRun:
    """One run folder."""

    path: Path
    label: Label
    config: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    finished: bool

    @property
    def group(self) -> tuple[str, str]:
        """Runs that differ in nothing but their seeds belong together."""
        training = {**self.config["training"], "seed": None, "shuffle_seed": None}
        return self.label.row, content_hash({**self.config, "training": training})


def find(paths: Iterable[Path], on_damage: Callable[[LabError], None] | None = None) -> list[StoredRun]:
    """Read every run folder at or below the paths.

    Args:
        paths: Folders.
        on_damage: Called with the error of every run that cannot be read; the others are returned. Without it, the
            first such error is raised.
    """
    folders = _folders(paths)
    found = [run for folder in folders if (run := _load_or_tell(folder, on_damage)) is not None]
    if not found:
        raise LabError(f"None of the {len(folders)} runs in {', '.join(map(str, paths))} can be read.")
    return found


def load(folder: Path) -> StoredRun:
    """Read one run folder."""
    content = run_files.read_config(folder / "config.json")
    metrics, summary = folder / "metrics.jsonl", folder / "summary.json"
    finished = exists(summary)
    if finished:
        run_files.read_summary(summary)
    records = run_files.read_metrics(metrics) if exists(metrics) else []
    return StoredRun(folder, Label(**content["label"]), content["run"], records, finished)


def _load_or_tell(folder: Path, on_damage: Callable[[LabError], None] | None) -> StoredRun | None:
    try:
        return load(folder)
    except LabError as error:
        if on_damage is None:
            raise
        on_damage(error)
    return None


def _folders(paths: Iterable[Path]) -> list[Path]:
    folders: dict[Path, None] = {}
    for path in paths:
        with said_clearly("read", path):
            if not path.is_dir():
                raise LabError(f"{path} is not a folder: name one that holds runs, such as runs/demo.")
            folders |= dict.fromkeys(config.parent for config in sorted(path.rglob("config.json")))
    if not folders:
        raise LabError(f"No runs in {', '.join(map(str, paths))}: a run folder has a config.json.")
    return list(folders)


def pretty(content: Any) -> str:
    """Write JSON for people."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def as_lines(records: Iterable[Mapping[str, Any]]) -> str:
    """Write one JSON object per line."""
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
