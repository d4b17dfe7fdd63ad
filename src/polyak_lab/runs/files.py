"""Reading what a run folder holds; a file that is damaged in any way becomes one sentence that names it.

Every file of a run is read here: as a regular file, whole, strictly as JSON, and with the keys and types that its
reader expects. A document that this version wrote carries a checksum of its content; one without, from an older
version, is read by its keys and types alone.
"""

import json
import math
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polyak_lab.config.run import content_hash
from polyak_lab.errors import LabError
from polyak_lab.files import said_clearly

LARGEST = 1 << 30
"""Bytes; a file of a run is far smaller, and a damaged file system can claim any size."""
DEEPEST = 32
CHECKSUM = "checksum"

Object = dict[str, Any]
Check = Callable[[Any], bool]


class _DamageError(Exception):
    """What is wrong with a file, as half a sentence."""


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Turn what is wrong with the content of a file into a sentence that names the file."""
    try:
        yield
    except _DamageError as error:
        raise LabError(f"{path} is damaged ({error}): delete its folder to start that run over.") from error


def read_bytes(path: Path) -> bytes:
    """Read a regular file whole."""
    with said_clearly("read", path):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise LabError(f"Cannot read {path}: it is {kind}, where a file of a run is expected.")
        if status.st_size > LARGEST:
            raise LabError(f"Cannot read {path}: it has {status.st_size:,} bytes, and {LARGEST:,} are allowed.")
        return path.read_bytes()


def read_object(path: Path) -> Object:
    """Read a file that holds one JSON object, and take its checksum off."""
    content = read_bytes(path)
    with named(path):
        return _checked(_as_object(_text(content)))


def read_objects(path: Path, first: int | None = None) -> list[Object]:
    """Read a file of one JSON object per line, or its first lines.

    A last line without its end is being written, or was when its process was killed, and is left out.
    """
    content = read_bytes(path)
    with named(path):
        lines = content.split(b"\n")[:-1][:first]
        return [_of_line(number, _text(line)) for number, line in enumerate(lines, 1)]


def with_checksum(content: Mapping[str, Any]) -> Object:
    """Add the checksum that `read_object` compares."""
    return {**content, CHECKSUM: content_hash(content)}


def read_config(path: Path) -> Object:
    """Read config.json: `hash`, `label` and `run`."""
    content = read_object(path)
    with named(path):
        _require(content, {"hash": is_text, "label": is_object, "run": is_object}, only=True)
        _require(content["label"], LABEL, only=True, where="label.")
        _require(content["run"], {"optimizer": is_object, "training": is_object}, where="run.")
        _require(content["run"]["optimizer"], {"name": is_text, "options": is_object}, where="run.optimizer.")
        if content["hash"] != content_hash(content["run"]):
            raise _DamageError("its hash is not that of its run")
    return content


def read_metrics(path: Path, first: int | None = None) -> list[Object]:
    """Read metrics.jsonl; 'inf' and 'nan', which strict JSON cannot hold as numbers, come back as numbers."""
    return _read_epochs(path, METRICS, first)


def read_timings(path: Path, first: int | None = None) -> list[Object]:
    """Read timings.jsonl."""
    return _read_epochs(path, TIMINGS, first)


def read_starts(path: Path) -> list[Object]:
    """Read environment.json: a description of every start of the run."""
    content = read_object(path)
    with named(path):
        _require(content, {"starts": lambda value: isinstance(value, list) and bool(value)}, only=True)
        for start in content["starts"]:
            if not is_object(start):
                raise _DamageError("a start is not an object")
            _require(start, {"threads": is_positive}, where="starts.")
    return list(content["starts"])


def read_summary(path: Path) -> Object:
    """Read summary.json: what the run came to, in `final`."""
    content = read_object(path)
    with named(path):
        _require(content, {"hash": is_text, "seconds": is_duration, "final": is_object})
        content["final"] = _as_numbers(content["final"])
        _require(content["final"], METRICS, where="final.")
    return content


def _read_epochs(path: Path, wanted: Mapping[str, Check], first: int | None) -> list[Object]:
    lines = read_objects(path, first)
    with named(path):
        return [_epoch(number, line, wanted) for number, line in enumerate(lines, 1)]


def _epoch(number: int, line: Object, wanted: Mapping[str, Check]) -> Object:
    record = _as_numbers(line)
    _require(record, wanted, where=f"line {number}, ")
    if record["epoch"] != number:
        raise _DamageError(f"line {number} is of another epoch")
    return record


def _as_numbers(record: Object) -> Object:
    read = {key: NOT_FINITE.get(value, value) if isinstance(value, str) else value for key, value in record.items()}
    for key, value in read.items():
        if value is not None and not is_number(value):
            raise _DamageError(f"{_shown(key)} is not a number")
    return read


def _require(table: Object, wanted: Mapping[str, Check], *, only: bool = False, where: str = "") -> None:
    for key, check in wanted.items():
        if key not in table:
            raise _DamageError(f"{where}{key} is missing")
        if not check(table[key]):
            raise _DamageError(f"{where}{key} has the wrong type or value")
    unknown = [key for key in table if key not in wanted]
    if only and unknown:
        raise _DamageError(f"{where}{_shown(unknown[0])} is not known")


def _checked(content: Object) -> Object:
    stored = content.pop(CHECKSUM, None)
    if stored is not None and stored != content_hash(content):
        raise _DamageError("its checksum is not that of its content")
    return content


def _of_line(number: int, line: str) -> Object:
    try:
        return _as_object(line)
    except _DamageError as error:
        raise _DamageError(f"line {number}: {error}") from error


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _DamageError(f"byte {error.start + 1} is not UTF-8") from error


def _as_object(text: str) -> Object:
    try:
        value = json.loads(text, object_pairs_hook=_without_doubles, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise _DamageError(f"no valid JSON at character {error.pos + 1}" if text.strip() else "it is empty") from error
    except (RecursionError, ValueError, MemoryError) as error:  # too deep, a number of thousands of digits
        raise _DamageError("nested too deeply, or a number too long") from error
    if not isinstance(value, dict):
        raise _DamageError("not a JSON object")
    _check_plain(value)
    return value


def _without_doubles(pairs: list[tuple[str, Any]]) -> Object:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise _DamageError("a key stands twice in one object")
    return table


def _refuse_constant(name: str) -> Any:
    raise _DamageError(f"{name} is no number of JSON")


def _check_plain(value: Any, depth: int = 0) -> None:
    """Refuse what JSON can spell and the rest of the program cannot hold."""
    if depth > DEEPEST:
        raise _DamageError("nested too deeply")
    if isinstance(value, (dict, list)):
        for item in [*value.keys(), *value.values()] if isinstance(value, dict) else value:
            _check_plain(item, depth + 1)
    elif isinstance(value, str):
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise _DamageError("half a character")
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and not _is_small(value):
        raise _DamageError("a number too large")


def _is_small(value: float) -> bool:
    return is_number(value) and math.isfinite(value)


def _shown(key: str) -> str:
    return ascii(key[:30])


def is_text(value: Any) -> bool:
    """A string."""
    return isinstance(value, str)


def is_object(value: Any) -> bool:
    """A JSON object."""
    return isinstance(value, dict)


def is_number(value: Any) -> bool:
    """A float, or an integer that is no boolean and not larger than torch's integers."""
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
