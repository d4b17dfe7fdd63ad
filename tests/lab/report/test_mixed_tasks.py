"""Tables, differences and pictures of rows on several tasks, each with a score of its own."""

import pytest

from lab.report.test_tables import store
from lab.runs import call
from polyak_lab.report import curves, export, figures, panels, table
from polyak_lab.runs import stored

METHODS = {"ALI-G": "alig", "SGD, lr 0.1": "sgd", "SGD, lr 1": "sgd"}
TASKS = {  # the task: its data, and the scores of its rows
    "digits, small net": ("digits", {"accuracy": 0.9, "validation_accuracy": 0.8, "validation_loss": 0.3}),
    "Zeichen: grün": ("text", {"test_perplexity": 15.0, "validation_perplexity": 16.0, "validation_loss": 2.8}),
    "matrices": ("synthetic-matrix", {"test_loss": 0.02}),
}
PAPERS = {"digits": 91.0, "text": 14.0, "synthetic-matrix": None}


@pytest.fixture
def runs(tmp_path):
    for place, (task, (data, scores)) in enumerate(TASKS.items()):
        for number, (method, optimizer) in enumerate(METHODS.items()):
            numbers = {key: value * 30 ** (method == "SGD, lr 1") for key, value in scores.items()}
            accuracy = numbers.pop("accuracy", None)
            for seed in range(1 + number):
                store(
                    *(tmp_path / f"{place}-{number}-{seed}", f"{method}, {task}", optimizer, PAPERS[data], seed),
                    *(accuracy, None),
                    options={"lr": 1.0 if method == "SGD, lr 1" else 0.1},
                    data={"name": data, "sha256": data},
                    **numbers,
                )
    return tmp_path


def rows(runs):
    return table.groups(stored.find_runs([runs]))


def columns(groups, against=None):
    head, lines = table.cells(groups, against)
    return {
        title: dict(zip((line[0] for line in lines), column, strict=True))
        for title, column in zip(head, zip(*lines, strict=True), strict=True)
    }


def test_every_row_of_a_mixed_table_has_its_score(runs):
    found = columns(rows(runs))
    assert found["test accuracy, %"]["ALI-G, digits, small net"] == "90.00"
    assert found["test perplexity"]["ALI-G, Zeichen: grün"] == "15.00"
    assert found["test loss"]["ALI-G, matrices"] == "2.00e-02"
    assert found["validation accuracy, %"]["ALI-G, digits, small net"] == "80.00"
    assert found["validation perplexity"]["ALI-G, Zeichen: grün"] == "16.00"
    assert not {"validation loss", "test loss, nats"} & found.keys()
    assert found["difference"] == {
        **dict.fromkeys(found["row"], table.EMPTY),
        "ALI-G, digits, small net": "-1.00",
        "SGD, lr 0.1, digits, small net": "-1.00",
        "SGD, lr 1, digits, small net": "+2609.00",
        "ALI-G, Zeichen: grün": "+1.00",
        "SGD, lr 0.1, Zeichen: grün": "+1.00",
        "SGD, lr 1, Zeichen: grün": "+436.00",
    }
    assert [*found["n"].values()] == ["1", "2", "3"] * 3


@pytest.mark.parametrize(
    ("task", "title", "other"),
    [
        ("digits, small net", "test accuracy, %", "+0.00"),
        ("Zeichen: grün", "test perplexity", "+0.00"),
        ("matrices", "test loss", "+0.00e+00"),
    ],
)
def test_rows_are_compared_by_the_score_of_their_task_and_with_no_other_task(task, title, other, runs):
    groups = rows(runs)
    against = next(row for row in groups if row.row == f"SGD, lr 0.1, {task}")
    found = columns(groups, against)[f"{title}: difference to {against.row} [95 %]"]
    assert found.pop(f"ALI-G, {task}") == other
    assert found.pop(f"SGD, lr 1, {task}") != table.EMPTY
    assert set(found.values()) == {table.EMPTY}
    lines = [line.split(",") for line in export.as_csv(groups, against).splitlines()]
    assert sorted(line[-1] for line in lines[1:]) == ["0"] * 6 + ["1", "2", "2"]


def test_a_report_of_mixed_tasks_draws_the_test_loss_of_those_without_accuracy(runs):
    assert {"Test accuracy, %", "Test loss", "Test perplexity"} <= {curve.title for curve in curves.curves(rows(runs))}
    alone = [row for row in rows(runs) if "digits" in row.row]
    assert "Test loss" not in {curve.title for curve in curves.curves(alone)}


@pytest.mark.parametrize("flag", ["--plot-lr", "--plot-loss"])
def test_a_method_has_one_line_in_the_legend_whatever_its_tasks_are_called(flag, runs, tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(figures, "_rendered", lambda figure, suffix: drawn.append(figure) or b"")
    assert call("table", runs, flag, tmp_path / "a.png") == 0
    (figure,) = drawn
    titles = ["digits (small net)", "synthetic-matrix (matrices)", "text (Zeichen: grün)"]
    assert sorted(axes.get_title() for axes in figure.axes) == titles
    names = ["ALI-G", "SGD"] if flag == "--plot-lr" else [*METHODS]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    for axes in figure.axes:
        linear = flag == "--plot-lr" and "digits" in axes.get_title()
        assert axes.get_yscale() == ("linear" if linear else "log")  # perplexities from 15 to 450


def test_methods_that_were_not_run_on_the_same_tasks_keep_their_names(tmp_path):
    for place, (row, data) in enumerate({"ALI-G, lr 1": "digits", "ALI-G, lr 2": "digits", "SGD": "iris"}.items()):
        store(tmp_path / f"{place}", row, "sgd", None, 0, 0.9, None, data={"name": data})
    found = {panel.title: [*panels.losses(panel.rows, panel.hidden)] for panel in panels.by_data(rows(tmp_path))}
    assert found == {"digits": ["ALI-G, lr 1", "ALI-G, lr 2"], "iris": ["SGD"]}


@pytest.mark.parametrize(
    ("other", "is_paired"),
    [
        ({}, True),
        ({"train_size": 9, "holdout": 5, "augment": True}, True),
        ({"options": {"noise": 0.1}}, False),
        ({"options": {"noise": 0.2}}, False),
        ({"version": "2.0"}, False),
        ({"sha256": "b"}, False),
        ({"context": 64}, False),
        ({"name": "own:other"}, False),
    ],
)
def test_rows_are_compared_on_the_same_test_samples(other, is_paired, tmp_path, capsys):
    data = {"name": "own:load", "sha256": "a", "version": "1.0", "context": 32}
    for number, changes in enumerate(({}, other)):
        for seed in (0, 1):
            place = tmp_path / f"{number}" / f"{seed}"
            store(place, f"row {number}", "sgd", None, seed, 0.8 + 0.01 * seed * number, None, data={**data, **changes})
    groups = rows(tmp_path)
    assert (table.compare(groups[1], groups[0], table.ACCURACY) is not None) == is_paired
    if other:
        assert call("compare", tmp_path / "1", tmp_path / "0") == 0
        assert ("says little" in capsys.readouterr().out) == (not is_paired)
