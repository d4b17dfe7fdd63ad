"""Dataclasses read strictly from tables: unknown keys, missing keys and values of another type are refused.

A dataclass whose table is written in another form than its fields has a classmethod
`from_table(table, where)`.
"""

import difflib
import math
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from polyak_lab.errors import LabError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


LARGEST_FLOAT32 = 3.4e38
MOST_LEVELS = 16
"""Of lists and tables in an option; the reader of stored runs allows twice as many in a whole file."""


def require_at_least_one(table: Any, where: str, names: Iterable[str]) -> None:
    """Refuse counts below 1 or beyond 64 bits; None means no limit."""
    require_int64(table, where, names)
    for name in names:
        value = getattr(table, name)
        if value is not None and value < 1:
            raise LabError(f"{where}.{name} is {value}, but must be 1 or more.")


def require_int64(table: Any, where: str, names: Iterable[str]) -> None:
    """Refuse integers that torch's cannot hold."""
    for name in names:
        value = getattr(table, name)
        if value is not None and not is_int64(value):
            raise LabError(f"{where}.{name} is {shown(value)}, but must lie between -2**63 and 2**63 - 1.")


def require_positive(
    table: Any,
    where: str,
    names: Iterable[str],
    largest: float = LARGEST_FLOAT32,
) -> None:
    """Refuse numbers that are not positive or beyond float32; None means not set."""
    for name in names:
        value = getattr(table, name)
        if value is not None and not 1 / largest <= value <= largest:
            raise LabError(f"{where}.{name} is {shown(value)}, but must be a positive number of at most {largest:g}.")


def require_storable(options: Mapping[str, Any], where: str) -> None:
    """Refuse options that the JSON of a configuration cannot hold: the run would be trained, and never read again."""
    for key, value in options.items():
        _check_storable(value, f"{where}.{key}", MOST_LEVELS)


def _check_storable(value: Any, where: str, levels: int) -> None:
    if isinstance(value, (list, tuple, Mapping)):
        if levels == 0:
            raise LabError(f"{where} is nested in more than {MOST_LEVELS} levels: write it flatter.")
        for item in value.values() if isinstance(value, Mapping) else value:
            _check_storable(item, where, levels - 1)
    elif isinstance(value, int) and not isinstance(value, bool) and not is_int64(value):
        raise LabError(f"{where} holds {shown(value)}, but it must lie between -2**63 and 2**63 - 1.")
    elif value is not None and not isinstance(value, (str, int, float)):
        raise LabError(f'{where} holds {value}, which no configuration can: write it as a text, "{value}".')


def is_int64(value: int) -> bool:
    """Tell whether a 64-bit integer can hold a number."""
    return -(1 << 63) <= value < 1 << 63


def is_number(value: Any) -> bool:
    """Tell whether a value is a number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def is_float32(value: float) -> bool:
    """Tell whether float32 can hold a number, or whether it is infinite or NaN to begin with."""
    return not LARGEST_FLOAT32 < abs(value) < math.inf


def shown(value: Any) -> str:
    """Write a value for a message: short, and on one line."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 1 << 63:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def check_known(name: str, known: Iterable[str], where: str) -> None:
    """Refuse a name that is not among `known`, and say which one is nearest."""
    known = sorted(known)
    if name in known:
        return
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    nearest = nearest or difflib.get_close_matches(name.casefold().replace("_", "-"), known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}."
    raise LabError(f"{where}: {name!r} is not known; {hint}")


def near_miss(name: str, known: Iterable[str]) -> bool:
    """Tell whether a name is not known, but hardly differs from one that is."""
    known = tuple(known)
    return name not in known and bool(difflib.get_close_matches(name, known, n=1, cutoff=0.8))


def read(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """Make a dataclass from a table, by its own `from_table` if it has one."""
    from_table: Callable[[Mapping[str, Any], str], T] | None = getattr(kind, "from_table", None)
    return read_fields(kind, table, where) if from_table is None else from_table(table, where)


def read_fields(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """Make a dataclass from a table; refuse unknown and missing keys, and values of another type."""
    hints = get_type_hints(kind)
    for key in table:
        check_known(key, hints, where)
    required = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    for name in required:
        if name not in table:
            raise LabError(f"{where}: the key {name!r} is missing.")
    values = {key: _convert(value, hints[key], f"{where}.{key}") for key, value in table.items()}
    try:
        return kind(**values)
    except LabError as error:
        raise LabError(f"{where}: {error}") from error


def _convert(value: Any, hint: Any, where: str) -> Any:
    if isinstance(hint, type) and is_dataclass(hint):
        return read(hint, as_table(value, where), where)
    accepted = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kinds = [get_origin(one) or one for one in accepted]
    for kind in kinds:
        if _ACCEPTS[kind](value):
            return _MAKES.get(kind, lambda same: same)(value)
    if list in kinds and isinstance(value, Mapping):
        name = where.rpartition(".")[2]
        raise LabError(f"{where} is a single table: write [[{name}]] instead of [{name}].")
    wanted = " or ".join(_WANTED[kind] for kind in kinds if kind in _WANTED)
    raise LabError(f"{where} is {shown(value)}, but must be {wanted}.")


def as_table(value: Any, where: str) -> Mapping[str, Any]:
    """Read a section; data = "digits" is short for data = { name = "digits" }."""
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, Mapping):
        raise LabError(f"{where} is {shown(value)}, but must be a name or a table.")
    return value


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_ACCEPTS: dict[Any, Callable[[Any], bool]] = {
    bool: lambda value: isinstance(value, bool),
    int: _is_integer,
    float: lambda value: (_is_integer(value) and is_float32(value)) or isinstance(value, float),
    str: lambda value: isinstance(value, str),
    Literal: lambda value: isinstance(value, str),  # which one is checked later
    tuple: lambda value: isinstance(value, (list, tuple)) and all(map(_is_integer, value)),
    list: lambda value: isinstance(value, list) and all(isinstance(item, Mapping) for item in value),
    Mapping: lambda value: isinstance(value, Mapping),
    types.NoneType: lambda value: value is None,
}
_WANTED: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: f"a number of at most {LARGEST_FLOAT32:g}",
    str: "a text",
    Literal: "a text",
    tuple: "a list of whole numbers, such as [0, 1, 2]",
    list: "a list of tables",
    Mapping: "a table",
}
_MAKES: dict[Any, Callable[[Any], Any]] = {float: float, tuple: tuple}
