"""Tables as text for other programs: Markdown, LaTeX, and CSV with numbers by row or by seed."""

import csv
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

from polyak_lab.console import printable
from polyak_lab.report.statistics import deviation, mean
from polyak_lab.report.table import (
    TRAIN_LOSS,
    WEIGHT_NORM,
    Group,
    Score,
    capped_of,
    cells,
    compare,
    paper_score,
    scores,
)

TextFormat = Literal["markdown", "latex", "csv", "csv-seeds"]
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "±": r"$\pm$"}
LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
LATEX |= {letter: f"\\{letter}" for letter in "&%$#_{}"}
MARKDOWN = re.compile(r"[\\|`*_<~$]")
NUMBER = re.compile(r"([+-]?\d[\d.]*)(?:e([+-]\d+))?")
_NUMBER = r"[+-]?(\d[\d.]*(e[+-]\d+)?|inf)"
NUMBERS = re.compile(rf"{_NUMBER}( ± {_NUMBER})?( \[{_NUMBER}, {_NUMBER}\])?")


def as_markdown(rows: Sequence[Group], against: Group | None = None) -> str:
    """Lay the table out for a document."""
    head, lines = cells(rows, against)
    rule = ["---", *["---:"] * (len(head) - 1)]
    escaped = [[MARKDOWN.sub(r"\\\g<0>", cell) for cell in line] for line in (head, *lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (escaped[0], rule, *escaped[1:]))


def as_latex(rows: Sequence[Group], against: Group | None = None) -> str:
    """Lay the table out for a paper; it needs the package booktabs."""
    head, lines = cells(rows, against)
    titles, *body = [f"{' & '.join(line)} \\\\" for line in (map(_latex_text, head), *map(_latex_line, lines))]
    columns = "l" + "r" * (len(head) - 1)
    parts = [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", titles, "\\midrule", *body, "\\bottomrule"]
    return "\n".join([*parts, "\\end{tabular}"])


def as_csv(rows: Sequence[Group], against: Group | None = None) -> str:
    """Write mean, standard deviation and n of every column as numbers, in the units of the table."""
    numbers = [{**_statistics(group, rows), **_comparison(group, against)} for group in rows]
    return _csv([{"row": printable(group.row), **line} for group, line in zip(rows, numbers, strict=True)])


def as_csv_of_seeds(rows: Sequence[Group], against: Group | None = None) -> str:
    """Write the numbers of every run, finished or not, at its last epoch."""
    return _csv([_run(group, index, rows) for group in rows for index in range(len(group.runs))])


WRITERS: dict[TextFormat, Callable[[Sequence[Group], Group | None], str]] = {
    "markdown": as_markdown,
    "latex": as_latex,
    "csv": as_csv,
    "csv-seeds": as_csv_of_seeds,
}


def _columns(rows: Sequence[Group]) -> list[Score]:
    balls = [WEIGHT_NORM] if any(group.has_ball for group in rows) else []
    return [*scores(rows), TRAIN_LOSS, *balls]


def _statistics(group: Group, rows: Sequence[Group]) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for score in _columns(rows):
        values = score.values(group)
        finite = bool(values) and all(map(math.isfinite, values))
        numbers[f"{score.column}_mean"] = mean(values) if finite else math.nan if values else None
        numbers[f"{score.column}_std"] = deviation(values) if finite and len(values) > 1 else None
    capped = group.capped()
    numbers |= {"capped_mean": mean(capped) if capped else None, "n": len(group.finished), "runs": len(group.runs)}
    return numbers | {"paper": group.paper}


def _comparison(group: Group, against: Group | None) -> dict[str, Any]:
    if against is None:
        return {}
    found = compare(group, against, paper_score([against]))
    low, high = (found and found.interval) or (None, None)
    center, n = (found.mean, found.n) if found else (None, 0)
    return {"difference_mean": center, "difference_low": low, "difference_high": high, "difference_n": n}


def _run(group: Group, index: int, rows: Sequence[Group]) -> dict[str, Any]:
    run = group.runs[index]
    last = run.records[-1] if run.records else {}
    numbers = {score.column: _scaled(score, last.get(score.key)) for score in _columns(rows)}
    facts = {"row": printable(group.row), "seed": run.seeds[0], "finished": run.finished, "epochs": len(run.records)}
    return {**facts, **numbers, "capped": capped_of(run), "folder": str(run.path)}


def _scaled(score: Score, value: float | None) -> float | None:
    return None if value is None else score.factor * value


def _csv(lines: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [*lines[0]] if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().rstrip("\n")


def _latex_line(line: Sequence[str]) -> list[str]:
    name, *numbers = line
    # After the end of a line, [ begins an argument and * another form of the command.
    start = "{}" if name.startswith(("[", "*")) else ""
    return [start + _latex_text(name), *map(_latex_cell, numbers)]


def _latex_text(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)


def _latex_cell(text: str) -> str:
    if not NUMBERS.fullmatch(text):
        return _latex_text(text)
    return f"${NUMBER.sub(_latex_number, text).replace('±', chr(92) + 'pm').replace('inf', chr(92) + 'infty')}$"


def _latex_number(found: re.Match[str]) -> str:
    digits, exponent = found.groups()
    return digits if exponent is None else f"{digits} \\cdot 10^{{{int(exponent)}}}"
