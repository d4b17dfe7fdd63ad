"""Packed runs: many finished runs in one text file, `runs.jsonl`, a line for each.

A line is a JSON object with the content of a run folder, without its checkpoint: its `path` relative
to the folder of the file, and under their names the documents of the run. A `.json` document is an
object, with its checksum; a `.jsonl` document is the list of its lines. The documents are read as the
files of a run folder are, so that damage is found in the same way.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from polyak_lab.errors import LabError
from polyak_lab.files import is_file
from polyak_lab.runs import documents
from polyak_lab.runs.documents import Part, Source
from polyak_lab.runs.strict_json import Check, DamageError, Object, check_keys, decode, parse_object

FILE = "runs.jsonl"
LONGEST_PATH = 1000
DOCUMENTS = ("config.json", "environment.json", "summary.json", "metrics.jsonl", "timings.jsonl")


@dataclass(frozen=True)
class PackedRun:
    """A line of a packed file, whose documents are read like those of a run folder."""

    file: Path
    number: int
    content: bytes = field(repr=False)
    twin: int | None = None
    """An earlier line with the same path, which makes this one ambiguous."""

    def __str__(self) -> str:
        return f"line {self.number} of {self.file}"

    @property
    def path(self) -> Path:
        """Where the folder of the run would be; the line itself if it is damaged."""
        return self.file.parent / (self.name or f"{self.file.name}, line {self.number}")

    @property
    def config_file(self) -> Path:
        """The file that holds the configuration."""
        return self.file

    @cached_property
    def name(self) -> str | None:
        """The path relative to the folder of the file; None if the line is damaged."""
        try:
            return str(self._line["path"])
        except LabError:
            return None

    def has(self, name: str) -> bool:
        """Whether the run has a document: a packed one has all."""
        return name in DOCUMENTS

    def get(self, name: str) -> Part:
        """Return a document as it is in the folder of a run."""
        value = self._line[name]
        text = documents.dump_lines(value) if name.endswith(".jsonl") else documents.dump(value)
        return Part(f"{name} in {self}", text.encode())

    @cached_property
    def _line(self) -> Object:
        with documents.explain_damage(Part(str(self), self.content)):
            line = parse_object(decode(self.content))
            check_keys(line, LINE, only=True)
            if self.twin is not None:
                raise DamageError(f"its path is that of line {self.twin}")
        return line


def is_file_of_runs(path: Path) -> bool:
    """Whether a path names a packed file, rather than a folder or a document of a run."""
    return path.suffix == ".jsonl" and path.name not in DOCUMENTS and is_file(path)


def read(file: Path) -> list[PackedRun]:
    """Read a packed file; damage of a line is raised when the line is used."""
    lines = documents.read_bytes(file).split(b"\n")
    if not lines[-1]:
        lines.pop()
    runs, first = [], dict[str, int]()
    for number, content in enumerate(lines, 1):
        run = PackedRun(file, number, content)
        earlier = first.setdefault(run.name, number) if run.name else number
        runs.append(run if earlier == number else replace(run, twin=earlier))
    return runs


def dump(path: str, get: Callable[[str], Source]) -> str:
    """Format the documents of a run as a line of a packed file."""
    line: dict[str, Any] = {"path": path}
    for name in DOCUMENTS:
        lines = name.endswith(".jsonl")
        line[name] = documents.read_objects(get(name)) if lines else documents.read_unchecked(get(name))
    return json.dumps(line, allow_nan=False, separators=(",", ":")) + "\n"


def is_path(value: Any) -> bool:
    """A path below the folder of the file."""
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= LONGEST_PATH:
        return False
    return not value.startswith("/") and ".." not in value.split("/") and str(PurePosixPath(value)) == value != "."


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(map(documents.is_object, value))


LINE: Mapping[str, Check] = {
    "path": is_path,
    **{name: _is_list_of_objects if name.endswith(".jsonl") else documents.is_object for name in DOCUMENTS},
}
