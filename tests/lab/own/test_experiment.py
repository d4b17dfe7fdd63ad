"""The user's own data, network, loss and rival train, resume, sweep and are reported as built-in names are."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lab.own import package
from lab.processes.torchrun import POLYAK
from lab.processes.torchrun import run as torchrun
from lab.runs import call
from polyak_lab import imports
from polyak_lab.progress import Progress
from polyak_lab.runs import documents, stored

OWN = ("--data", "acme.sets:load", "--model", "acme.nets:build", "--device", "cpu", "--threads", "1")
RIVAL = (*OWN, "--optimizer", "acme.rivals:Rival", "--lr", "0.02", "--epochs", "3", "--batch-size", "16")


def metrics(folder):
    return (folder / "metrics.jsonl").read_bytes()


def config(folder):
    return documents.read_config(folder / "config.json")["run"]


def test_two_rows_with_two_seeds_make_a_table_and_a_report(acme, capsys):
    assert call("run", "recipe.toml", "--out", "runs/own", "--report") == 0
    printed = capsys.readouterr().out
    assert "Rival" in printed
    assert "ALI-G" in printed
    assert "±" in printed
    assert "Rival" in (acme / "runs/own/report.html").read_text(encoding="utf-8")
    runs = stored.find_runs([Path("runs/own")])
    assert sorted((run.label.row, run.seeds[0]) for run in runs) == [
        *(("ALI-G", 0), ("ALI-G", 1)),
        *(("Rival", 0), ("Rival", 1)),
    ]
    assert all(run.records[-1]["test_accuracy"] > 0.4 for run in runs)
    assert config(acme / "runs/own/rival/seed-0")["model"] == {"name": "acme.nets:build", "options": {"width": 12}}
    assert call("table", "runs/own", "--format", "csv") == 0
    assert "Rival" in capsys.readouterr().out


@pytest.mark.slow
def test_runs_side_by_side_have_the_same_bits(acme):
    assert call("run", "recipe.toml", "--out", "one", "--row", "rival") == 0
    assert call("run", "recipe.toml", "--out", "two", "--row", "rival", "--jobs", 2) == 0
    for seed in (0, 1):
        assert metrics(acme / f"one/rival/seed-{seed}") == metrics(acme / f"two/rival/seed-{seed}")


def test_the_numbers_are_those_of_a_loop_written_by_hand(acme):
    assert call("train", *RIVAL, "--out", "run", "--epochs", 2, "--objective", "acme.losses:smoothed") == 0
    from acme import losses, nets, rivals, sets

    from polyak_lab.training.batches import derive_seed, permutation

    (x, y), (test_x, test_y) = sets.load()
    torch.manual_seed(derive_seed("weights", 0))
    model = nets.build((6,), 3)
    optimizer = rivals.Rival(model.parameters(), lr=0.02)
    for epoch in range(2):
        for rows in permutation(len(x), 0, epoch).split(16):
            optimizer.zero_grad()
            losses.smoothed(model(x[rows]), y[rows]).backward()
            optimizer.step()
    record = stored.load_run(acme / "run").records[-1]
    assert record["test_accuracy"] == (model(test_x).argmax(1) == test_y).double().mean()
    expected = F.cross_entropy(model(test_x), test_y, label_smoothing=0.1).item()
    assert record["test_loss"] == pytest.approx(expected, rel=1e-6)


PAIRS = [
    ("load", "Rival"),
    ("load", "WithLoss"),
    ("datasets", "Demanding"),
    ("loaders", "Averaging"),
    ("noisy", "Rival"),
]


@pytest.mark.parametrize(("data", "optimizer"), PAIRS)
def test_a_stopped_run_resumes_with_the_same_bits(acme, monkeypatch, data, optimizer):
    arguments = [*RIVAL, "--data", f"acme.sets:{data}", "--optimizer", f"acme.rivals:{optimizer}"]
    assert call("train", *arguments, "--out", "whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "epoch_done", lambda *_: signal.raise_signal(signal.SIGINT))
        assert call("train", *arguments, "--out", "stopped") == 130
    assert len(documents.read_objects(acme / "stopped/metrics.jsonl")) == 1
    assert call("train", *arguments, "--out", "stopped") == 0
    assert metrics(acme / "whole") == metrics(acme / "stopped")


@pytest.mark.slow
def test_a_killed_run_resumes_with_the_same_bits(acme):
    arguments = [*RIVAL, "--epochs", "40", "--batch-size", "1"]
    assert call("train", *arguments, "--out", "whole") == 0
    command = [sys.executable, "-m", "polyak_lab", "train", *arguments, "--out", "killed"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (acme / "killed" / "checkpoint.pt").exists() and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    epochs = len(documents.read_objects(acme / "killed" / "metrics.jsonl"))
    assert 0 < epochs < 40
    assert call("train", *arguments, "--out", "killed") == 0
    assert metrics(acme / "whole") == metrics(acme / "killed")


@pytest.mark.sweep
def test_a_sweep_searches_the_rival(acme, capsys):
    pytest.importorskip("optuna")
    assert call("sweep", "recipe.toml", "--out", "sweep") == 0
    result = json.loads((acme / "sweep/sweep.json").read_text(encoding="utf-8"))["result"]
    assert result["trials"] == 2
    assert result["best"]["values"]["lr"] in (0.01, 0.1)


@pytest.mark.distributed
def test_two_processes_train_the_same_run(acme):
    loaders = '[[row]]\nname = "WithLoss"\ndata = { name = "acme.sets:loaders" }\noptimizer = "acme.rivals:WithLoss"\n'
    recipe = package.RECIPE.replace(", holdout = 12 }", " }").replace("[sweep]", f"{loaders}[sweep]")
    (acme / "recipe.toml").write_text(recipe, encoding="utf-8")
    assert call("run", "recipe.toml", "--out", "one", "--seeds", 0) == 0
    code, _, errors = torchrun(*POLYAK, "run", "recipe.toml", "--out", "two", "--seeds", 0)
    assert (code, errors) == (0, "")
    for row in ("rival", "ali-g", "withloss"):
        ours, theirs = (stored.load_run(acme / out / row / "seed-0").records[-1] for out in ("one", "two"))
        numbers = {key: value for key, value in theirs.items() if value is not None}
        assert {key: ours[key] for key in numbers} == pytest.approx(numbers, rel=1e-4), row


def test_an_installed_package_has_short_names_and_its_version_is_recorded(installed, tmp_path, capsys):
    names = ("--data", "acme-set", "--model", "acme-net", "--optimizer", "acme-rival", "--objective", "acme-loss")
    settings = ("--epochs", 1, "--device", "cpu", "--out", tmp_path / "run")
    assert call("train", *names, *settings) == 0
    run = config(tmp_path / "run")
    assert run["model"] == {"name": "acme.nets:build", "version": "1.2.0"}
    assert run["data"]["name"] == "acme.sets:load"
    assert run["data"]["version"] == "1.2.0"
    assert run["objective"] == {"name": "acme.losses:smoothed", "version": "1.2.0"}
    assert run["optimizer"]["name"] == "acme.rivals:Rival"
    assert run["optimizer"]["version"] == "1.2.0"
    assert run["optimizer"]["options"] == {"lr": 0.01, "beta": 0.9}
    assert call("train", *names, *settings) == 0  # finished: the short names are the same run
    (installed / "acme_experiments-1.2.0.dist-info").rename(installed / "acme_experiments-1.3.0.dist-info")
    path = installed / "acme_experiments-1.3.0.dist-info/METADATA"
    path.write_text(package.METADATA.format(version="1.3.0"), encoding="utf-8")
    capsys.readouterr()
    assert call("train", *names, *settings) == 1
    assert "holds another run: its data.version is '1.2.0', but '1.3.0' was requested" in capsys.readouterr().err
    assert call("train", *names, *settings, "--model-version", "1.2.0") == 1
    assert "acme.nets:build has version 1.3.0, but the run asks for 1.2.0." in capsys.readouterr().err


def test_a_changed_source_is_a_warning(acme, capsys):
    arguments = (*RIVAL, "--epochs", 1, "--out", "run")
    assert [call("train", *arguments), call("train", *arguments)] == [0, 0]
    assert capsys.readouterr().err == ""
    before = documents.read_object(acme / "run/environment.json")["starts"][0]["sources"]["acme"]
    package.write(acme, {"acme/helpers.py": "# new\n"})
    assert call("train", *arguments) == 0
    assert capsys.readouterr().err.startswith("polyak: the code of acme has changed since the run in run was started: ")
    assert call("train", *arguments[:-1], "other") == 0
    assert before != documents.read_object(acme / "other/environment.json")["starts"][0]["sources"]["acme"]


def test_the_source_of_a_large_package_is_that_of_the_named_modules():
    assert imports.sources(["torch.nn:Linear"]) == imports.sources(["torch.nn:Conv2d", "alig"])
    assert imports.sources(["torch.nn:Linear"]) != imports.sources(["torch.optim:SGD"])
    assert imports.sources([None, "mlp"]) == {}


def test_an_unknown_short_name_is_compared_with_those_of_installed_packages(installed, capsys):
    assert call("train", "--data", "digits", "--model", "acme-nett", "--optimizer", "sgd") == 1
    assert "model: 'acme-nett' is not known; did you mean 'acme-net'?" in capsys.readouterr().err


@pytest.mark.slow
def test_a_package_that_pip_installed_is_a_whole_experiment(tmp_path):
    """Build and install the package as users do; every command is a process of its own."""
    source = package.write(tmp_path / "source", {**package.FILES, "pyproject.toml": package.PYPROJECT})
    site, work = tmp_path / "site", tmp_path / "work"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*pip, site, source], check=True)
    work.mkdir()
    recipe = package.RECIPE.replace('"acme.sets:load"', '"acme-set"').replace('"acme.rivals:Rival"', '"acme-rival"')
    (work / "recipe.toml").write_text(recipe, encoding="utf-8")

    def polyak(*arguments):
        paths = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-m", "polyak_lab", *arguments]
        environment = {**os.environ, "PYTHONPATH": paths}
        return subprocess.run(command, cwd=work, env=environment, check=True, capture_output=True, text=True).stdout

    assert "±" in polyak("run", "recipe.toml", "--report", "--jobs", "2")
    assert (work / "runs/recipe/report.html").exists()
    run = config(work / "runs/recipe/rival/seed-0")
    assert run["optimizer"]["name"] == "acme.rivals:Rival"
    assert run["optimizer"]["version"] == "1.2.0"
    assert "Rival" in polyak("table", "runs/recipe")
    assert all(math.isfinite(r["train_loss"]) for r in stored.load_run(work / "runs/recipe/rival/seed-1").records)
