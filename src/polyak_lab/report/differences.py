"""What differs between configurations, key by key."""

from collections.abc import Mapping, Sequence
from typing import Any

from polyak_lab.config.run import flatten
from polyak_lab.console import printable

SEEDS = ("training.seed", "training.shuffle_seed")
TEST_DATA = ("name", "version", "sha256", "context")
NOT_SET = "–"


def same_test_samples(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Return whether two configurations test on the same samples; they may train on other ones, such as fewer."""
    ours, theirs = (config.get("data", {}) for config in (first, second))
    stated = [key for key in TEST_DATA if ours.get(key) and theirs.get(key)]  # older runs lack some
    return ours.get("options", {}) == theirs.get("options", {}) and all(ours[key] == theirs[key] for key in stated)


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
