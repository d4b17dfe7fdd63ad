"""One self-contained HTML page with the table and the curves, without scripts or requests."""

from collections.abc import Sequence
from datetime import date
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from polyak_lab.console import printable
from polyak_lab.files import write_atomic
from polyak_lab.report import figures
from polyak_lab.report.table import Group, cells


def write(path: Path, rows: Sequence[Group], title: str, note: str) -> None:
    """Write the page."""
    head, lines = cells(rows)
    page = _template().render(
        title=title,
        note=note,
        head=head,
        lines=lines,
        names=[group.row for group in rows],
        curves=[(curve, figures.inline_svg(curve, rows)) for curve in figures.curves(rows)],
        date=date.today().isoformat(),
        runs=sum(len(group.runs) for group in rows),
    )
    write_atomic(path, page)


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("polyak_lab.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["printable"] = printable
    environment.globals["colour"] = figures.colour
    return environment.get_template("page.html.j2")
