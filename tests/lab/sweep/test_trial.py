"""A trial of a search on a machine that sees its folder, or does not."""

import pytest

from lab.runs import run
from polyak_lab.recipes.resolve import resolve
from polyak_lab.runs import stored
from polyak_lab.runs.folder import FILES
from polyak_lab.runs.lock import locked
from polyak_lab.sweep import trial
from polyak_lab.sweep.trial import Trial, copy_results_back, run_remotely, run_trial, score

SMALL = {name for name in FILES if name != "checkpoint.pt"}


@pytest.fixture
def small(tmp_path):
    return Trial(3, "lr 1", resolve(run(model="logistic")), tmp_path / "trials" / "c0ffee", "search")


def never(epoch, score):
    return False


def after_two(epoch, score):
    return epoch == 2


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def _scored_by_test_loss(monkeypatch):
    monkeypatch.setattr(trial, "score", lambda record: -record["test_loss"])


def test_where_the_folder_is_seen_the_work_is_done_in_it(small):
    small.folder.mkdir(parents=True)
    outcome, files = run_remotely(small, never)
    assert files.keys() == SMALL
    assert names(small.folder) == set(FILES)
    before = {path: path.stat().st_mtime_ns for path in small.folder.iterdir()}
    copy_results_back(small, files)
    assert {path: path.stat().st_mtime_ns for path in small.folder.iterdir()} == before
    assert outcome == trial.Outcome(-stored.load_run(small.folder).records[-1]["test_loss"], pruned=False)


def test_where_it_is_not_seen_its_files_come_back_without_the_checkpoint(small):
    outcome, files = run_remotely(small, never)
    assert not small.folder.exists()
    copy_results_back(small, files)
    assert names(small.folder) == SMALL
    assert stored.load_run(small.folder).finished
    assert run_trial(small, never) == outcome  # a finished run, which is not trained again


def test_a_folder_in_which_somebody_works_is_left_alone(small, monkeypatch):
    monkeypatch.setattr(trial, "LOCK_TIMEOUT", 0.0)
    small.folder.mkdir(parents=True)
    with locked(small.folder):
        _, files = run_remotely(small, never)
    assert names(small.folder) == set()
    assert files.keys() == SMALL


def test_a_checkpoint_of_another_attempt_does_not_stay_beside_the_lines_that_came(small):
    assert run_trial(small, after_two).pruned
    outcome, files = run_remotely(Trial(4, "lr 1", small.run, small.folder / "elsewhere", "search"), lambda *_: True)
    assert outcome.pruned
    copy_results_back(small, files)
    assert [record["epoch"] for record in stored.load_run(small.folder).records] == [1]
    assert not run_trial(small, never).pruned
    assert [record["epoch"] for record in stored.load_run(small.folder).records] == [1, 2, 3]


def test_a_diverged_trial_is_the_worst(monkeypatch):
    assert score({"validation_accuracy": None, "validation_loss": float("nan")}) == float("-inf")
    assert score({"validation_accuracy": None, "validation_loss": 2.0}) == -2.0
    assert score({"validation_accuracy": 0.5, "validation_loss": 2.0}) == 0.5
