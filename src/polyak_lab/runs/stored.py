"""Run folders as tables and reports read them, without torch."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyak_lab.config.run import content_hash, plain
from polyak_lab.errors import LabError
from polyak_lab.files import exists, explain_os_errors
from polyak_lab.runs import documents


@dataclass(frozen=True)
class Label:
    """The place of a run in a table, which is not part of the run itself."""

    row: str
    table: str | None = None
    position: int = 0
    paper: float | None = None


@dataclass(frozen=True)
class StoredRun:
    """The content of a run folder."""

    path: Path
    label: Label
    config: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    finished: bool

    @property
    def seeds(self) -> tuple[int, int]:
        """The seed of the weights, and the seed of the order of the batches."""
        training = self.config["training"]
        return training["seed"], training["shuffle_seed"]

    @property
    def group(self) -> tuple[str, str]:
        """The key of the runs that differ only in their seeds."""
        return group_key(self.label.row, self.config)


class UnreadableRunError(LabError):
    """A run folder that is damaged or cannot be read."""

    def __init__(self, folder: Path, reason: str) -> None:
        super().__init__(reason)
        self.folder = folder


def group_key(row: str, config: Mapping[str, Any]) -> tuple[str, str]:
    """Return the key of a row's runs that differ only in their seeds."""
    training = {**config["training"], "seed": None, "shuffle_seed": None}
    return row, content_hash({**config, "training": training})


def find_runs(
    paths: Iterable[Path],
    on_problem: Callable[[LabError], None] | None = None,
) -> list[StoredRun]:
    """Read every run folder at or below the paths, each run once.

    Args:
        paths: Folders; symbolic links are followed.
        on_problem: Called with the error of each folder that cannot be read, and with a message
            about duplicates; all other runs are returned. If None, the first error is raised.
    """
    paths = list(paths)
    found = {path: list(run_folders(path, on_problem)) for path in paths}
    folders = list(dict.fromkeys(folder for path in paths for folder in found[path]))
    if not folders:
        raise LabError(
            f"No runs in {', '.join(map(str, paths))}: no folder there, at any depth, has a config.json. "
            "Train one with polyak train or polyak run, or name the folder that holds them."
        )
    if on_problem is not None:
        for path in (path for path, inside in found.items() if not inside):
            on_problem(LabError(f"No runs in {path}: no folder there, at any depth, has a config.json."))
    runs = [run for folder in folders if (run := _load_or_report(folder, on_problem)) is not None]
    if not runs:
        raise LabError(f"None of the {len(folders)} runs in {', '.join(map(str, paths))} can be read.")
    return _without_duplicates(runs, on_problem)


def load_run(folder: Path) -> StoredRun:
    """Read one run folder."""
    content = documents.read_config(folder / "config.json")
    metrics, summary = folder / "metrics.jsonl", folder / "summary.json"
    finished = exists(summary)  # checked first: a run may finish while it is read
    ending = documents.read_summary(summary) if finished else None
    records = documents.read_metrics(metrics) if exists(metrics) else []
    if ending is not None and not _matches_summary(ending, content["hash"], records, metrics):
        raise LabError(
            f"{metrics} does not match {summary}: a line was lost or changed. Restore the file, or delete the folder "
            "to train the run again."
        )
    return StoredRun(folder, Label(**content["label"]), content["run"], records, finished)


def _matches_summary(
    ending: Mapping[str, Any],
    run: str,
    records: Sequence[Mapping[str, Any]],
    metrics: Path,
) -> bool:
    """Compare the metrics of a finished run with its summary; old ones have no digest."""
    if ending["hash"] != run or not records or plain(records[-1]) != plain(ending["final"]):
        return False
    digest = ending.get("metrics")
    return digest is None or digest == hashlib.sha256(documents.read_bytes(metrics)).hexdigest()


def _load_or_report(
    folder: Path,
    on_problem: Callable[[LabError], None] | None,
) -> StoredRun | None:
    try:
        return load_run(folder)
    except LabError as error:
        _report(UnreadableRunError(folder, str(error)), on_problem)
    return None


def _report(error: LabError, on_problem: Callable[[LabError], None] | None) -> None:
    if on_problem is None:
        raise error
    on_problem(error)


def run_folders(root: Path, on_problem: Callable[[LabError], None] | None) -> Iterator[Path]:
    """Yield the folders with a config.json at or below a folder, each once."""

    def unreadable(error: OSError) -> None:
        _report(LabError(f"Cannot read {error.filename}: {error.strerror}."), on_problem)

    with explain_os_errors("read", root):
        if not root.is_dir():
            raise LabError(f"{root} is not a folder: name one that holds runs, such as runs/demo.")
    seen = {os.path.realpath(root)}
    for place, folders, files in os.walk(root, onerror=unreadable, followlinks=True):
        if "config.json" in (*folders, *files):
            yield Path(place)
        folders[:] = sorted(name for name in folders if _is_first_visit(os.path.join(place, name), seen))  # noqa: PTH118


def _is_first_visit(folder: str, seen: set[str]) -> bool:
    real = os.path.realpath(folder)
    is_new = real not in seen
    seen.add(real)
    return is_new


def _without_duplicates(
    runs: Iterable[StoredRun],
    on_problem: Callable[[LabError], None] | None,
) -> list[StoredRun]:
    """Keep one copy of each run: a finished one, else the one with most epochs."""
    copies: dict[tuple[str, str], list[StoredRun]] = {}
    for run in runs:
        copies.setdefault((run.label.row, content_hash(run.config)), []).append(run)
    repeated = [same for same in copies.values() if len(same) > 1]
    if repeated and on_problem is not None:
        one, other, *_ = repeated[0]
        more = f" (and {len(repeated) - 1} more such runs)" if len(repeated) > 1 else ""
        on_problem(LabError(f"{one.path} and {other.path} hold the same run, which counts once{more}."))
    return [max(same, key=lambda run: (run.finished, len(run.records))) for same in copies.values()]
