"""Recipes: one TOML file per table of a paper, one row per line of the table.

A recipe holds `title`, `note` and `seeds`, a table `[defaults]`, and one `[[row]]` per line. A
row's sections are laid over those of `[defaults]`, key by key (an optimizer is taken whole).
`[smoke]` holds sections that `--smoke` lays over those of every row, to make it small; without it,
a smoke run takes two steps. `[grid]` (see `grid`) repeats every row with the values it lists.
`cuda_graph = true` holds on a GPU, and on a CPU is left out.
Unknown keys are refused.
"""

import difflib
import hashlib
import re
import tomllib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from polyak_lab.config.run import Run
from polyak_lab.config.strict import (
    LARGEST_FLOAT32,
    as_table,
    is_number,
    read,
    shown,
)
from polyak_lab.console import encodable, shortened
from polyak_lab.errors import LabError
from polyak_lab.recipes.grid import on_grid


@dataclass(frozen=True)
class Row:
    """A line of a table: its name, what to run, and the paper's number if it has one."""

    name: str
    run: Run
    paper: float | None = None
    small: Run | None = None
    """What `--smoke` runs instead."""
    family: str = ""
    """The name that the rows of a grid share."""
    line: int | None = None
    """The line of its [[row]] in the file."""

    @property
    def slug(self) -> str:
        """The name as a folder."""
        return slug(self.name)


@dataclass(frozen=True)
class Recipe:
    """A table to be: its rows, and the seeds each is run with."""

    name: str
    title: str
    note: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    sweep: Mapping[str, Any] = field(default_factory=dict)
    """What `polyak sweep` searches, as it stands in the file."""


@dataclass(frozen=True)
class _File:
    """The keys a recipe file may have."""

    row: list[Mapping[str, Any]]
    title: str = ""
    note: str = ""
    seeds: tuple[int, ...] = (0,)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    smoke: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Any] = field(default_factory=dict)
    sweep: Mapping[str, Any] = field(default_factory=dict)


LONGEST_SLUG = 120
"""Bytes; a file name has at most 255, and some of them are taken by temporary files."""


RESERVED = re.compile(r"config\.json|runs\.jsonl|report\.html|(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
"""Names of files that are looked for, or written, beside the folders of rows; and those of the devices of Windows."""


def slug(name: str) -> str:
    """Spell a name so that it can be a folder: 'ALI-G, momentum 0.9' becomes 'ali-g-momentum-0.9'.

    Letters of any script stay; a name without letters, one that is too long, or that is reserved, is told
    apart by its hash.
    """
    letters = unicodedata.normalize("NFKC", name).lower()
    spelled = re.sub(r"[^\w.]+|_+", "-", letters).strip("-.")
    if spelled and len(spelled.encode()) <= LONGEST_SLUG and not RESERVED.fullmatch(spelled):
        return spelled
    start = spelled.encode()[: LONGEST_SLUG - 9].decode(errors="ignore").rstrip("-.") or "row"
    return f"{start}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


def load(path: Path) -> Recipe:
    """Read a recipe, refusing anything it does not know."""
    text = _read(path)
    content = read(_File, _parse(path, text), str(path))
    tables = [
        (i, table)
        for i, row in enumerate(content.row)
        for table in on_grid(row, content.grid, content.defaults, str(path))
    ]
    starts = _starts_of_rows(text, len(content.row))
    rows = tuple(
        replace(_row(table, content, f"{path}, row {number}"), family=str(content.row[i].get("name")), line=starts[i])
        for number, (i, table) in enumerate(tables, 1)
    )
    if not rows:
        raise LabError(f"{path} has no [[row]]: a recipe needs at least one.")
    _refuse_doubles(rows, path)
    if not content.seeds:
        raise LabError(f"{path}: seeds is empty; name at least one, such as seeds = [0].")
    name = encodable(path.stem)
    return Recipe(name, content.title or name, content.note, content.seeds, rows, content.sweep)


def select(rows: Sequence[Row], names: Sequence[str], flag: str = "--row") -> tuple[Row, ...]:
    """Keep the rows named; all of them if none is. What is raised names the flag, or where else the names stand.

    A name is that of a row, its folder, the row that a grid repeats, or the beginning of one of
    them that no other row has. Case, spaces and punctuation do not matter. A beginning that ends
    with a word or number goes before one that ends inside: lr 1 names lr 1 and not lr 10.
    """
    chosen = {row.name for name in names for row in find_named(rows, name, flag)} or {row.name for row in rows}
    return tuple(row for row in rows if row.name in chosen)


class Named(Protocol):
    """What is named like a row."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def slug(self) -> str: ...  # noqa: D102
    @property
    def family(self) -> str: ...  # noqa: D102


AnyNamed = TypeVar("AnyNamed", bound=Named)


def find_named(rows: Sequence[AnyNamed], name: str, flag: str) -> list[AnyNamed]:
    """Find the rows of one family that a name belongs to, as `select` does; a flag is named in what is raised."""
    key = _key(name)
    spellings = (
        [row for row in rows if name in (row.name, row.slug)],
        [row for row in rows if key and _key(row.name) == key],
        [row for row in rows if key and _key(row.family) == key],
    )
    exact = next(filter(None, spellings), None)
    whole = [row for row in rows if key and key in _beginnings(row.name)]
    matches = exact or whole or [row for row in rows if key and _key(row.name).startswith(key)]
    if len({row.family for row in matches}) > 1:
        names = ", ".join(repr(shortened(row.name, 50)) for row in matches[:3]) + (", ..." if len(matches) > 3 else "")
        does, advice = ("names", "write it as one of them is") if exact else ("begins the names of", "write more of it")
        raise LabError(f"{flag}: {shown(name)} {does} {len(matches)} rows ({names}): {advice}.")
    if not matches:
        raise _unknown(name, rows, flag)
    return matches


def _unknown(name: str, rows: Sequence[Named], flag: str) -> LabError:
    known = [spelling for row in rows for spelling in (row.name, row.slug)]
    if nearest := difflib.get_close_matches(name, known, n=1, cutoff=0.5):
        return LabError(f"{flag}: {shown(name)} is not known; did you mean {shortened(nearest[0], 100)!r}?")
    some = ", ".join(shortened(row.slug, 40) for row in rows[:4]) + (", ..." if len(rows) > 4 else "")
    return LabError(f"{flag}: {shown(name)} is none of the {len(rows)} rows: write one of {some}.")


def _key(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum() or letter == ".")


def _beginnings(name: str) -> set[str]:
    return {_key(name[: word.end()]) for word in re.finditer(r"[^\W_.]+(\.[^\W_.]+)*", name)}


def with_seed(run: Run, seed: int) -> Run:
    """Give a run its seed."""
    return replace(run, training=replace(run.training, seed=seed))


def on_device(run: Run, device: str) -> Run:
    """Send a run to a device."""
    return replace(run, training=replace(run.training, device=device))


def two_steps(run: Run) -> Run:
    """Cut a run down to two steps, to see that it works."""
    return replace(run, training=replace(run.training, epochs=1, max_batches=2))


def smoke(row: Row) -> Run:
    """Take the small run that the recipe declares, or two steps."""
    return two_steps(row.run) if row.small is None else row.small


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LabError(f"The recipe {path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise _not_toml(path, error) from error


def _starts_of_rows(text: str, count: int) -> Sequence[int | None]:
    """Return the line of every [[row]]; None for all if they are written in another way."""
    lines = [i for i, line in enumerate(text.splitlines(), 1) if re.match(r"\s*\[\[\s*[\"']?row[\"']?\s*\]\]", line)]
    return lines if len(lines) == count else [None] * count


def _not_toml(path: Path, error: ValueError) -> LabError:
    reason = " ".join(str(error).split())[:120]
    return LabError(f"The recipe {path} is not valid TOML: {reason}.")


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise LabError(f"The recipe {path} is not valid TOML: it is nested too deeply.") from error
    except ValueError as error:  # not TOML, or a number of thousands of digits
        raise _not_toml(path, error) from error


def _row(table: Mapping[str, Any], recipe: _File, where: str) -> Row:
    own = dict(table)
    name, paper = own.pop("name", None), own.pop("paper", None)
    if not isinstance(name, str) or not name.strip():
        raise LabError(f"{where} needs a name.")
    where = f"{where} ({shortened(name, 60)})"
    if paper is not None and not (is_number(paper) and -LARGEST_FLOAT32 <= paper <= LARGEST_FLOAT32):
        raise LabError(f"{where}: paper is {shown(paper)}, but must be a number that is finite.")
    sections = _overlay(recipe.defaults, own)
    for section in (sections, recipe.smoke):
        if "seed" in as_table(section.get("training", {}), f"{where}: training"):
            raise LabError(f"{where}: training.seed has no effect here: write seeds = [...] at the top.")
    run = read(Run, sections, where)
    return Row(name, run, paper, _small(run, sections, recipe.smoke, f"{where}, smoke"))


def _small(
    run: Run,
    sections: Mapping[str, Any],
    smoke: Mapping[str, Any],
    where: str,
) -> Run | None:
    """Apply `[smoke]` to a row; milestones are scaled to the shorter run."""
    if not smoke:
        return None
    small = read(Run, _overlay(sections, smoke), where)
    share = small.training.epochs / run.training.epochs
    milestones = tuple(round(share * epoch) for epoch in small.schedule.milestones)
    return replace(small, schedule=replace(small.schedule, milestones=milestones))


def _overlay(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    sections = {**defaults, **own}
    for key in defaults.keys() & own.keys() - {"optimizer"}:
        if isinstance(own[key], Mapping):
            sections[key] = {**as_table(defaults[key], key), **own[key]}
    return sections


def _refuse_doubles(rows: Sequence[Row], path: Path) -> None:
    seen: dict[str, str] = {}
    for row in rows:
        if row.slug in seen:
            names = " and ".join(repr(shortened(name, 60)) for name in (seen[row.slug], row.name))
            raise LabError(f"{path}: the rows {names} would share one folder: rename one of them.")
        seen[row.slug] = row.name
