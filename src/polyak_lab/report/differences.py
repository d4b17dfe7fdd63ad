"""What differs between configurations, key by key."""

from collections.abc import Mapping, Sequence
from typing import Any

from polyak_lab.config.run import flatten
from polyak_lab.console import printable

SEEDS = ("training.seed", "training.shuffle_seed")
NOT_SET = "–"


def differing(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the keys, in dotted form, whose values differ, with the value of each configuration; seeds aside."""
    return {key: values for key, values in _written(configs).items() if len({*values}) > 1}


def shared(configs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the keys, in dotted form, whose value is the same in all configurations; seeds aside."""
    return {key: values[0] for key, values in _written(configs).items() if len({*values}) == 1}


def _written(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    tables = [dict(flatten(config)) for config in configs]
    keys = dict.fromkeys(key for table in tables for key in table if key not in SEEDS)
    return {printable(key): [write(table[key]) if key in table else NOT_SET for table in tables] for key in keys}


def write(value: Any) -> str:
    """Write a value of a configuration as a recipe does."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(write, value))}]"
    return format(value, "g") if isinstance(value, float) else printable(str(value))
