"""What people write and what runs come to, as it is shown: names as they are, and pictures of every number."""

import json
import unicodedata
import warnings

import pytest

from lab.report.test_tables import store
from lab.runs import call
from polyak_lab.errors import LabError
from polyak_lab.report import curves, figures, table
from polyak_lab.report import page as report
from polyak_lab.runs import stored

NAMES = [
    "[/]",
    "a[/b]",
    "x\\[/]",
    "[bold]b[/bold]",
    "[link=x]y",
    "sgd:x:0.9",
    ":smile:",
    "$x^{$",
    "$\\frac{$",
    "_hidden",
    "模型",
    "модель",
    "a{b}",
    "{task.name}",
    "100 %",
    "<script>",
    "a|b",
]
CONTROLS = [
    "a\u061cb",
    "a\x1b[31mb",
    "a\x07b",
    "a\rb",
    "a\nb",
    "a\x00b",
    "a\x9bb",
    "a\u202eb",
    "a\u2028b",
    "a\tb",
    "a\x7fb",
]


def quick_first(names, count):
    """Every name, of which all but the first few are slow tests."""
    return [*names[:count], *(pytest.param(name, marks=pytest.mark.slow) for name in names[count:])]


def runs_of(folder, name, **numbers):
    for seed in (0, 1):
        store(folder / f"seed-{seed}", name, "alig", None, seed, 0.9, 0.5, **numbers)
    return table.groups(stored.find_runs([folder]))


@pytest.mark.parametrize("name", quick_first(NAMES, 6))
def test_a_name_is_shown_as_it_was_written(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    rows = runs_of(tmp_path / "runs", name)
    for form in ("terminal", "csv"):
        assert call("table", tmp_path / "runs", "--format", form) == 0
        assert name in capsys.readouterr().out
    for form in ("png", "svg"):
        figures.write_losses(tmp_path / f"loss.{form}", rows)
    report.write(tmp_path / "report.html", rows, name, name)


@pytest.mark.parametrize("name", quick_first(CONTROLS, 5))
def test_control_characters_do_not_reach_the_terminal(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    rows = runs_of(tmp_path / "runs", name)
    for form in ("terminal", "markdown", "csv"):
        assert call("table", tmp_path / "runs", "--format", form) == 0
        printed = capsys.readouterr().out
        assert not {letter for letter in printed if unicodedata.category(letter) in ("Cc", "Zl")} - {"\n"}
        assert not {"\u202e", "\u061c"} & {*printed}
        assert name.encode("unicode_escape").decode() in printed.replace("\\\\", "\\")
    figures.write_losses(tmp_path / "loss.svg", rows)
    report.write(tmp_path / "report.html", rows, name, name)


@pytest.mark.parametrize("width", [1, 20, 40])
def test_names_and_numbers_stay_in_a_very_narrow_terminal(width, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    runs_of(tmp_path / "runs", "ALI-G")
    assert call("table", tmp_path / "runs") == 0
    printed = capsys.readouterr().out
    assert "ALI-G" in printed
    assert "90.00 ± 0.00" in printed


LOSSES = {
    "largest": [1e308, 1.7976931348623157e308, 1e308],
    "smallest": [5e-324, 1e-310, 1e-300],
    "both": [5e-324, 1.0, 1e308],
    "zero": [0.0, 0.0, 0.0],
    "negative": [-1.0, -1e308, -2.0],
    "never finite": ["nan", "inf", "-inf"],
    "none yet": [],
}


def with_losses(folder, losses):
    runs_of(folder, "ALI-G")
    for path in folder.glob("*/metrics.jsonl"):
        (path.parent / "summary.json").unlink()
        first = json.loads(path.read_text().splitlines()[0])
        lines = [first | {"epoch": n, "train_loss": x, "test_loss": x, "step_size": x} for n, x in enumerate(losses, 1)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return table.groups(stored.find_runs([folder]))


@pytest.mark.parametrize("kind", LOSSES)
def test_pictures_of_any_loss(kind, tmp_path):
    rows = with_losses(tmp_path / "runs", LOSSES[kind])
    table.cells(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report.write(tmp_path / "report.html", rows, "t", "n")
        for form in ("png", "svg"):
            if kind in ("largest", "smallest", "both"):
                figures.write_losses(tmp_path / f"loss.{form}", rows)
            else:
                with pytest.raises(LabError, match="--plot-loss needs an epoch whose training loss is positive"):
                    figures.write_losses(tmp_path / f"loss.{form}", rows)


@pytest.mark.parametrize("kind", LOSSES)
def test_tables_of_any_loss(kind, tmp_path):
    for seed, loss in enumerate([*LOSSES[kind], 1.0][:3]):
        store(tmp_path / f"seed-{seed}", "ALI-G", "alig", 50.0, seed, None, 0.5, test_loss=loss)
    ((_, loss, *_),) = table.cells(table.groups(stored.find_runs([tmp_path])))[1]
    assert ("not finite" in loss) == (kind == "never finite")


DRAWN_AT = {0.0: [], "inf": [], "nan": [], 1e308: [curves.LARGEST], 5e-324: [curves.SMALLEST], None: [], "fast": []}


@pytest.mark.parametrize("lr", DRAWN_AT)
def test_pictures_over_any_lr(lr, tmp_path, monkeypatch):
    drawn, rendered = [], figures._rendered
    monkeypatch.setattr(figures, "_rendered", lambda figure, suffix: drawn.append(figure) or rendered(figure, suffix))
    for number, value in enumerate((lr, 0.1, 1.0)):
        folder = tmp_path / "runs" / str(number)
        store(folder, f"SGD, lr {value}", "sgd", None, 0, 0.9, None, options={"lr": value})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.write_sensitivity(tmp_path / "lr.png", table.groups(stored.find_runs([tmp_path / "runs"])))
    (line,) = drawn[0].axes[0].lines
    assert [*line.get_xdata()] == sorted([*DRAWN_AT[lr], 0.1, 1.0])
    assert [*line.get_ydata()] == [90.0] * len(line.get_xdata())
    assert (tmp_path / "lr.png").read_bytes()[:4] == b"\x89PNG"


def test_a_run_without_an_epoch_is_not_counted(tmp_path):
    rows = runs_of(tmp_path, "ALI-G")
    for path in tmp_path.glob("*/metrics.jsonl"):
        path.write_text("")
    with pytest.raises(LabError, match="None of the 2 runs"):  # a finished one has epochs: it lost them
        stored.find_runs([tmp_path], lambda error: None)
    for path in tmp_path.glob("*/summary.json"):
        path.unlink()
    rows = table.groups(stored.find_runs([tmp_path]))
    assert table.cells(rows)[1][0][-1] == "0 of 2"
    report.write(tmp_path / "report.html", rows, "t", "n")


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_word_of_a_table_is_cut(width, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    place = tmp_path / "a-folder-with-rather-a-long-name" / "of-all-data"
    monkeypatch.setattr("polyak_lab.data.describe", lambda: [["digits", "1,797 images", str(place), "in the package"]])
    name = "momentum_of_a_method_with_a_long_name"
    for row, value in (("first", "a value of several words " * 3), ("second", 0.5)):
        for seed in (0, 1):
            options = {name: value, "eps": 0.1}
            store(tmp_path / row / f"{seed}", row, "alig", None, seed, 0.9 - 0.1 * seed, 0.5, options=options)
    assert call("compare", tmp_path / "first", tmp_path / "second") == 0
    assert call("data", "list") == 0
    printed = capsys.readouterr().out
    assert f"│ optimizer.options.{name} │" in printed
    assert f"│ {place} │" in printed
    for listed in printed.split("┏")[1:]:
        lines = [line for line in f"┏{listed}".splitlines() if line[0] in "┏┃┡│└"]
        assert {len(line) for line in lines} == {len(lines[0])}
