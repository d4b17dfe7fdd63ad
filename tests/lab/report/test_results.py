"""The stored results: every table is that of the packed runs beside it, byte for byte."""

from pathlib import Path

import pytest

from lab.runs import call
from polyak_lab.runs import packed

RESULTS = Path(__file__).parents[3] / "results"
FILES = sorted(RESULTS.rglob(packed.FILE))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_a_table_is_that_of_its_runs(file, capsys):
    assert call("table", file.parent, "--format", "markdown") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out == (file.parent / "table.md").read_text(encoding="utf-8")


def test_runs_are_packed_and_finished():
    assert len(FILES) >= 10
    assert [*RESULTS.rglob("config.json"), *RESULTS.rglob("metrics.jsonl")] == []
    assert all(run.name and run.has("summary.json") for file in FILES for run in packed.read(file))
