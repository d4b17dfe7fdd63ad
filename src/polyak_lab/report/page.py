"""One self-contained HTML page with the tables and the curves, which requests nothing."""

from collections.abc import Sequence
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from polyak_lab.console import counted, printable
from polyak_lab.errors import LabError
from polyak_lab.files import write_atomic
from polyak_lab.report import curves, differences, run_list
from polyak_lab.report.table import Group, cells
from polyak_lab.runs.stored import Files, UnreadableRunError

UPLOT = "1.6.32"
"""The version of uPlot in the folder `uplot`."""


def write(path: Path, rows: Sequence[Group], title: str, note: str, problems: Sequence[LabError] = ()) -> None:
    """Write the page.

    Args:
        path: The file.
        rows: The rows of the table; their configurations are linked relative to the file.
        title: The heading.
        note: A sentence below it.
        problems: What was wrong with folders; an unreadable run is named in the list of runs.
    """
    unreadable = [problem for problem in problems if isinstance(problem, UnreadableRunError)]
    timings = {run.files: run_list.read_timing(run) for group in rows for run in group.runs}
    runs = run_list.lines(rows, unreadable, timings, path)
    head, body = _table(rows, timings)
    page = _template().render(
        title=title,
        note=note,
        notices=_notices(rows, runs, problems),
        head=head,
        lines=body,
        data=curves.page_data(rows),
        runs=runs,
        place=printable(run_list.place(rows, unreadable).as_posix()),
        differing=_differing(rows),
        shared=differences.shared(_configurations(rows)),
        date=date.today().isoformat(),
        uplot=_uplot(),
    )
    write_atomic(path, page)


def _table(rows: Sequence[Group], timings: dict[Files, run_list.Timing]) -> tuple[list[str], list[list[str]]]:
    """Lay the table out, with the recipes if there are several, the times and the speeds."""
    head, lines = cells(rows)
    names = [group.runs[0].label.table or "none" for group in rows]
    if len({*names}) > 1:
        head, lines = [*head, "recipe"], [[*line, printable(name)] for line, name in zip(lines, names, strict=True)]
    times = [run_list.means(group, timings) for group in rows]
    return [*head, "time", "samples/s"], [[*line, *time] for line, time in zip(lines, times, strict=True)]


def _notices(rows: Sequence[Group], runs: Sequence[run_list.RunLine], problems: Sequence[LabError]) -> list[str]:
    """Return what a reader should know before comparing rows."""
    found = [str(problem) for problem in problems if not isinstance(problem, UnreadableRunError)]
    if odd := sum(run.is_problem for run in runs):
        verb = "is" if odd == 1 else "are"
        found.append(f"{odd} of {counted(len(runs), 'run')} {verb} unfinished, empty or damaged; see the list of runs.")
    recipes = {group.runs[0].label.table for group in rows}
    if len(recipes) > 1:
        named = ", ".join(sorted(name or "none" for name in recipes))
        found.append(f"The rows belong to different recipes ({named}); see how their configurations differ.")
    for section, what in (("data", "data"), ("model", "networks")):
        if len({str(group.runs[0].config.get(section)) for group in rows}) > 1:
            found.append(f"The rows were trained on different {what}." if what == "data" else f"The {what} differ.")
    return found


def _configurations(rows: Sequence[Group]) -> list[Any]:
    return [group.runs[0].config for group in rows]


def _differing(rows: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """Lay out the options that differ, a line for each row."""
    found = differences.differing(_configurations(rows))
    return [*found], [[values[index] for values in found.values()] for index in range(len(rows))]


def _uplot() -> dict[str, str]:
    """Read uPlot and its licence; the address in the header of the script is left out."""
    folder = files("polyak_lab.report") / "uplot"
    names = {"script": "uPlot.iife.min.js", "style": "uPlot.min.css", "licence": "LICENSE"}
    text = {key: (folder / name).read_text(encoding="utf-8").strip() for key, name in names.items()}
    return {**text, "script": text["script"].partition("*/")[2].strip(), "version": UPLOT}


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("polyak_lab.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters["printable"] = printable
    environment.globals |= {"colour": curves.colour, "is_dashed": curves.is_dashed}
    return environment.get_template("page.html.j2")
