"""The verbs that read folders: `polyak table` and `polyak data`. They need little or no torch."""

from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.table import Table

from polyak_lab.console import cell, say, show, warn


class TableArguments(Protocol):
    """The flags of `polyak table`."""

    runs: tuple[Path, ...]
    format: str
    report: Path | None
    plot_lr: Path | None
    plot_loss: Path | None


def print_table(flags: TableArguments, console: Console) -> None:
    """Print the table of run folders, and write the page and the pictures if files for them are named."""
    from polyak_lab.report import table
    from polyak_lab.runs import stored

    rows = table.groups(stored.find(flags.runs, on_damage=warn))
    if flags.format == "terminal":
        show(console, table.as_rich(rows))
    else:
        say(console, {"markdown": table.as_markdown, "csv": table.as_csv}[flags.format](rows))
    if flags.report is not None:
        from polyak_lab.report import page as report

        report.write(flags.report, rows, "Runs in " + ", ".join(map(str, flags.runs)), "")
    if flags.plot_lr is not None or flags.plot_loss is not None:
        from polyak_lab.report import pictures

        drawings = ((flags.plot_lr, pictures.write_sensitivity), (flags.plot_loss, pictures.write_losses))
        for path, write in drawings:
            if path is not None:
                write(path, rows)


def print_data(console: Console) -> None:
    """Print the data sets."""
    from polyak_lab import data

    table = Table("name", "kind", "where", "how to get it", header_style="bold")
    for row in data.describe():
        table.add_row(*map(cell, row))
    show(console, table)


def fetch_data(name: str, console: Console) -> None:
    """Fetch a data set, with a bar for every file on a terminal."""
    from polyak_lab import data
    from polyak_lab.progress import downloading

    with downloading(console, name) as note:
        place = data.fetch(name, on_progress=note)
    say(console, f"{name} is in {place}")
