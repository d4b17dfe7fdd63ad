"""Dataclasses read strictly from tables: unknown keys, missing keys and values of another type are refused.

A dataclass whose table is written in another form than its fields has a classmethod `from_table(table, where)`.
"""

import difflib
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from polyak_lab.errors import LabError

T = TypeVar("T")


def require_at_least_one(table: Any, where: str, names: Iterable[str]) -> None:
    """Refuse counts below 1; None stands for no limit."""
    for name in names:
        value = getattr(table, name)
        if value is not None and value < 1:
            raise LabError(f"{where}.{name} is {value}, but must be 1 or more.")


def check_known(name: str, known: Iterable[str], where: str) -> None:
    """Refuse a name that is not among `known`, and say which one is nearest."""
    known = sorted(known)
    if name in known:
        return
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}."
    raise LabError(f"{where}: {name!r} is not known; {hint}")


def read(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """Make a dataclass from a table, by its own `from_table` if it has one."""
    from_table: Callable[[Mapping[str, Any], str], T] | None = getattr(kind, "from_table", None)
    return read_fields(kind, table, where) if from_table is None else from_table(table, where)


def read_fields(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """Make a dataclass from a table, refusing unknown keys, missing keys and values of another type."""
    hints = get_type_hints(kind)
    for key in table:
        check_known(key, hints, where)
    required = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    for name in required:
        if name not in table:
            raise LabError(f"{where}: the key {name!r} is missing.")
    return kind(**{key: _convert(value, hints[key], f"{where}.{key}") for key, value in table.items()})


def _convert(value: Any, hint: Any, where: str) -> Any:
    if is_dataclass(hint):
        return read(hint, as_table(value, where), where)
    for accepted in get_args(hint) if isinstance(hint, types.UnionType) else (hint,):
        kind = get_origin(accepted) or accepted
        if _ACCEPTS[kind](value):
            return _MAKES.get(kind, lambda same: same)(value)
    wanted = getattr(hint, "__name__", str(hint)).replace(" | None", "")
    raise LabError(f"{where} is {value!r}, but must be of type {wanted}.")


def as_table(value: Any, where: str) -> Mapping[str, Any]:
    """Read a section, of which a name alone is short for: data = "digits" is data = { name = "digits" }."""
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, Mapping):
        raise LabError(f"{where} is {value!r}, but must be a name or a table.")
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_ACCEPTS = {
    bool: lambda value: isinstance(value, bool),
    int: _is_integer,
    float: lambda value: _is_integer(value) or isinstance(value, float),
    str: lambda value: isinstance(value, str),
    tuple: lambda value: isinstance(value, (list, tuple)) and all(map(_is_integer, value)),
    list: lambda value: isinstance(value, list) and all(isinstance(item, Mapping) for item in value),
    Mapping: lambda value: isinstance(value, Mapping),
    types.NoneType: lambda value: value is None,
}
_MAKES = {float: float, tuple: tuple}
