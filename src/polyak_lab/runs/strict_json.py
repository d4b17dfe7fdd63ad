"""JSON objects read strictly: any damage is a DamageError, whose text completes "FILE is damaged (...)"."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from polyak_lab.config.strict import is_int64

MAX_DEPTH = 32

Object = dict[str, Any]
Check = Callable[[Any], bool]


class DamageError(Exception):
    """Damage of a file; its text completes "FILE is damaged (...)"."""


def decode(content: bytes) -> str:
    """Decode a file or a line."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamageError(f"byte {error.start + 1} is not UTF-8") from error


def parse_object(text: str) -> Object:
    """Parse a JSON object without duplicate keys, huge numbers and deep nesting."""
    try:
        value = json.loads(text, object_pairs_hook=_refuse_duplicate_keys, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise DamageError(f"invalid JSON at character {error.pos + 1}" if text.strip() else "it is empty") from error
    except (RecursionError, ValueError, MemoryError) as error:  # too deep, or a number too long
        raise DamageError("it is nested too deeply, or a number is too long") from error
    if not isinstance(value, dict):
        raise DamageError("it is not a JSON object")
    _check_values(value)
    return value


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> Object:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise DamageError("an object has a key twice")
    return table


def _refuse_constant(name: str) -> Any:
    raise DamageError(f"{name} is not a JSON number")


def _check_values(value: Any, depth: int = 0) -> None:
    """Refuse values that are valid JSON but that other parts of the program do not support."""
    if depth > MAX_DEPTH:
        raise DamageError("it is nested too deeply")
    if isinstance(value, (dict, list)):
        for item in [*value.keys(), *value.values()] if isinstance(value, dict) else value:
            _check_values(item, depth + 1)
    elif isinstance(value, str):
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise DamageError("a string has an unpaired surrogate")
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and not _is_finite(value):
        raise DamageError("a number is too large")


def _is_finite(value: float) -> bool:
    return is_stored_number(value) and math.isfinite(value)


def check_keys(
    table: Object,
    wanted: Mapping[str, Check],
    *,
    only: bool = False,
    where: str = "",
) -> None:
    """Check the values of a table's keys; with `only`, refuse all others."""
    for key, check in wanted.items():
        if key not in table:
            raise DamageError(f"{where}{key} is missing")
        if not check(table[key]):
            raise DamageError(f"{where}{key} has the wrong type or value")
    unknown = [key for key in table if key not in wanted]
    if only and unknown:
        raise DamageError(f"{where}{short(unknown[0])} is not known")


def short(key: str) -> str:
    """Shorten a key for a message."""
    return ascii(key[:30])


def is_stored_number(value: Any) -> bool:
    """A float, or an integer of at most 64 bits that is not a boolean."""
    if isinstance(value, int):
        return not isinstance(value, bool) and is_int64(value)
    return isinstance(value, float)
