"""One self-contained HTML page: the table and the curves. No script, no request to anywhere."""

from collections.abc import Sequence
from datetime import date
from html import escape
from pathlib import Path

from polyak_lab.console import printable
from polyak_lab.files import write_atomic
from polyak_lab.report import curves
from polyak_lab.report.table import Group, cells

STYLE = """
:root { color-scheme: light dark;
  --paper: #ffffff; --ink: #1d2129; --soft: #5b6472; --line: #dfe3e8; --faint: #f5f7f9; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171c; --ink: #e8eaed; --soft: #9aa4b2; --line: #30363f; --faint: #1c2027; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 48px 24px 64px; }
h1 { font-size: 28px; line-height: 1.25; margin: 0 0 8px; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 44px 0 8px; }
p { margin: 0 0 12px; max-width: 100ch; }
.soft, footer { color: var(--soft); font-size: 14px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: 24px 0 14px; font-variant-numeric: tabular-nums; }
th { font-size: 13px; font-weight: 600; color: var(--soft); text-align: right; border-bottom: 2px solid var(--line); }
td { text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th, td { padding: 9px 12px; }
th:first-child, td:first-child { text-align: left; padding-left: 4px; }
tbody tr:hover { background: var(--faint); }
.chip { display: inline-block; width: 22px; height: 4px; border-radius: 2px; margin-right: 10px;
  vertical-align: middle; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 22px; font-size: 14px; margin: 0 0 6px; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
footer { margin-top: 40px; border-top: 1px solid var(--line); padding-top: 12px; }
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="soft">{note}</p>
<div class="wide">{table}</div>
<p class="soft">{legend}</p>
{figures}
<footer>{footer}</footer>
</main>
</body>
</html>
"""

LEGEND = (
    "Mean ± standard deviation over n seeds, at the end of the last epoch; n counts finished runs. "
    "Capped steps: those of the whole run whose size was the cap lr."
)
CURVES = "One colour per row; a line is the mean over the seeds, and its band reaches from the least to the greatest."


def write(path: Path, rows: Sequence[Group], title: str, note: str) -> None:
    """Write the page."""
    figures = "".join(_figure(curve, rows) for curve in curves.drawable(rows))
    page = PAGE.format(
        title=escape(printable(title)),
        style=STYLE,
        note=escape(printable(note)),
        table=_table(rows),
        legend=f"{LEGEND} {CURVES}",
        figures=figures,
        footer=f"Written by polyak on {date.today().isoformat()} from {sum(len(row.runs) for row in rows)} runs.",
    )
    write_atomic(path, page)


def _figure(curve: curves.Curve, rows: Sequence[Group]) -> str:
    picture = curves.draw(curve, rows)
    head = f'<h2>{escape(curve.title)}</h2>\n<p class="soft">{escape(curve.caption)}</p>'
    return f"{head}\n{_legend(rows)}\n{picture}\n"


def _legend(rows: Sequence[Group]) -> str:
    entries = (f"<span>{_chip(index)}{escape(printable(group.row))}</span>" for index, group in enumerate(rows))
    return f'<p class="legend">{"".join(entries)}</p>'


def _table(rows: Sequence[Group]) -> str:
    head, lines = cells(rows)
    titles = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "\n".join(_line(line, index) for index, line in enumerate(lines))
    return f"<table>\n<thead><tr>{titles}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _line(line: Sequence[str], index: int) -> str:
    first = f"<td>{_chip(index)}{escape(line[0])}</td>"
    return f"<tr>{first}{''.join(f'<td>{escape(cell)}</td>' for cell in line[1:])}</tr>"


def _chip(index: int) -> str:
    return f'<span class="chip" style="background:{curves.colour(index)}"></span>'
