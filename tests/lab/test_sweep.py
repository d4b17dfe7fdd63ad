"""A search over declared values, which can be stopped and goes on."""

import json

import pytest

from lab.runs import call
from polyak_lab import stored

pytestmark = pytest.mark.sweep

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
    found, runs = result(out), stored.find([out / "trials"])
    finals = {run.path.name: run.records[-1]["validation_accuracy"] for run in runs if run.finished}
    assert found["best"]["score"] == finals[found["best"]["folder"]] == max(finals.values())
    assert found["trials"] == len(runs) == 6
    assert found["epochs"] == sum(len(run.records) for run in runs)
    values = found["best"]["values"]
    assert 1e-3 <= values["lr"] <= 10.0
    assert (values["momentum"] in (0.0, 0.9), values["l2_ball"] in (5.0, 50.0)) == (True, True)


def test_a_stopped_search_goes_on_and_counts_nothing_twice(recipe, tmp_path, monkeypatch, capsys):
    from polyak_lab import sweep

    out, real, calls = tmp_path / "out", sweep.attempt, []

    def cut_short(*arguments):
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(sweep, "attempt", cut_short)
    assert call("sweep", recipe, "--out", out) == 130
    assert call("sweep", recipe, "--out", out) == 0
    assert "3 of 6 trials left" in capsys.readouterr().out
    assert result(out)["trials"] == 6
    assert len(stored.find([out / "trials"])) == 6
    assert call("sweep", recipe, "--out", out) == 0
    assert "0 of 6 trials left" in capsys.readouterr().out


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
        ('row = "ALI-G"\ntr', 'row = "ALIG"\ntr', "did you mean 'ALI-G'"),
        ("low = 1e-3", "least = 1e-3", "'least' is not known"),
    ],
)
def test_what_is_refused(old, new, said, recipe, tmp_path, capsys):
    assert old in RECIPE
    recipe.write_text(RECIPE.replace(old, new))
    assert call("sweep", recipe, "--out", tmp_path / "out") == 1
    assert said in capsys.readouterr().err
