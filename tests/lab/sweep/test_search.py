"""A search over declared values, which can be stopped and resumed."""

import json
import os
import re
import signal
import sqlite3
import time
from collections import Counter

import pytest

from lab.runs import call
from observe import SMALL_BALLS
from polyak_lab.runs import checkpoint, stored

pytestmark = [pytest.mark.sweep, pytest.mark.filterwarnings(SMALL_BALLS)]

RECIPE = """
[defaults]
data = { name = "digits", holdout = 300, train_size = 400 }
model = "logistic"
training = { epochs = 3, batch_size = 100, device = "cpu", threads = 1 }
[[row]]
name = "ALI-G"
optimizer = { name = "alig" }
[sweep]
row = "ALI-G"
trials = 6
axes = { lr = { low = 1e-3, high = 10.0, log = true }, momentum = [0.0, 0.9], l2_ball = [5.0, 50.0] }
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "search.toml"
    path.write_text(RECIPE)
    return path


def result(out):
    return json.loads((out / "sweep.json").read_text())["result"]


def test_the_winner_is_chosen_on_held_out_samples(recipe, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("sweep", recipe, "--out", out) == 0
    assert "6 of 6 trials left, 3 epochs each at most" in capsys.readouterr().out
    found, runs = result(out), stored.find_runs([out / "trials"])
    finals = {run.path.name: run.records[-1]["validation_accuracy"] for run in runs if run.finished}
    assert found["best"]["score"] == finals[found["best"]["folder"]] == max(finals.values())
    assert found["trials"] == len(runs) == 6
    assert found["epochs"] == sum(len(run.records) for run in runs)
    values = found["best"]["values"]
    assert 1e-3 <= values["lr"] <= 10.0
    assert (values["momentum"] in (0.0, 0.9), values["l2_ball"] in (5.0, 50.0)) == (True, True)


def test_an_axis_may_hold_words_and_no_ball(recipe, tmp_path, capsys):
    axes = 'axes = { l2_ball = [5.0, "none"], adjusted_momentum = [true, false], foreach = ["none", false] }'
    recipe.write_text(
        re.sub(
            "axes = .*",
            axes,
            RECIPE.replace("trials = 6", "trials = 12").replace('"alig" }', '"alig", momentum = 0.9 }'),
        )
    )
    assert call("sweep", recipe, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert {*re.findall("l2_ball (none|5)", printed)} == {"none", "5"}
    assert "adjusted_momentum False" in printed
    balls = {run.config["optimizer"]["l2_ball"] for run in stored.find_runs([tmp_path / "out" / "trials"])}
    assert balls == {5.0, None}


LISTS = re.sub("axes = .*", "axes = { lr = [0.01, 0.1, 1.0], momentum = [0.0, 0.9] }", RECIPE)


@pytest.mark.parametrize("trials", [6, 9])
def test_a_search_over_lists_tries_every_combination_once(trials, recipe, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    recipe.write_text(LISTS.replace("trials = 6", f"trials = {trials}"))
    with monkeypatch.context() as patch:
        stopped_at("started", patch, signal.SIGINT)
        assert call("sweep", recipe, "--out", out) == 130
    assert call("sweep", recipe, "--out", out) == 0
    assert "5 of 6 trials left" in capsys.readouterr().out
    options = [run.config["optimizer"]["options"] for run in stored.find_runs([out / "trials"])]
    tried = [(option["lr"], option["momentum"]) for option in options]
    assert sorted(tried) == [(lr, momentum) for lr in (0.01, 0.1, 1.0) for momentum in (0.0, 0.9)]
    assert result(out)["trials"] == 6


def test_a_search_that_is_smaller_than_its_lists_grows_into_all_of_them(recipe, tmp_path):
    out = tmp_path / "out"
    recipe.write_text(LISTS.replace("trials = 6", "trials = 2"))
    assert call("sweep", recipe, "--out", out) == 0
    assert result(out)["trials"] == 2
    tried = len(stored.find_runs([out / "trials"]))
    recipe.write_text(LISTS)
    assert call("sweep", recipe, "--out", out) == 0
    assert result(out)["trials"] == 6
    assert len(stored.find_runs([out / "trials"])) == 4 + tried


def study(out):
    from polyak_lab.sweep.study import open_study

    return open_study(out / "study.db", 0)


def stopped_at(moment, monkeypatch, number):
    """Send a signal to this process at the given moment of the second trial."""
    from polyak_lab.sweep import search as sweep
    from polyak_lab.sweep import trial

    calls = Counter()

    def sending(name, real, nth):
        def call_and_send(*arguments, **named):
            calls[name] += 1
            if calls[name] == nth:
                os.kill(os.getpid(), number)
            return real(*arguments, **named)

        return call_and_send

    place, name, nth = {
        "drawn": (sweep, "_suggest", 4),
        "resolved": (sweep.Search, "_report_earlier", 2),
        "started": (sweep, "run_trial", 2),
        "first epoch": (checkpoint, "save", 4),
        "second epoch": (checkpoint, "save", 5),
        "reported": (sweep.Search, "should_prune", 4),
        "finished": (trial, "read_outcome", 2),
        "told": (sweep.Search, "tell", 2),
    }[moment]
    monkeypatch.setattr(place, name, sending(name, getattr(place, name), nth))


MOMENTS = ("drawn", "resolved", "started", "first epoch", "second epoch", "reported", "finished", "told")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_stopped_search_tries_the_trial_again_from_its_checkpoint(moment, recipe, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    recipe.write_text(RECIPE.replace("trials = 6", "trials = 3\nprune = false"))
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):  # the second one stops the repeated trial
        with monkeypatch.context() as patch:
            stopped_at(moment, patch, number)
            assert call("sweep", recipe, "--out", out) == status
        assert capsys.readouterr().err == "polyak: stopped; run the same command again to resume.\n"
    assert call("sweep", recipe, "--out", out) == 0
    assert result(out)["trials"] == 3
    runs = stored.find_runs([out / "trials"])
    assert [(run.finished, len(run.records)) for run in runs] == [(True, 3)] * 3  # none was left half done
    assert result(out)["epochs"] == 9
    starts = [json.loads((run.path / "environment.json").read_text())["starts"] for run in runs]
    assert sum(map(len, starts)) > 3 or moment in ("drawn", "resolved", "started", "finished", "told")


def test_a_search_killed_while_it_takes_up_a_trial_again_loses_and_doubles_nothing(recipe, tmp_path, monkeypatch):
    from polyak_lab.sweep.study import optuna

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stopped_at("second epoch", patch, signal.SIGINT)
        assert call("sweep", recipe, "--out", out) == 130
    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(optuna.Study, "tell", interrupt)
            assert call("sweep", recipe, "--out", out) == 130
    assert Counter(trial.state.name for trial in study(out).trials) == {"COMPLETE": 1, "FAIL": 1, "WAITING": 1}


def interrupt(*arguments, **named):
    raise KeyboardInterrupt


def test_a_second_signal_ends_a_process_that_does_not_end(tmp_path):
    """As when another library waits for ever on its way out."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.dup2(write, 2)
        from polyak_lab.cli import signals

        signals.PATIENCE = 0.2
        signals.install()
        while True:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.1)
            except KeyboardInterrupt:
                continue
    os.close(write)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert os.read(read, 1000) == b"polyak: stopped; run the same command again to resume.\n"
    os.close(read)


def test_a_finished_search_counts_nothing_twice(recipe, tmp_path, capsys):
    out = tmp_path / "out"
    assert call("sweep", recipe, "--out", out) == 0
    assert len(stored.find_runs([out / "trials"])) == 6
    assert call("sweep", recipe, "--out", out) == 0
    assert "0 of 6 trials left" in capsys.readouterr().out


def test_fewer_trials_than_are_finished_leave_none(recipe, tmp_path, capsys):
    out = tmp_path / "out"
    recipe.write_text(RECIPE.replace("trials = 6", "trials = 2"))
    assert call("sweep", recipe, "--out", out) == 0
    recipe.write_text(RECIPE.replace("trials = 6", "trials = 1"))
    assert call("sweep", recipe, "--out", out) == 0
    assert "0 of 1 trials left" in capsys.readouterr().out


def test_a_search_with_the_largest_seed_goes_on(recipe, tmp_path):
    out = tmp_path / "out"
    for trials in (1, 2):
        recipe.write_text(RECIPE.replace("trials = 6", f"trials = {trials}\nseed = {2**32 - 1}"))
        assert call("sweep", recipe, "--out", out) == 0
    assert result(out)["trials"] == 2


def test_another_search_in_the_same_folder_is_refused(recipe, tmp_path, capsys):
    assert call("sweep", recipe, "--out", tmp_path / "out") == 0
    recipe.write_text(RECIPE.replace("1e-3", "1e-2"))
    assert call("sweep", recipe, "--out", tmp_path / "out") == 1
    assert "sweep.axes.lr.low differs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("holdout = 300, ", "", "set data.holdout"),
        ("trials = 6", "trials = 0", "trials must be 1 or more"),
        ('row = "ALI-G"\ntr', 'row = "ALIH"\ntr', "search.toml, sweep.row: 'ALIH' is not known; did you mean 'ALI-G'"),
        ("low = 1e-3", "least = 1e-3", "'least' is not known"),
        ("trials = 6", "trials = 6\nseed = -1", "sweep: seed is -1, but must lie between 0 and 2**32 - 1."),
        ("trials = 6", f"trials = 6\nseed = {2**32}", "sweep: seed is 4294967296, but must lie between"),
    ],
)
def test_what_is_refused(old, new, said, recipe, tmp_path, capsys):
    assert old in RECIPE
    recipe.write_text(RECIPE.replace(old, new))
    assert call("sweep", recipe, "--out", tmp_path / "out") == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


AXES = {
    "upside down": ("lr = { low = 1.0, high = 0.1 }", "sweep.axes.lr goes from 1.0 to 0.1"),
    "nan": ("lr = { low = nan, high = 0.1 }", "sweep.axes.lr goes from nan to 0.1"),
    "infinite": ("lr = { low = 0.1, high = inf }", "sweep.axes.lr goes from 0.1 to inf"),
    "log of zero": ("lr = { low = 0.0, high = 0.1, log = true }", "low must be above 0"),
    "empty": ("lr = []", "sweep.axes.lr is empty"),
    "text": ('lr = "high"', "sweep.axes.lr is 'high'"),
    "number": ("lr = 0.1", "sweep.axes.lr is 0.1"),
    "no high": ("lr = { low = 0.1 }", "the key 'high' is missing"),
    "wrong type": ('lr = { low = "a", high = 1.0 }', "must be a number of at most 3.4e+38"),
    "wrong values": ('lr = [0.1, "a"]', "sweep.axes.lr = 'a'"),
    "refused values": ("lr = [0.1, -0.1]", "sweep.axes.lr = -0.1"),
    "refused ends": ("momentum = { low = 0.0, high = 1.0 }", "sweep.axes.momentum = 1.0"),
    "lists": ("lr = [[0.1]]", "sweep.axes.lr holds [0.1]"),
    "not a number": ("lr = [0.1, nan]", "sweep.axes.lr holds nan"),
    "unknown": ("lrr = [0.1]", "'lrr' is not known; did you mean 'lr'?"),
    "of another method": ("nesterov = [true]", "'nesterov' is not known; known: "),
}


@pytest.mark.parametrize("case", AXES)
def test_a_bad_axis_is_named_before_the_study_is_made(case, recipe, tmp_path, capsys):
    axes, said = AXES[case]
    out = tmp_path / "out"
    recipe.write_text(re.sub("axes = .*", f"axes = {{ {axes} }}", RECIPE.replace("trials = 6", "trials = 1")))
    assert call("sweep", recipe, "--out", out) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not out.exists()
    recipe.write_text(re.sub("axes = .*", "axes = { lr = [0.1] }", recipe.read_text()))
    assert call("sweep", recipe, "--out", out) == 0


@pytest.mark.parametrize("name", ["a?b", "a%20b", "a#b", "file:c", "ä b", "a'b"])
def test_the_database_lies_in_the_folder_named(name, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe.write_text(RECIPE.replace("trials = 6", "trials = 1"))
    assert call("sweep", recipe, "--out", name) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"search.toml", name}
    assert (tmp_path / name / "study.db").is_file()
    assert len(study(tmp_path / name).trials) == 1


def test_two_searches_in_one_folder(recipe, tmp_path, capsys):
    from polyak_lab.runs.lock import locked

    with locked(tmp_path / "out"):
        assert call("sweep", recipe, "--out", tmp_path / "out") == 1
    assert "Another process is at work in" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["text", "cut", "zeroes", "folder"])
def test_a_damaged_database(damage, recipe, tmp_path, capsys):
    out, path = tmp_path / "out", tmp_path / "out" / "study.db"
    recipe.write_text(RECIPE.replace("trials = 6", "trials = 1"))
    assert call("sweep", recipe, "--out", out) == 0
    content = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        middle = len(content) // 2
        damaged = {"text": b"not a database " * 100, "cut": content[:middle]}
        path.write_bytes(damaged.get(damage, content[:1000] + bytes(middle) + content[1000 + middle :]))
    capsys.readouterr()
    assert call("sweep", recipe, "--out", out) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"polyak: The study {path} cannot be used (")
    assert len(line.replace(str(path), "")) < 300


def test_a_locked_database(recipe, tmp_path, monkeypatch, capsys):
    from polyak_lab.sweep import study as sweep_study

    monkeypatch.setattr(sweep_study, "LOCK_TIMEOUT", 0.1)
    out = tmp_path / "out"
    recipe.write_text(RECIPE.replace("trials = 6", "trials = 1"))
    assert call("sweep", recipe, "--out", out) == 0
    recipe.write_text(RECIPE.replace("trials = 6", "trials = 2"))
    database = sqlite3.connect(out / "study.db")
    database.execute("BEGIN EXCLUSIVE")
    capsys.readouterr()
    assert call("sweep", recipe, "--out", out) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"polyak: Another program has locked {out / 'study.db'}")
    database.close()
    assert call("sweep", recipe, "--out", out) == 0


@pytest.mark.parametrize("damage", ["garbage", "folder", "a line less", "other seconds"])
def test_a_damaged_clock_of_a_finished_trial_costs_no_search(damage, recipe, tmp_path, capsys):
    out = tmp_path / "out"
    recipe.write_text(RECIPE.replace("trials = 6", "trials = 2"))
    assert call("sweep", recipe, "--out", out) == 0
    before = result(out)
    clock = next((out / "trials").rglob("timings.jsonl"))
    lines = clock.read_text().splitlines(keepends=True)
    clock.unlink()
    if damage == "folder":
        clock.mkdir()
    else:
        changed = lines[0].replace('"seconds": ', '"seconds": 9')
        texts = {"garbage": ["\0\n"], "a line less": lines[:-1], "other seconds": [changed, *lines[1:]]}
        clock.write_text("".join(texts[damage]))
    capsys.readouterr()
    assert call("sweep", recipe, "--out", out) == 0
    said = "polyak: The time of 1 of 2 trials is not counted: their timings.jsonl is damaged.\n"
    assert capsys.readouterr().err == said
    after = result(out)
    assert 0 < after.pop("seconds") < before.pop("seconds")
    assert after == before


def test_a_damaged_trial_that_is_not_the_best_is_said(recipe, tmp_path, capsys):
    out = tmp_path / "out"
    recipe.write_text(RECIPE.replace("trials = 6", "trials = 2"))
    assert call("sweep", recipe, "--out", out) == 0
    before = result(out)
    [other] = [path for path in (out / "trials").iterdir() if path.name != before["best"]["folder"]]
    (other / "metrics.jsonl").write_text("{}\n")
    capsys.readouterr()
    assert call("sweep", recipe, "--out", out) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert str(other / "metrics.jsonl") in line
    assert result(out)["best"] == before["best"]


def test_a_search_in_a_folder_whose_name_is_not_utf8(recipe, tmp_path, capsys):
    out = tmp_path / os.fsdecode(b"caf\xe9")
    recipe.write_text(RECIPE.replace("trials = 6", "trials = 1"))
    assert call("sweep", recipe, "--out", out) == 0
    assert call("sweep", recipe, "--out", out) == 0
    assert "0 of 1 trials left" in capsys.readouterr().out
