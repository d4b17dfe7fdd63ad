"""The verbs that read runs and data: `polyak table`, `report`, `pack` and `data`. They need little or no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from polyak_lab.console import cell, say, say_lines, show, warn
from polyak_lab.errors import LabError
from polyak_lab.files import check_suffix, is_device, is_standard_stream
from polyak_lab.recipes.recipe import find_named
from polyak_lab.report import export, table
from polyak_lab.report.table import Group
from polyak_lab.runs import stored
from polyak_lab.runs.stored import StoredRun

PAGES = (".html", ".htm")
PICTURES = (".png", ".svg")
TableFormat = Literal["terminal"] | export.TextFormat


def read_rows(runs: Sequence[Path], problems: list[LabError] | None = None) -> list[Group]:
    """Read the rows of a table; damaged runs are skipped with a message and added to `problems`."""
    return table.groups(read_runs(runs, problems))


def read_runs(paths: Sequence[Path], problems: list[LabError] | None = None) -> list[StoredRun]:
    """Read runs; damaged ones are skipped with a message and added to `problems`."""

    def report(problem: LabError) -> None:
        warn(problem)
        if problems is not None:
            problems.append(problem)

    return stored.find_runs(paths, on_problem=report)


def print_table(console: Console, rows: Sequence[Group], form: TableFormat, against: str | None) -> None:
    """Print the table, with the differences to a row if one is named."""
    other = None if against is None else find_named(rows, against, "--against")[0]
    if form == "terminal":
        show(console, table.as_rich(rows, against=other))
    else:
        say_lines(console, export.WRITERS[form](rows, other))


def write_page(path: Path, rows: Sequence[Group], runs: Sequence[Path], problems: Sequence[LabError] = ()) -> None:
    """Write the page with the tables and the curves."""
    from polyak_lab.report import page  # Jinja2

    page.write(path, rows, "Runs in " + ", ".join(map(str, runs)), "", problems)


def write_figures(rows: Sequence[Group], *, plot_lr: Path | None, plot_loss: Path | None) -> None:
    """Write the figures that a path is given for; what one of them lacks does not keep the other back."""
    from polyak_lab.report import figures

    problems: list[LabError] = []
    for path, write in ((plot_lr, figures.write_sensitivity), (plot_loss, figures.write_losses)):
        try:
            if path is not None:
                write(path, rows)
        except LabError as error:
            problems.append(error)
    if problems:
        raise LabError(" ".join(map(str, problems)))


def check_page(flag: str, path: Path | None) -> None:
    """Refuse to write a page over a file that is none; streams and devices can be any."""
    if path is not None and not is_standard_stream(path) and not is_device(path):
        check_suffix(flag, path, PAGES)


def check_figures(*, plot_lr: Path | None, plot_loss: Path | None) -> None:
    """Refuse files that are no pictures, and one file for two."""
    for flag, path in (("--plot-lr", plot_lr), ("--plot-loss", plot_loss)):
        if path is not None:
            check_suffix(flag, path, PICTURES)
    if plot_lr is not None and plot_lr == plot_loss:
        raise LabError(f"--plot-lr and --plot-loss are both {plot_lr}: write the second picture to another file.")


def print_data(console: Console) -> None:
    """Print the data sets."""
    from polyak_lab import data

    listed = Table("name", "kind", "where", "how to get it", header_style="bold")
    for row in data.describe():
        listed.add_row(*map(cell, row))
    show(console, listed)


def fetch_data(name: str, console: Console) -> None:
    """Fetch a data set, with a bar for every file on a terminal."""
    from polyak_lab import data
    from polyak_lab.progress import downloading

    with downloading(console, name) as note:
        place = data.fetch(name, on_progress=note)
    say(console, f"{name} is in {place}")
