"""Tables for a paper: CSV with numbers, LaTeX, paired confidence intervals and the validation score."""

import csv
import math
import shutil
import subprocess

import pytest

from lab.report.test_tables import store
from lab.runs import call
from polyak_lab.report import export, statistics, table
from polyak_lab.runs import stored

ACCURACIES = {"ALI-G": [0.90, 0.92, 0.97], "SGD & co": [0.88, 0.91, 0.93, 0.99], "Adam_1": [0.5]}


@pytest.fixture
def runs(tmp_path):
    for row, accuracies in ACCURACIES.items():
        for seed, accuracy in enumerate(accuracies):
            held_out = {"validation_accuracy": accuracy - 0.1, "validation_loss": 1.0}
            capped = 0.25 if row == "ALI-G" else None
            store(tmp_path / row / f"{seed}", row, row[:3].lower(), None, seed, accuracy, capped, **held_out)
    store(tmp_path / "ALI-G" / "unfinished", "ALI-G", "ali", None, 7, 0.1, 0.25, finished=False)
    return tmp_path


def read(runs, capsys, *flags):
    assert call("table", runs, *flags) == 0
    return list(csv.DictReader(capsys.readouterr().out.splitlines()))


def test_a_csv_file_holds_numbers(runs, capsys):
    alig, *_, adam = sorted(read(runs, capsys, "--format", "csv"), key=lambda line: line["row"] != "ALI-G")
    adam = next(line for line in [adam, *_] if line["row"] == "Adam_1")
    assert float(alig["test_accuracy_percent_mean"]) == pytest.approx(93.0)
    assert float(alig["test_accuracy_percent_std"]) == pytest.approx(3.6056, rel=1e-4)
    assert float(alig["validation_accuracy_percent_mean"]) == pytest.approx(83.0)
    assert float(alig["train_loss_mean"]) == pytest.approx(1e-3)
    assert (alig["n"], alig["runs"], alig["capped_mean"], alig["paper"]) == ("3", "4", "0.25", "")
    assert (adam["n"], adam["test_accuracy_percent_std"], adam["capped_mean"]) == ("1", "", "")


def test_a_csv_file_of_seeds_holds_every_run(runs, capsys):
    lines = read(runs, capsys, "--format", "csv-seeds")
    assert len(lines) == 9
    accuracies = [float(line["test_accuracy_percent"]) for line in lines if line["row"] == "ALI-G"]
    assert accuracies == pytest.approx([90.0, 92.0, 97.0, 10.0])
    assert {line["train_loss"] for line in lines} == {"0.001"}  # of the last of three epochs
    unfinished = next(line for line in lines if line["seed"] == "7")
    assert (unfinished["finished"], unfinished["epochs"]) == ("False", "3")
    assert unfinished["folder"].endswith("unfinished")


def test_a_run_without_an_epoch_has_a_line_in_the_csv_file_of_seeds(runs, capsys):
    store(runs / "ALI-G" / "begun", "ALI-G", "ali", None, 8, 0.1, 0.25, finished=False)
    (runs / "ALI-G" / "begun" / "metrics.jsonl").write_text("")
    begun = next(line for line in read(runs, capsys, "--format", "csv-seeds") if line["seed"] == "8")
    assert (begun["finished"], begun["epochs"], begun["test_accuracy_percent"], begun["capped"]) == (
        "False",
        "0",
        "",
        "",
    )


def test_the_capped_steps_of_a_seed_are_those_of_the_whole_run(tmp_path, capsys):
    store(tmp_path / "run", "ALI-G", "alig", None, 0, 0.9, 0.0)
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"capped": 0.0', '"capped": 0.75', 1))
    (line,) = read(tmp_path, capsys, "--format", "csv-seeds")
    assert float(line["capped"]) == pytest.approx(0.25)


def test_the_validation_score_stands_beside_the_test_score(runs):
    head, lines = table.cells(table.groups(stored.find_runs([runs])))
    assert head[1:3] == ["test accuracy, %", "validation accuracy, %"]
    assert "83.00 ± 3.61" in [line[2] for line in lines]


def test_rows_are_compared_seed_by_seed(runs, capsys):
    lines = {line["row"]: line for line in read(runs, capsys, "--format", "csv", "--against", "alig")}
    sgd = {name: float(value) for name, value in lines["SGD & co"].items() if name.startswith("difference")}
    assert sgd["difference_n"] == 3  # seed 3 has no partner
    assert sgd["difference_mean"] == pytest.approx(-7 / 3)  # of -2, -1, -4
    half = 4.302653 * math.sqrt(7 / 3) / math.sqrt(3)
    assert [sgd["difference_low"], sgd["difference_high"]] == pytest.approx([-7 / 3 - half, -7 / 3 + half], rel=1e-4)
    assert (lines["Adam_1"]["difference_n"], lines["Adam_1"]["difference_low"]) == ("1", "")
    rows = table.groups(stored.find_runs([runs]))
    head, cells = table.cells(rows, next(group for group in rows if group.row == "ALI-G"))
    assert head[-1] == "test accuracy, %: difference to ALI-G [95 %]"
    assert {line[0]: line[-1] for line in cells} == {
        "ALI-G": "–",
        "SGD & co": "-2.33 [-6.13, +1.46]",
        "Adam_1": "-40.00",
    }


def test_a_row_on_other_data_has_no_difference_in_a_csv_file(tmp_path, capsys):
    for name in ("digits", "cifar10"):
        store(tmp_path / name, name, "alig", None, 0, 0.9, 0.5, data={"name": name})
    lines = {line["row"]: line for line in read(tmp_path, capsys, "--format", "csv", "--against", "digits")}
    found = {name: value for name, value in lines["cifar10"].items() if name.startswith("difference")}
    assert found == {"difference_mean": "", "difference_low": "", "difference_high": "", "difference_n": "0"}


def test_a_mean_with_a_run_that_diverged_is_nan_in_a_csv_file(tmp_path, capsys):
    for seed, loss in enumerate((0.5, "inf")):
        store(
            tmp_path / f"{seed}", "ALI-G", "alig", None, seed, 0.9, 0.5, validation_loss=loss, validation_accuracy=None
        )
    (line,) = read(tmp_path, capsys, "--format", "csv")
    assert (line["validation_loss_mean"], line["validation_loss_std"]) == ("nan", "")
    assert line["test_accuracy_percent_mean"] == "90.0"


def test_a_row_to_compare_with_that_is_not_there(runs, capsys):
    assert call("table", runs, "--against", "muon") == 1
    assert "--against: 'muon' is none of the 3 rows: write one of ali-g, adam-1, sgd-co." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (2, 4.3027), (9, 2.2622), (11, 2.2010), (15, 2.1314), (30, 2.0423), (100, 1.9840), (10**6, 1.95997)],
)
def test_quantiles_of_students_t(degrees, quantile):
    assert statistics.t_quantile(degrees) == pytest.approx(quantile, abs=2e-4)


def test_differences_that_are_no_number():
    assert statistics.paired_difference({0: 1.0}, {1: 1.0}) is None
    assert statistics.paired_difference({0: math.nan}, {0: 1.0}) is None
    assert statistics.paired_difference({0: 3.0}, {0: 1.0}) == (2.0, None, 1)
    assert statistics.paired_difference({0: 1e308, 1: 1e308}, {0: 0.0, 1: 0.0}).interval == (1e308, 1e308)


def test_a_latex_table(runs, capsys):
    assert call("table", runs, "--format", "latex", "--against", "ALI-G") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "\\begin{tabular}{lrrrrrr}"
    assert (lines[1], lines[3], lines[-2:]) == ("\\toprule", "\\midrule", ["\\bottomrule", "\\end{tabular}"])
    text = "\n".join(lines)
    assert "$93.00 \\pm 3.61$ & $83.00 \\pm 3.61$ & $1.0 \\cdot 10^{-3} \\pm 0.0 \\cdot 10^{0}$ & 25.0 \\%" in text
    assert "SGD \\& co" in text
    assert "Adam\\_1" in text
    assert "$-2.33 [-6.13, +1.46]$" in text
    assert all(line.endswith("\\\\") for line in (lines[2], *lines[4:-2]))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_takes_the_table(runs, tmp_path, capsys):
    assert call("table", runs, "--format", "latex") == 0
    document = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}%s\\end{document}"
    (tmp_path / "a.tex").write_text(document % capsys.readouterr().out, encoding="utf-8")
    subprocess.run(["pdflatex", "-halt-on-error", "a.tex"], cwd=tmp_path, check=True, capture_output=True)


NAMES = {
    "[x] y": ("{}[x] y", "[x] y"),
    "*x": ("{}*x", "\\*x"),
    "1 [a_b & c]": ("1 [a\\_b \\& c]", "1 [a\\_b & c]"),
    "1e5": ("1e5", "1e5"),
    "a<b>|c": ("a\\textless{}b\\textgreater{}\\textbar{}c", "a\\<b>\\|c"),
    "a\\|b": ("a\\textbackslash{}\\textbar{}b", "a\\\\\\|b"),
    "`$x$`": ("`\\$x\\$`", "\\`\\$x\\$\\`"),
}


def test_names_with_the_markup_of_latex_and_markdown_stay_as_written(tmp_path, capsys):
    for index, name in enumerate(NAMES):
        store(tmp_path / str(index), name, "alig", None, 0, 0.9, None)
    printed = {}
    for form in ("latex", "markdown"):
        assert call("table", tmp_path, "--format", form) == 0
        printed[form] = capsys.readouterr().out.splitlines()
    for latex, markdown in NAMES.values():
        assert any(line.startswith(f"{latex} & $90.00$") for line in printed["latex"]), latex
        assert any(line.startswith(f"| {markdown} | 90.00 |") for line in printed["markdown"]), markdown


def test_an_infinite_deviation_is_a_symbol_in_latex():
    rows = [["row", "loss"], ["a", "0.0e+00 ± inf"]]
    assert export._latex_line(rows[1]) == ["a", "$0.0 \\cdot 10^{0} \\pm \\infty$"]
