"""`polyak pack`: finished runs in one text file, which tables, reports and comparisons read like the folders."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from polyak_lab.cli import inspect
from polyak_lab.console import counted, say, warn
from polyak_lab.errors import LabError
from polyak_lab.files import exists, write_atomic
from polyak_lab.report.run_list import state
from polyak_lab.runs import documents, packed, stored
from polyak_lab.runs.stored import StoredRun, UnreadableRunError


def pack(paths: Sequence[Path], out: Path, overwrite: bool, console: Console) -> None:
    """Write the finished runs at or below the paths into one file.

    Damaged and unfinished runs are left out, each with a sentence on stderr.
    """
    file = out if out.suffix == ".jsonl" else out / packed.FILE
    if file.name in packed.DOCUMENTS:
        raise LabError(f"{file.name} is a document of a run: choose another name with --out, such as {packed.FILE}.")
    problems: list[LabError] = []
    runs = inspect.read_runs(paths, problems)
    lines = _lines(_by_name(runs, paths), file)
    if not lines:
        raise LabError(f"No run in {', '.join(map(str, paths))} can be packed: {file} is not written.")
    if not overwrite:
        _refuse_loss(file, lines)
    content = "".join(lines).encode()
    write_atomic(file, content)
    left_out = len(runs) + sum(isinstance(problem, UnreadableRunError) for problem in problems) - len(lines)
    note = f"; {left_out} left out" if left_out else ""
    say(console, f"{file}: {counted(len(lines), 'run')}, {len(content):,} bytes{note}")


def _by_name(runs: Sequence[StoredRun], paths: Sequence[Path]) -> dict[str, StoredRun]:
    """Name each run by its path relative to the folder that all paths have in common."""
    folders = [path.parent if packed.is_file_of_runs(path) else path for path in paths]
    common = os.path.commonpath([*map(os.path.abspath, folders)])
    places = [Path(os.path.abspath(run.path)) for run in runs]  # noqa: PTH100  # resolve() would follow links
    base = Path(common).parent if Path(common) in places else Path(common)
    named: dict[str, StoredRun] = {}
    for run, place in sorted(zip(runs, places, strict=True), key=lambda pair: pair[1]):
        name = place.relative_to(base).as_posix()
        if name in named:
            raise LabError(
                f"{named[name].files} and {run.files} are different runs of the same path: move one of them."
            )
        named[name] = run
    return named


def _lines(named: Mapping[str, StoredRun], file: Path) -> list[str]:
    """Write a line for each run, and read it again; say what is wrong with the others."""
    lines: list[str] = []
    for name, run in named.items():
        try:
            line = _line(name, run)
            stored.load(packed.PackedRun(file, len(lines) + 1, line.encode()))
        except LabError as error:
            warn(LabError(f"{run.files} is left out: {error}"))
        else:
            lines.append(line)
    return lines


def _line(name: str, run: StoredRun) -> str:
    if not run.finished:
        raise LabError(f"it is {state(run)}.")
    if not packed.is_path(name):
        raise LabError(
            f"its path is longer than {packed.LONGEST_PATH} characters, or some cannot be printed: rename it."
        )
    documents.read_starts(run.files.get("environment.json"))
    documents.read_timings(run.files.get("timings.jsonl"))
    return packed.dump(name, run.files.get)


def _refuse_loss(file: Path, lines: Sequence[str]) -> None:
    """Refuse to replace a file with lines that the new one does not have."""
    if not exists(file):
        return
    stored_lines = documents.read_bytes(file).splitlines(keepends=True)
    lost = {*stored_lines} - {line.encode() for line in lines}
    if lost:
        raise LabError(
            f"{file} exists, and {len(lost)} of its {len(stored_lines)} lines are not among these runs: "
            "choose another --out, or replace it with --overwrite."
        )
