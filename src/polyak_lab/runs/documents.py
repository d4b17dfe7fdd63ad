"""The JSON documents of a run, read strictly: any damage is reported in one sentence that names the file.

A file must be a regular file of valid JSON with the expected keys and types. Documents have a
checksum of their content; those without one, which older versions wrote, are checked by their keys
and types only. A document that is packed with others in one file is read as a file of its own.
"""

import json
import math
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyak_lab.config.run import content_hash
from polyak_lab.errors import LabError
from polyak_lab.files import explain_os_errors
from polyak_lab.runs.strict_json import (
    Check,
    DamageError,
    Object,
    check_keys,
    decode,
    is_stored_number,
    parse_object,
    short,
)

MAX_BYTES = 1 << 30
"""Larger than any file of a run; a damaged file system can report any size."""
CHECKSUM = "checksum"


@dataclass(frozen=True)
class Part:
    """A document that is a part of a packed file: where it stands there, and its content."""

    place: str
    content: bytes

    def __str__(self) -> str:
        return self.place


Source = Path | Part


@contextmanager
def explain_damage(source: Source) -> Iterator[None]:
    """Turn a DamageError into a LabError that names the file."""
    try:
        yield
    except DamageError as error:
        is_part = isinstance(source, Part)
        remedy = "restore the file, or delete that line" if is_part else "delete its folder to train the run again"
        raise LabError(f"{source} is damaged ({error}): {remedy}.") from error


def read_bytes(path: Source) -> bytes:
    """Read a regular file, or a part of one."""
    if isinstance(path, Part):
        return path.content
    with explain_os_errors("read", path):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise LabError(f"Cannot read {path}: it is {kind}, where a file of a run is expected.")
        if status.st_size > MAX_BYTES:
            raise LabError(f"Cannot read {path}: it has {status.st_size:,} bytes, and {MAX_BYTES:,} are allowed.")
        return path.read_bytes()


def read_object(path: Source) -> Object:
    """Read a file of one JSON object, and check and remove its checksum."""
    content = read_unchecked(path)
    with explain_damage(path):
        return _without_checksum(content)


def read_unchecked(path: Source) -> Object:
    """Read a file of one JSON object as it is stored."""
    content = read_bytes(path)
    with explain_damage(path):
        return parse_object(decode(content))


def read_objects(path: Source, first: int | None = None) -> list[Object]:
    """Read a file of one JSON object per line, or its first lines.

    A last line without a newline is left out: it is being written, or its process was killed.
    """
    content = read_bytes(path)
    with explain_damage(path):
        lines = content.split(b"\n")[:-1][:first]
        return [_parse_line(number, decode(line)) for number, line in enumerate(lines, 1)]


def dump(content: Any) -> str:
    """Format a document as indented JSON."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def dump_lines(records: Iterable[Mapping[str, Any]]) -> str:
    """Format records as one JSON object per line."""
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)


def with_checksum(content: Mapping[str, Any]) -> Object:
    """Add the checksum that `read_object` checks."""
    return {**content, CHECKSUM: content_hash(content)}


def read_config(path: Source) -> Object:
    """Read config.json: `hash`, `label` and `run`."""
    content = read_object(path)
    with explain_damage(path):
        check_keys(content, {"hash": is_text, "label": is_object, "run": is_object}, only=True)
        check_keys(content["label"], LABEL, only=True, where="label.")
        run = content["run"]
        check_keys(
            {"data": {}, **run}, {"data": is_object, "optimizer": is_object, "training": is_object}, where="run."
        )
        check_keys(run["optimizer"], {"name": is_text, "options": is_object}, where="run.optimizer.")
        check_keys(run["training"], {"seed": is_integer, "shuffle_seed": is_integer}, where="run.training.")
        if content["hash"] != content_hash(run):
            raise DamageError("its hash does not match its run")
    return content


def read_metrics(path: Source, first: int | None = None) -> list[Object]:
    """Read metrics.jsonl; the strings 'inf', '-inf' and 'nan' become numbers."""
    return _read_records(path, METRICS, first)


def read_timings(path: Source, first: int | None = None) -> list[Object]:
    """Read timings.jsonl."""
    return _read_records(path, TIMINGS, first)


def read_known_timings(path: Source, first: int) -> list[Object | None]:
    """Read the first lines of timings.jsonl, each by itself: a damaged one is None."""

    def read(number: int, line: bytes) -> Object | None:
        try:
            return _check_record(number, _parse_line(number, decode(line)), TIMINGS)
        except DamageError:
            return None

    return [read(number, line) for number, line in enumerate(read_bytes(path).split(b"\n")[:-1][:first], 1)]


def read_starts(path: Source) -> list[Object]:
    """Read environment.json: a description of each start of the run."""
    content = read_object(path)
    with explain_damage(path):
        check_keys(content, {"starts": lambda value: isinstance(value, list) and bool(value)}, only=True)
        for start in content["starts"]:
            if not is_object(start):
                raise DamageError("a start is not an object")
            check_keys(start, {"threads": is_positive}, where="starts.")
    return list(content["starts"])


def read_summary(path: Source) -> Object:
    """Read summary.json, with the metrics of the last epoch in `final`."""
    content = read_object(path)
    with explain_damage(path):
        check_keys(content, {"hash": is_text, "seconds": is_duration, "final": is_object})
        content["final"] = _restore_numbers(content["final"])
        check_keys(content["final"], METRICS, where="final.")
    return content


def _read_records(path: Source, wanted: Mapping[str, Check], first: int | None) -> list[Object]:
    lines = read_objects(path, first)
    with explain_damage(path):
        return [_check_record(number, line, wanted) for number, line in enumerate(lines, 1)]


def _check_record(number: int, line: Object, wanted: Mapping[str, Check]) -> Object:
    record = _restore_numbers(line)
    check_keys(record, wanted, where=f"line {number}, ")
    if record["epoch"] != number:
        raise DamageError(f"line {number} belongs to another epoch")
    return record


def _restore_numbers(record: Object) -> Object:
    read = {key: NOT_FINITE.get(value, value) if isinstance(value, str) else value for key, value in record.items()}
    for key, value in read.items():
        if value is not None and not is_stored_number(value):
            raise DamageError(f"{short(key)} is not a number")
    return read


def _without_checksum(content: Object) -> Object:
    stored = content.pop(CHECKSUM, None)
    if stored is not None and stored != content_hash(content):
        raise DamageError("its checksum does not match its content")
    return content


def _parse_line(number: int, line: str) -> Object:
    try:
        return parse_object(line)
    except DamageError as error:
        raise DamageError(f"line {number}: {error}") from error


def is_text(value: Any) -> bool:
    """A string."""
    return isinstance(value, str)


def is_object(value: Any) -> bool:
    """A JSON object."""
    return isinstance(value, dict)


def is_integer(value: Any) -> bool:
    """An integer of at most 64 bits that is not a boolean."""
    return isinstance(value, int) and is_stored_number(value)


def is_positive(value: Any) -> bool:
    """A count of 1 or more."""
    return is_integer(value) and bool(value >= 1)


def is_duration(value: Any) -> bool:
    """Seconds or a speed: finite and not negative."""
    return is_stored_number(value) and math.isfinite(value) and value >= 0


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
LABEL: Mapping[str, Check] = {
    "row": is_text,
    "table": _or_none(is_text),
    "position": is_integer,
    "paper": _or_none(lambda value: is_stored_number(value) and math.isfinite(value)),
}
METRICS: Mapping[str, Check] = {
    "epoch": is_positive,
    "train_loss": is_stored_number,
    "test_loss": is_stored_number,
    "test_accuracy": _or_none(is_stored_number),
    "step_size": is_stored_number,
    "capped": _or_none(is_stored_number),
    "lr": is_stored_number,
}
TIMINGS: Mapping[str, Check] = {
    "epoch": is_positive,
    "seconds": is_duration,
    "evaluation_seconds": is_duration,
    "images_per_second": is_duration,
}
