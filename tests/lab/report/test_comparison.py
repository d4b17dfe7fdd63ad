"""`polyak compare`: the two tests, their numbers from the literature, and what differs in the configurations."""

import json
import math
import re

import pytest

from lab.report.test_tables import finish, store
from lab.runs import call
from polyak_lab.report import comparison, differences

# Welch (1947) as in Wikipedia, "Welch's t-test", example 1: two samples of 15 with different variances.
A1 = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4]
A2 = [27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 20.5, 24.4]


def by_seed(values, start=0):
    return {(seed, 0): value for seed, value in enumerate(values, start)}


def rows(tmp_path, first, second, **numbers):
    for name, values, lr in (("alig", first, 0.1), ("sgd", second, 0.5)):
        for seed, value in enumerate(values):
            store(tmp_path / name / f"seed-{seed}", name, name, None, seed, value, None, options={"lr": lr}, **numbers)
    return tmp_path / "alig", tmp_path / "sgd"


def said(capsys, *arguments):
    assert call("compare", *arguments) == 0
    return " ".join(capsys.readouterr().out.split())


def test_welchs_test_has_the_numbers_of_a_published_example():
    welch, *_ = comparison.tests(by_seed(A1), by_seed(A2, start=50))
    assert (welch.name, round(welch.statistic, 2), round(welch.degrees, 1)) == ("Welch", -2.46, 25.0)
    assert welch.p == pytest.approx(0.021, abs=5e-4)
    low, high = welch.interval
    assert low < welch.difference < high < 0
    assert welch.difference == pytest.approx(sum(A1) / 15 - sum(A2) / 15)


def test_seeds_that_both_rows_have_are_paired():
    """By hand: differences 1, 2, 3 have the mean 2 and the standard error 1 / sqrt(3)."""
    welch, paired = comparison.tests(by_seed([11.0, 22.0, 33.0]), by_seed([10.0, 20.0, 30.0]))
    assert (paired.name, paired.degrees) == ("paired, 3 seeds", 2.0)
    assert paired.statistic == pytest.approx(2 * math.sqrt(3))
    assert paired.interval == pytest.approx((2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), abs=1e-4)
    assert paired.p < welch.p
    assert [result.name for result in comparison.tests(by_seed([1.0, 2.0]), by_seed([3.0, 4.5], 1))] == ["Welch"]


@pytest.mark.parametrize("values", [([1.0], [2.0]), ([1.0, 1.0], [2.0, 2.0]), ([1.0], [2.0, 3.0])])
def test_without_spread_or_runs_there_is_no_test(values):
    assert comparison.tests(*map(by_seed, values)) == []


@pytest.mark.parametrize("scale", [1e300, 1e-300])
def test_scores_of_any_size(scale):
    small = comparison.tests(by_seed(A1), by_seed(A2, 1))
    large = comparison.tests(by_seed([scale * x for x in A1]), by_seed([scale * x for x in A2], 1))
    assert [one.p for one in large] == pytest.approx([one.p for one in small])
    assert large[0].difference == pytest.approx(scale * small[0].difference)


def test_the_command_prints_means_tests_assumptions_and_options(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    printed = said(capsys, *rows(tmp_path, [0.90, 0.93, 0.93], [0.80, 0.82, 0.84]))
    assert "test accuracy, %: alig - sgd" in printed
    assert re.search(r"alig │ +92\.00 ± 1\.73 +│ +3", printed)
    assert re.search(r"Welch +│ +\+10\.00 \[\+5\.7\d, \+14\.2\d\]", printed)
    assert re.search(r"paired, 3 seeds +│ +\+10\.00", printed)
    assert "Assumptions of Welch's test: the runs are independent" in printed
    assert re.search(r"optimizer\.options\.lr │ 0\.1 +│ 0\.5", printed)


def test_another_number_can_be_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    folders = rows(tmp_path, [0.9, 0.8], [0.7, 0.6], weight_norm=3.0)
    assert "weight_norm" in said(capsys, *folders, "--metric", "weight_norm")
    assert call("compare", *folders, "--metric", "wieght_norm") == 1
    assert "choose one of capped, lr, step_size" in capsys.readouterr().err


def test_one_run_each_has_no_test_but_is_shown(tmp_path, capsys):
    printed = said(capsys, *rows(tmp_path, [0.9], [0.8]))
    assert "There is no test: it needs two finished runs of each row" in printed
    assert "optimizer.options.lr" in printed


def test_unfinished_runs_are_counted_beside_the_others(tmp_path, capsys):
    first, second = rows(tmp_path, [0.9, 0.8], [0.8, 0.6])
    (second / "seed-1" / "summary.json").unlink()
    printed = said(capsys, first, second)
    assert re.search(r"alig │ 85\.00 ± 7\.07 +│ 2 │", printed)
    assert re.search(r"sgd │ 80\.00 +│ 1 of 2 │", printed)


@pytest.mark.parametrize(
    ("other", "ending"),
    [
        ({"name": "digits", "train_size": 100}, ", and tested on the same."),
        ({"name": "cifar10"}, ": a difference of their scores says little."),
    ],
)
def test_rows_that_were_trained_on_different_data_are_named(other, ending, tmp_path, capsys):
    store(tmp_path / "a", "a", "alig", None, 0, 0.9, None, data={"name": "digits"})
    store(tmp_path / "b", "b", "alig", None, 0, 0.8, None, data=other)
    assert said(capsys, tmp_path / "a", tmp_path / "b").endswith(f"The rows were trained on different data{ending}")


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({"name": "text", "sha256": "a"}, {"name": "text", "sha256": "b"}, False),
        ({"name": "text", "context": 64}, {"name": "text", "context": 128}, False),
        ({"name": "a:b", "version": "1"}, {"name": "a:b", "version": "2"}, False),
        ({"name": "a:b", "version": "1"}, {"name": "a:b"}, True),  # a run of an older version of the runner
        ({"name": "a:b"}, {"name": "a:b", "version": "1"}, True),
        ({"name": "a:b", "options": {"n": 1}}, {"name": "a:b"}, False),
        ({"name": "a", "holdout": 5, "train_size": 9}, {"name": "a", "augment": True}, True),
    ],
)
def test_which_data_have_the_same_test_samples(first, second, same):
    assert differences.same_test_samples({"data": first}, {"data": second}) is same


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "none"), (True, "true"), ("Adam", "Adam"), (1e-5, "1e-05"), (3, "3"), ([0.9, False], "[0.9, false]")],
)
def test_a_value_is_written_as_in_a_recipe(value, text):
    assert differences.write(value) == text


@pytest.mark.parametrize(("number", "named"), [(3, r"'0', '1', '2'\)"), (4, r"'0', '1', '2', \.\.\.\)")])
def test_a_folder_of_several_rows_names_the_first_three(number, named, tmp_path, capsys):
    for name in map(str, range(number)):
        store(tmp_path / name, name, "alig", None, 0, 0.9, None, options={"lr": float(name)})
    assert call("compare", tmp_path, tmp_path / "0") == 1
    assert re.search(rf"holds {number} rows \({named}: name the folder of one, such as ", capsys.readouterr().err)


def broken(kind, tmp_path):
    """Return the two arguments, and what the sentence says."""
    first, second = rows(tmp_path, [0.9, 0.8], [0.7, 0.6])
    if kind == "several rows":
        return (tmp_path, second), "holds 2 rows"
    if kind == "no folder":
        return (tmp_path / "none", second), "is not a folder"
    if kind == "the same row":
        return (first, first), "hold runs of the same row"
    metrics = first / "seed-0" / "metrics.jsonl"
    if kind == "not finite":
        lines = [json.loads(line) | {"test_accuracy": "nan"} for line in metrics.read_text().splitlines()]
        metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
        finish(first / "seed-0")
        return (first, second), "is not finite"
    for path in first.glob("*/summary.json"):
        path.unlink()
    return (first, second), "No run in .* is finished"


@pytest.mark.parametrize("kind", ["several rows", "no folder", "the same row", "not finite", "unfinished"])
def test_what_cannot_be_compared_is_one_sentence(kind, tmp_path, capsys):
    arguments, sentence = broken(kind, tmp_path)
    assert call("compare", *arguments) == 1
    assert re.fullmatch(rf"polyak: [^\n]*{sentence}[^\n]*\.\n", capsys.readouterr().err)


def test_rows_of_one_name_are_told_apart_by_their_folders(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "300")
    for recipe, lr in (("a", 0.1), ("b", 1.0)):
        for seed in (0, 1):
            store(
                tmp_path / recipe / f"{seed}",
                "ALI-G",
                "alig",
                None,
                seed,
                0.5 + seed * lr / 10,
                0.5,
                options={"lr": lr},
            )
    printed = said(capsys, tmp_path / "a", tmp_path / "b")
    assert printed.count(f"ALI-G ({tmp_path / 'a'})") == printed.count(f"ALI-G ({tmp_path / 'b'})") == 3


def test_differences_beyond_the_largest_number():
    welch, paired = comparison.tests(by_seed([1.7e308, 1.0]), by_seed([-1.7e308, 0.0]))
    assert welch.difference == paired.difference == pytest.approx(1.7e308)
    assert (paired.degrees, paired.statistic) == (1.0, pytest.approx(1.0))
