"""Stored runs, in folders or packed, as tables and reports read them, without torch."""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from polyak_lab.config.run import content_hash, plain
from polyak_lab.errors import LabError
from polyak_lab.files import exists, explain_os_errors
from polyak_lab.runs import documents, packed
from polyak_lab.runs.documents import Source

NO_RUNS = f"no folder there, at any depth, has a config.json or packed runs ({packed.FILE})."


@dataclass(frozen=True)
class Label:
    """The place of a run in a table, which is not part of the run itself."""

    row: str
    table: str | None = None
    position: int = 0
    paper: float | None = None


class Files(Protocol):
    """The documents of a run: in a folder of their own, or packed with those of other runs; its text says where."""

    @property
    def path(self) -> Path:
        """The folder of the run, or where it would be."""

    @property
    def config_file(self) -> Path:
        """The file that holds the configuration."""

    def has(self, name: str) -> bool:
        """Whether there is a document of this name."""

    def get(self, name: str) -> Source:
        """Return a document to read."""


@dataclass(frozen=True)
class FolderFiles:
    """The documents of a run in a folder of their own."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def config_file(self) -> Path:
        """The file that holds the configuration."""
        return self.path / "config.json"

    def has(self, name: str) -> bool:
        """Whether there is a document of this name."""
        return exists(self.path / name)

    def get(self, name: str) -> Path:
        """Return the path of a document."""
        return self.path / name


@dataclass(frozen=True)
class StoredRun:
    """The content of a run."""

    files: Files
    label: Label
    config: Mapping[str, Any]
    records: Sequence[Mapping[str, Any]]
    finished: bool

    @property
    def path(self) -> Path:
        """The folder of the run; if it is packed, where its folder would be."""
        return self.files.path

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
    """A run that is damaged or cannot be read."""

    def __init__(self, files: Files, reason: str) -> None:
        super().__init__(reason)
        self.files = files


def group_key(row: str, config: Mapping[str, Any]) -> tuple[str, str]:
    """Return the key of a row's runs that differ only in their seeds."""
    training = {**config["training"], "seed": None, "shuffle_seed": None}
    return row, content_hash({**config, "training": training})


def find_runs(
    paths: Iterable[Path],
    on_problem: Callable[[LabError], None] | None = None,
) -> list[StoredRun]:
    """Read every run at or below the paths, each run once.

    Args:
        paths: Folders that hold run folders or packed runs at any depth, or packed files; symbolic
            links are followed. The folder of a packed run is a path, too, though it does not exist.
        on_problem: Called with the error of each run that cannot be read, and with a message
            about duplicates; all other runs are returned. If None, the first error is raised.
    """
    paths = list(paths)
    found = {path: list(_find_files(path, on_problem)) for path in paths}
    distinct = list(dict.fromkeys(files for path in paths for files in found[path]))
    if not distinct:
        raise LabError(
            f"No runs in {', '.join(map(str, paths))}: {NO_RUNS} "
            "Train one with polyak train or polyak run, or name the folder that holds them."
        )
    if on_problem is not None:
        for path in (path for path, inside in found.items() if not inside):
            on_problem(LabError(f"No runs in {path}: {NO_RUNS}"))
    runs = [run for files in distinct if (run := _load_or_report(files, on_problem)) is not None]
    if not runs:
        places, alone = ", ".join(map(str, paths)), len(distinct) == 1
        subject = f"The only run in {places} cannot" if alone else f"None of the {len(distinct)} runs in {places} can"
        raise LabError(f"{subject} be read.")
    return _without_duplicates(runs, on_problem)


def load_run(folder: Path) -> StoredRun:
    """Read one run folder."""
    return load(FolderFiles(folder))


def load(files: Files) -> StoredRun:
    """Read one run."""
    content = documents.read_config(files.get("config.json"))
    metrics, summary = files.get("metrics.jsonl"), files.get("summary.json")
    finished = files.has("summary.json")  # checked first: a run may finish while it is read
    ending = documents.read_summary(summary) if finished else None
    records = documents.read_metrics(metrics) if files.has("metrics.jsonl") else []
    if ending is not None and not _matches_summary(ending, content["hash"], records, metrics):
        remedy = "" if isinstance(metrics, documents.Part) else ", or delete the folder to train the run again"
        raise LabError(f"{metrics} does not match {summary}: a line was lost or changed. Restore the file{remedy}.")
    return StoredRun(files, Label(**content["label"]), content["run"], records, finished)


def read_times(run: StoredRun) -> Sequence[Mapping[str, Any]] | None:
    """Read the times of a run's epochs; None unless all are there, and their sum is that of the summary."""
    try:
        epochs = documents.read_timings(run.files.get("timings.jsonl"))
        total = documents.read_summary(run.files.get("summary.json"))["seconds"] if run.finished else None
    except LabError:
        return None
    # The line of the last epoch of a run that trains may not be written yet.
    if len(epochs) < len(run.records) - (not run.finished) or not all(epoch["seconds"] for epoch in epochs):
        return None
    seconds = sum(epoch["seconds"] + epoch["evaluation_seconds"] for epoch in epochs)
    return epochs if total is None or math.isclose(seconds, total) else None


def _matches_summary(
    ending: Mapping[str, Any],
    run: str,
    records: Sequence[Mapping[str, Any]],
    metrics: Source,
) -> bool:
    """Compare the metrics of a finished run with its summary; old ones have no digest."""
    if ending["hash"] != run or not records or plain(records[-1]) != plain(ending["final"]):
        return False
    digest = ending.get("metrics")
    return digest is None or digest == hashlib.sha256(documents.read_bytes(metrics)).hexdigest()


def _load_or_report(
    files: Files,
    on_problem: Callable[[LabError], None] | None,
) -> StoredRun | None:
    try:
        return load(files)
    except LabError as error:
        _report(UnreadableRunError(files, str(error)), on_problem)
    return None


def _report(error: LabError, on_problem: Callable[[LabError], None] | None) -> None:
    if on_problem is None:
        raise error
    on_problem(error)


def _find_files(path: Path, on_problem: Callable[[LabError], None] | None) -> Iterator[Files]:
    """Yield the run folders and the packed runs at or below a path."""
    if packed.is_file_of_runs(path):
        yield from _read_packed(path, on_problem)
    elif not exists(path) and (inside := _packed_below(path, on_problem)):
        yield from inside
    else:
        for place, folders, files in _walk(path, on_problem):
            if "config.json" in (*folders, *files):
                yield FolderFiles(place)
            if packed.FILE in files:
                yield from _read_packed(place / packed.FILE, on_problem)


def _packed_below(path: Path, on_problem: Callable[[LabError], None] | None) -> list[packed.PackedRun]:
    """Return the packed runs whose folders would be at or below a path that does not exist."""
    files = [parent / packed.FILE for parent in path.parents if packed.is_file_of_runs(parent / packed.FILE)]
    runs = _read_packed(files[0], on_problem) if files else []
    inside = [run for run in runs if run.path.is_relative_to(path)]
    return [run for run in runs if run in inside or run.name is None] if inside else []


def _read_packed(file: Path, on_problem: Callable[[LabError], None] | None) -> list[packed.PackedRun]:
    try:
        return packed.read(file)
    except LabError as error:
        _report(error, on_problem)
    return []


def run_folders(root: Path, on_problem: Callable[[LabError], None] | None) -> Iterator[Path]:
    """Yield the folders with a config.json at or below a folder, each once."""
    for place, folders, files in _walk(root, on_problem):
        if "config.json" in (*folders, *files):
            yield place


def _walk(
    root: Path, on_problem: Callable[[LabError], None] | None
) -> Iterator[tuple[Path, Sequence[str], Sequence[str]]]:
    """Walk the folders at or below a folder, each once; yield each with its folders and its files."""

    def unreadable(error: OSError) -> None:
        _report(LabError(f"Cannot read {error.filename}: {error.strerror}."), on_problem)

    with explain_os_errors("read", root):
        if not root.is_dir():
            raise LabError(f"{root} is not a folder: name one that holds runs, such as runs/demo.")
    seen = {os.path.realpath(root)}
    for place, folders, files in os.walk(root, onerror=unreadable, followlinks=True):
        yield Path(place), folders, files
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
        on_problem(LabError(f"{one.files} and {other.files} hold the same run, which counts once{more}."))
    return [max(same, key=lambda run: (run.finished, len(run.records))) for same in copies.values()]
