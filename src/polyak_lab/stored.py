"""What lies in run folders, read without torch: for tables and reports."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyak_lab.config import content_hash
from polyak_lab.errors import LabError
from polyak_lab.files import said_clearly


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


def find(paths: Iterable[Path]) -> list[StoredRun]:
    """Read every run folder at or below the paths."""
    folders: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise LabError(f"{path} is not a folder: name one that holds runs, such as runs/demo.")
        folders |= dict.fromkeys(config.parent for config in sorted(path.rglob("config.json")))
    if not folders:
        raise LabError(f"No runs in {', '.join(map(str, paths))}: a run folder has a config.json.")
    return [load(folder) for folder in folders]


def load(folder: Path) -> StoredRun:
    """Read one run folder."""
    content = read_json(folder / "config.json")
    metrics = folder / "metrics.jsonl"
    records = read_lines(metrics) if metrics.exists() else []
    finished = (folder / "summary.json").exists()
    try:
        label = Label(**content["label"])
        return StoredRun(folder, label, content["run"], [_numbers(line) for line in records], finished)
    except (KeyError, TypeError) as error:
        raise LabError(f"{folder / 'config.json'} is not what this program writes ({error}).") from error


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    with said_clearly("read", path):
        text = path.read_text(encoding="utf-8")
    return _parse(text, path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object per line."""
    with said_clearly("read", path):
        lines = path.read_text(encoding="utf-8").splitlines()
    return [_parse(line, path) for line in lines]


def pretty(content: Any) -> str:
    """Write JSON for people."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def as_lines(records: Iterable[Mapping[str, Any]]) -> str:
    """Write one JSON object per line."""
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)


def _parse(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise LabError(f"{path} is damaged ({error}): delete its folder to start that run over.") from error


def _numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    """Read 'inf' and 'nan', which strict JSON cannot hold as numbers, back as numbers."""
    return {key: float(value) if isinstance(value, str) else value for key, value in record.items()}
