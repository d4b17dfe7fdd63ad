"""What lies in run folders, read without torch: for tables and reports."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyak_lab.config.run import content_hash, plain
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
        return group(self.label.row, self.config)


def group(row: str, config: Mapping[str, Any]) -> tuple[str, str]:
    """Name what runs of one row and one configuration have in common: everything but their seeds."""
    training = {**config["training"], "seed": None, "shuffle_seed": None}
    return row, content_hash({**config, "training": training})


def find(paths: Iterable[Path], on_problem: Callable[[LabError], None] | None = None) -> list[StoredRun]:
    """Read every run folder at or below the paths, each run once.

    Args:
        paths: Folders; symbolic links are followed.
        on_problem: Called with what is wrong with a run or a folder that cannot be read, and with runs that are there
            more than once; the others are returned. Without it, the first error is raised.
    """
    paths = list(paths)
    folders = list(dict.fromkeys(folder for path in paths for folder in _folders(path, on_problem)))
    if not folders:
        raise LabError(
            f"No runs in {', '.join(map(str, paths))}: no folder there, at any depth, has a config.json. "
            "Train one with polyak train or polyak run, or name the folder that holds them."
        )
    found = [run for folder in folders if (run := _load_or_tell(folder, on_problem)) is not None]
    if not found:
        raise LabError(f"None of the {len(folders)} runs in {', '.join(map(str, paths))} can be read.")
    return _each_once(found, on_problem)


def load(folder: Path) -> StoredRun:
    """Read one run folder."""
    content = run_files.read_config(folder / "config.json")
    metrics, summary = folder / "metrics.jsonl", folder / "summary.json"
    finished = exists(summary)  # asked first: a run may end while it is read
    ending = run_files.read_summary(summary) if finished else None
    records = run_files.read_metrics(metrics) if exists(metrics) else []
    if ending is not None and not _is_ending(ending, content["hash"], records, metrics):
        raise LabError(
            f"{metrics} is not what {summary} says the run came to: a line was lost or changed; put the file back as "
            "it was, or delete the folder to train the run again."
        )
    return StoredRun(folder, Label(**content["label"]), content["run"], records, finished)


def _is_ending(ending: Mapping[str, Any], run: str, records: Sequence[Mapping[str, Any]], metrics: Path) -> bool:
    """Compare the metrics of a finished run with its summary, which has no digest of them in older folders."""
    if ending["hash"] != run or not records or plain(records[-1]) != plain(ending["final"]):
        return False
    digest = ending.get("metrics")
    return digest is None or digest == hashlib.sha256(run_files.read_bytes(metrics)).hexdigest()


def _load_or_tell(folder: Path, on_problem: Callable[[LabError], None] | None) -> StoredRun | None:
    try:
        return load(folder)
    except LabError as error:
        _tell(error, on_problem)
    return None


def _tell(error: LabError, on_problem: Callable[[LabError], None] | None) -> None:
    if on_problem is None:
        raise error
    on_problem(error)


def _folders(root: Path, on_problem: Callable[[LabError], None] | None) -> Iterator[Path]:
    """Yield the folders with a config.json at or below a folder; a link to a folder seen before leads nowhere."""

    def unreadable(error: OSError) -> None:
        _tell(LabError(f"Cannot read {error.filename}: {error.strerror}."), on_problem)

    with said_clearly("read", root):
        if not root.is_dir():
            raise LabError(f"{root} is not a folder: name one that holds runs, such as runs/demo.")
    seen = {os.path.realpath(root)}
    for place, folders, files in os.walk(root, onerror=unreadable, followlinks=True):
        if "config.json" in (*folders, *files):
            yield Path(place)
        folders[:] = sorted(name for name in folders if _is_new(os.path.join(place, name), seen))  # noqa: PTH118


def _is_new(folder: str, seen: set[str]) -> bool:
    real = os.path.realpath(folder)
    is_new = real not in seen
    seen.add(real)
    return is_new


def _each_once(runs: Iterable[StoredRun], on_problem: Callable[[LabError], None] | None) -> list[StoredRun]:
    """Keep one of the copies of a run: the one that came furthest."""
    copies: dict[tuple[str, str], list[StoredRun]] = {}
    for run in runs:
        copies.setdefault((run.label.row, content_hash(run.config)), []).append(run)
    repeated = [same for same in copies.values() if len(same) > 1]
    if repeated and on_problem is not None:
        one, other, *_ = repeated[0]
        more = f" (and {len(repeated) - 1} more such runs)" if len(repeated) > 1 else ""
        on_problem(LabError(f"{one.path} and {other.path} hold the same run, which counts once{more}."))
    return [max(same, key=lambda run: (run.finished, len(run.records))) for same in copies.values()]


def pretty(content: Any) -> str:
    """Write JSON for people."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def as_lines(records: Iterable[Mapping[str, Any]]) -> str:
    """Write one JSON object per line."""
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
