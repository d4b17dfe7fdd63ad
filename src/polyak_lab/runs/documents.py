"""The JSON documents of a run folder, read strictly: any damage is reported in one sentence that names the file.

A file must be a regular file of valid JSON with the expected keys and types. Documents have a
checksum of their content; those without one, which older versions wrote, are checked by their keys
and types only.
"""

import json
import math
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polyak_lab.config.run import content_hash
from polyak_lab.errors import LabError
from polyak_lab.files import explain_os_errors

MAX_BYTES = 1 << 30
"""Larger than any file of a run; a damaged file system can report any size."""
MAX_DEPTH = 32
CHECKSUM = "checksum"

Object = dict[str, Any]
Check = Callable[[Any], bool]


class _DamageError(Exception):
    """Damage of a file; its text completes "FILE is damaged (...)"."""


@contextmanager
def explain_damage(path: Path) -> Iterator[None]:
    """Turn a _DamageError into a LabError that names the file."""
    try:
        yield
    except _DamageError as error:
        raise LabError(f"{path} is damaged ({error}): delete its folder to train the run again.") from error


def read_bytes(path: Path) -> bytes:
    """Read a regular file."""
    with explain_os_errors("read", path):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise LabError(f"Cannot read {path}: it is {kind}, where a file of a run is expected.")
        if status.st_size > MAX_BYTES:
            raise LabError(f"Cannot read {path}: it has {status.st_size:,} bytes, and {MAX_BYTES:,} are allowed.")
        return path.read_bytes()


def read_object(path: Path) -> Object:
    """Read a file of one JSON object, and check and remove its checksum."""
    content = read_bytes(path)
    with explain_damage(path):
        return _without_checksum(_parse_object(_decode(content)))


def read_objects(path: Path, first: int | None = None) -> list[Object]:
    """Read a file of one JSON object per line, or its first lines.

    A last line without a newline is left out: it is being written, or its process was killed.
    """
    content = read_bytes(path)
    with explain_damage(path):
        lines = content.split(b"\n")[:-1][:first]
        return [_parse_line(number, _decode(line)) for number, line in enumerate(lines, 1)]


def dump(content: Any) -> str:
    """Format a document as indented JSON."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def dump_lines(records: Iterable[Mapping[str, Any]]) -> str:
    """Format records as one JSON object per line."""
    return "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)


def with_checksum(content: Mapping[str, Any]) -> Object:
    """Add the checksum that `read_object` checks."""
    return {**content, CHECKSUM: content_hash(content)}


def read_config(path: Path) -> Object:
    """Read config.json: `hash`, `label` and `run`."""
    content = read_object(path)
    with explain_damage(path):
        _check_keys(content, {"hash": is_text, "label": is_object, "run": is_object}, only=True)
        _check_keys(content["label"], LABEL, only=True, where="label.")
        _check_keys(content["run"], {"optimizer": is_object, "training": is_object}, where="run.")
        _check_keys(content["run"]["optimizer"], {"name": is_text, "options": is_object}, where="run.optimizer.")
        if content["hash"] != content_hash(content["run"]):
            raise _DamageError("its hash does not match its run")
    return content


def read_metrics(path: Path, first: int | None = None) -> list[Object]:
    """Read metrics.jsonl; the strings 'inf', '-inf' and 'nan' become numbers."""
    return _read_records(path, METRICS, first)


def read_timings(path: Path, first: int | None = None) -> list[Object]:
    """Read timings.jsonl."""
    return _read_records(path, TIMINGS, first)


def read_starts(path: Path) -> list[Object]:
    """Read environment.json: a description of each start of the run."""
    content = read_object(path)
    with explain_damage(path):
        _check_keys(content, {"starts": lambda value: isinstance(value, list) and bool(value)}, only=True)
        for start in content["starts"]:
            if not is_object(start):
                raise _DamageError("a start is not an object")
            _check_keys(start, {"threads": is_positive}, where="starts.")
    return list(content["starts"])


def read_summary(path: Path) -> Object:
    """Read summary.json, with the metrics of the last epoch in `final`."""
    content = read_object(path)
    with explain_damage(path):
        _check_keys(content, {"hash": is_text, "seconds": is_duration, "final": is_object})
        content["final"] = _restore_numbers(content["final"])
        _check_keys(content["final"], METRICS, where="final.")
    return content


def _read_records(path: Path, wanted: Mapping[str, Check], first: int | None) -> list[Object]:
    lines = read_objects(path, first)
    with explain_damage(path):
        return [_check_record(number, line, wanted) for number, line in enumerate(lines, 1)]


def _check_record(number: int, line: Object, wanted: Mapping[str, Check]) -> Object:
    record = _restore_numbers(line)
    _check_keys(record, wanted, where=f"line {number}, ")
    if record["epoch"] != number:
        raise _DamageError(f"line {number} belongs to another epoch")
    return record


def _restore_numbers(record: Object) -> Object:
    read = {key: NOT_FINITE.get(value, value) if isinstance(value, str) else value for key, value in record.items()}
    for key, value in read.items():
        if value is not None and not is_number(value):
            raise _DamageError(f"{_short(key)} is not a number")
    return read


def _check_keys(
    table: Object,
    wanted: Mapping[str, Check],
    *,
    only: bool = False,
    where: str = "",
) -> None:
    for key, check in wanted.items():
        if key not in table:
            raise _DamageError(f"{where}{key} is missing")
        if not check(table[key]):
            raise _DamageError(f"{where}{key} has the wrong type or value")
    unknown = [key for key in table if key not in wanted]
    if only and unknown:
        raise _DamageError(f"{where}{_short(unknown[0])} is not known")


def _without_checksum(content: Object) -> Object:
    stored = content.pop(CHECKSUM, None)
    if stored is not None and stored != content_hash(content):
        raise _DamageError("its checksum does not match its content")
    return content


def _parse_line(number: int, line: str) -> Object:
    try:
        return _parse_object(line)
    except _DamageError as error:
        raise _DamageError(f"line {number}: {error}") from error


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _DamageError(f"byte {error.start + 1} is not UTF-8") from error


def _parse_object(text: str) -> Object:
    try:
        value = json.loads(text, object_pairs_hook=_refuse_duplicate_keys, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise _DamageError(f"invalid JSON at character {error.pos + 1}" if text.strip() else "it is empty") from error
    except (RecursionError, ValueError, MemoryError) as error:  # too deep, or a number too long
        raise _DamageError("it is nested too deeply, or a number is too long") from error
    if not isinstance(value, dict):
        raise _DamageError("it is not a JSON object")
    _check_values(value)
    return value


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> Object:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise _DamageError("an object has a key twice")
    return table


def _refuse_constant(name: str) -> Any:
    raise _DamageError(f"{name} is not a JSON number")


def _check_values(value: Any, depth: int = 0) -> None:
    """Refuse values that are valid JSON but that other parts of the program do not support."""
    if depth > MAX_DEPTH:
        raise _DamageError("it is nested too deeply")
    if isinstance(value, (dict, list)):
        for item in [*value.keys(), *value.values()] if isinstance(value, dict) else value:
            _check_values(item, depth + 1)
    elif isinstance(value, str):
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise _DamageError("a string has an unpaired surrogate")
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and not _is_finite(value):
        raise _DamageError("a number is too large")


def _is_finite(value: float) -> bool:
    return is_number(value) and math.isfinite(value)


def _short(key: str) -> str:
    return ascii(key[:30])


def is_text(value: Any) -> bool:
    """A string."""
    return isinstance(value, str)


def is_object(value: Any) -> bool:
    """A JSON object."""
    return isinstance(value, dict)


def is_number(value: Any) -> bool:
    """A float, or an integer of at most 64 bits that is not a boolean."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 1 << 63
    return isinstance(value, float)


def is_positive(value: Any) -> bool:
    """A count of 1 or more."""
    return isinstance(value, int) and is_number(value) and value >= 1


def is_duration(value: Any) -> bool:
    """Seconds or a speed: finite and not negative."""
    return is_number(value) and math.isfinite(value) and value >= 0


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
LABEL: Mapping[str, Check] = {
    "row": is_text,
    "table": _or_none(is_text),
    "position": lambda value: isinstance(value, int) and is_number(value),
    "paper": _or_none(lambda value: is_number(value) and math.isfinite(value)),
}
METRICS: Mapping[str, Check] = {
    "epoch": is_positive,
    "train_loss": is_number,
    "test_loss": is_number,
    "test_accuracy": _or_none(is_number),
    "step_size": is_number,
    "capped": _or_none(is_number),
    "lr": is_number,
}
TIMINGS: Mapping[str, Check] = {
    "epoch": is_positive,
    "seconds": is_duration,
    "evaluation_seconds": is_duration,
    "images_per_second": is_duration,
}
