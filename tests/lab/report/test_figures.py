"""Pictures of run folders."""

import re
import runpy
import warnings
from pathlib import Path

import pytest

from lab.report.test_tables import store
from lab.runs import call, execute, run
from polyak_lab.config import run as config
from polyak_lab.report import figures, panels, table
from polyak_lab.runs import stored
from polyak_lab.runs.stored import Label


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for name, title in (("alig", "ALI-G"), ("sgd", "SGD")):
        for position, lr in enumerate((0.01, 0.1)):
            wanted = run(config.Optimizer(name, options={"lr": lr}), model="logistic", epochs=1)
            execute(root / f"{name}-{lr}", wanted, Label(f"{title}, lr {lr:g}", "t", position))
    return root


def test_rows_that_differ_in_lr_alone_are_one_method(runs):
    lines = panels.scores_by_lr(table.groups(stored.find_runs([runs])))
    assert {name: (optimizer, sorted(points)) for name, (optimizer, points) in lines.items()} == {
        "ALI-G": ("alig", [0.01, 0.1]),
        "SGD": ("sgd", [0.01, 0.1]),
    }
    assert all(0 < score[0] < 100 for _, points in lines.values() for score in points.values())


@pytest.mark.parametrize("flag", ["--plot-lr", "--plot-loss"])
@pytest.mark.parametrize("form", ["png", "svg"])
def test_a_picture_is_written_and_repeats_itself(form, flag, runs, tmp_path, capsys):
    paths = [tmp_path / f"{name}.{form}" for name in "ab"]
    assert all(call("table", runs, flag, path) == 0 for path in paths)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes()[:4] == {"png": b"\x89PNG", "svg": b"<?xm"}[form]


ROWS_OF_TWO_SETS = {  # the row: its lr and its data set
    "ALI-G, lr 0.1, momentum 0.9, digits": (0.1, "digits"),
    "ALI-G, lr 1, momentum 0.9, digits": (1.0, "digits"),
    "Fashion-MNIST, ALI-G, momentum 0.9, lr 0.1": (0.1, "fashion-mnist"),
    "SGD, lr 0.5, fashion-mnist, train_size 9": (0.5, "fashion-mnist"),
}
LINES = {  # of the panels
    "--plot-lr": [["ALI-G, momentum 0.9"], ["ALI-G, momentum 0.9", "SGD, train_size 9"]],
    "--plot-loss": [
        ["ALI-G, lr 0.1, momentum 0.9", "ALI-G, lr 1, momentum 0.9"],
        ["ALI-G, momentum 0.9, lr 0.1", "SGD, lr 0.5, train_size 9"],
    ],
}


@pytest.mark.parametrize("flag", LINES)
def test_a_picture_has_a_panel_for_every_data_set(flag, tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(figures, "_rendered", lambda figure, suffix: drawn.append(figure) or b"")
    for position, (row, (lr, data)) in enumerate(ROWS_OF_TWO_SETS.items()):
        folder = tmp_path / "runs" / str(position)
        store(folder, row, row[:3], None, 0, 0.9, None, options={"lr": lr}, data={"name": data, "sha256": row})
    assert call("table", tmp_path / "runs", flag, tmp_path / "a.png") == 0
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == ["digits", "fashion-mnist"]
    assert [[line.get_gid() for line in axes.lines] for axes in figure.axes] == LINES[flag]
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert named == [*dict.fromkeys(name for lines in LINES[flag] for name in lines)]
    ours = [axes.lines[0].get_color() for axes in figure.axes]
    assert (ours[0] == ours[1]) == (flag == "--plot-lr")  # a method has one colour


def test_data_sets_of_one_name_are_told_apart_by_their_options(tmp_path):
    for size in (9, 99):
        store(
            tmp_path / f"{size}", f"SGD, {size}", "sgd", None, 0, 0.9, None, data={"name": "digits", "train_size": size}
        )
    assert [panel.title for panel in panels.by_data(table.groups(stored.find_runs([tmp_path])))] == [
        "digits, train_size 9",
        "digits, train_size 99",
    ]


@pytest.mark.parametrize("letter", ["0", "W", "i", "模"])
@pytest.mark.parametrize("length", [5, 40, *(pytest.param(n, marks=pytest.mark.slow) for n in (24, 100, 300))])
def test_the_legend_stays_inside_the_picture(length, letter, runs, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_rendered", lambda figure, suffix: drawn.append(figure) or b"")
    rows = table.groups(stored.find_runs([runs]))
    named = [table.Group(f"{number}{length * letter}, lr 1", rows[0].runs) for number in range(9)]
    figures.write_losses(tmp_path / "loss.png", named)
    (figure,) = drawn
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s)Glyph .* missing from")
        legend = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= legend.x0 < legend.x1 <= figure.bbox.x1


def test_what_cannot_be_drawn(runs, tmp_path, capsys):
    assert call("table", runs, "--plot-lr", tmp_path / "lr.pdf") == 1
    assert call("table", runs / "sgd-0.1", "--plot-lr", tmp_path / "lr.png") == 1
    printed = capsys.readouterr().err
    assert "--plot-lr is " in printed
    assert "must be a file that ends in .png or .svg" in printed
    assert "two or more finite values of lr" in printed
    assert list(tmp_path.iterdir()) == []


def test_a_picture_that_can_be_drawn_is_drawn_beside_one_that_cannot(runs, tmp_path, capsys):
    pictures = "--plot-lr", tmp_path / "lr.png", "--plot-loss", tmp_path / "loss.svg"
    assert call("table", runs / "sgd-0.1", *pictures) == 1
    assert "two or more finite values of lr" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["loss.svg"]


@pytest.mark.parametrize(("lr", "loss"), [("lr.png", "loss.pdf"), ("lr.pt", "loss.png"), ("a.png", "a.png")])
def test_the_files_of_pictures_are_checked_before_anything_is_written(lr, loss, runs, tmp_path, capsys):
    pictures = "--plot-lr", tmp_path / lr, "--plot-loss", tmp_path / loss
    assert call("table", runs, *pictures) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"polyak: --plot[^\n]+\.\n", printed.err)
    assert list(tmp_path.iterdir()) == []


def test_the_picture_of_the_front_page_is_drawn_from_the_stored_runs(tmp_path):
    root = Path(__file__).parents[3]
    script = runpy.run_path(str(root / "docs" / "figures" / "accuracy_against_lr.py"))
    script["main"](tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert script["OUT"].stat().st_size < 100_000
    assert f"({script['OUT'].relative_to(root)})" in (root / "README.md").read_text(encoding="utf-8")
