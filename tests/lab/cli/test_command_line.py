"""The command line, as a person meets it."""

import re
import subprocess
import sys

import pytest
import torch

from lab.runs import call
from polyak_lab.cli import inspect

RECIPE = """
seeds = [0, 1]
[defaults]
data = "digits"
model = "mlp"
training = { epochs = 2, batch_size = 256, device = "cpu", threads = 1 }
[[row]]
name = "ALI-G"
optimizer = { name = "alig", lr = 1.0 }
[[row]]
name = "SGD"
optimizer = { name = "sgd", lr = 0.1 }
"""
TRAIN = ("train", "--data", "digits", "--model", "mlp", "--device", "cpu", "--threads", "1")


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(RECIPE)
    return path


def test_help_does_not_load_torch():
    """Loading torch takes seconds, matplotlib half of one: neither is needed to print the verbs."""
    program = """
import contextlib, sys
from polyak_lab.cli.app import main
with contextlib.suppress(SystemExit):
    main(["--help"])
print(sorted({"torch", "numpy", "matplotlib", "scipy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "{train,run,sweep,table,report,compare,pack,watch,data}" in done.stdout
    assert done.stdout.endswith("\n[]\n")


def test_train(tmp_path, capsys):
    flags = ("--optimizer", "alig", "--lr", 1.0, "--momentum", 0.9, "--radius", 20, "--set", "eps=1e-6", "--epochs", 2)
    assert call(*TRAIN, *flags, "--out", tmp_path / "run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["epoch 1/2", "epoch 2/2"]
    assert re.search(r"train loss .*, test accuracy .* %, step size \S+, capped [\d.]+ %.*, [\d,]+ samples/s", lines[0])
    stored = (tmp_path / "run" / "config.json").read_text()
    assert all(text in stored for text in ('"l2_ball": 20.0', '"eps": 1e-06', '"momentum": 0.9'))


def test_train_takes_the_options_of_speed(tmp_path, capsys):
    flags = ("--optimizer", "alig", "--epochs", 1, "--precision", "bfloat16", "--channels-last")
    assert call(*TRAIN, *flags, "--out", tmp_path / "run") == 0
    stored = (tmp_path / "run" / "config.json").read_text()
    assert all(text in stored for text in ('"precision": "bfloat16"', '"channels_last": true', '"compile": false'))
    capsys.readouterr()


@pytest.mark.parametrize(("capability", "times"), [("AVX2", 1), ("AVX512", 0), ("DEFAULT", 0)])
def test_bfloat16_that_is_emulated_is_said_once(capability, times, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    flags = ["--optimizer", "alig", "--epochs", 1, "--max-batches", 1, "--out", tmp_path / "run"]
    flags += ["--precision", "bfloat16"]
    assert call(*TRAIN, *flags) == 0
    assert capsys.readouterr().out.count("emulated on this CPU") == times
    assert call(*TRAIN, *flags) == 0  # it is finished
    assert "emulated on this CPU" not in capsys.readouterr().out


def test_train_names_its_folder_by_its_content(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for lr in (0.1, 0.2, 0.1):
        assert call(*TRAIN, "--optimizer", "sgd", "--lr", lr, "--epochs", 1) == 0
    assert len(list((tmp_path / "runs").glob("digits-mlp-sgd-*/summary.json"))) == 2
    capsys.readouterr()


def test_run_prints_the_table_and_runs_nothing_twice(recipe, tmp_path, capsys):
    arguments = ("run", recipe, "--out", tmp_path / "runs", "--report")
    assert call(*arguments) == 0
    first = capsys.readouterr().out
    assert first.count("test accuracy ") == 4
    assert (tmp_path / "runs" / "report.html").exists()
    before = [(path, path.stat().st_mtime_ns) for path in sorted((tmp_path / "runs").rglob("seed-*/*"))]
    assert call(*arguments) == 0
    second = capsys.readouterr().out
    assert second.startswith("4 of 4 runs were finished before.\n")
    assert first.endswith(second.partition("\n")[2])
    assert [(path, path.stat().st_mtime_ns) for path in sorted((tmp_path / "runs").rglob("seed-*/*"))] == before


def test_run_takes_rows_seeds_and_smoke(recipe, tmp_path, capsys):
    assert call("run", recipe, "--row", "sgd", "--seeds", 5, "--smoke", "--out", tmp_path / "runs") == 0
    assert [path.parent.name for path in (tmp_path / "runs").rglob("config.json")] == ["seed-5"]
    assert "SGD, seed 5" in capsys.readouterr().out


def test_a_smoke_run_is_not_compared_with_the_paper(recipe, tmp_path, capsys):
    recipe.write_text(RECIPE.replace('name = "SGD"\n', 'name = "SGD"\npaper = 93.5\n'))
    for flags, compared in ((("--smoke",), False), ((), True)):
        assert call("run", recipe, "--row", "SGD", "--seeds", 0, "--out", tmp_path / f"runs{compared}", *flags) == 0
        assert ("paper" in capsys.readouterr().out) == compared


def test_a_changed_recipe_is_refused_before_anything_trains(recipe, tmp_path, capsys):
    call("run", recipe, "--row", "SGD", "--out", tmp_path / "runs")
    recipe.write_text(RECIPE.replace("lr = 0.1", "lr = 0.2"))
    capsys.readouterr()
    assert call("run", recipe, "--out", tmp_path / "runs") == 1
    assert "optimizer.options.lr is 0.1, but 0.2 was requested" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "ali-g").exists()


WRONG = {
    "lr": (*TRAIN, "--optimizer", "alig", "--lr", -1),
    "momentum": (*TRAIN, "--optimizer", "alig", "--momentum", 1),
    "radius": (*TRAIN, "--optimizer", "alig", "--radius", 0),
    "name": (*TRAIN, "--optimizer", "alig2"),
    "option": (*TRAIN, "--optimizer", "sgd", "--set", "weight_deacy=0.1"),
    "pair": (*TRAIN, "--optimizer", "sgd", "--set", "weight_decay"),
    "epochs": (*TRAIN, "--optimizer", "sgd", "--epochs", 0),
    "device": (*TRAIN, "--optimizer", "sgd", "--device", "tpu"),
    "recipe": ("run", "no-such.toml"),
    "table": ("table", "no-such-folder"),
    "data set": ("data", "check", "imagenet"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_sentence_and_code_1(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(*WRONG[case]) == 1
    captured = capsys.readouterr()
    assert re.fullmatch(r"polyak: [^\n]+\n", captured.err)
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_missing_data_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("POLYAK_DATA", str(tmp_path / "data"))
    arguments = [argument if argument != "digits" else "cifar100" for argument in TRAIN]
    assert call(*arguments, "--optimizer", "sgd", "--out", tmp_path / "run") == 1
    assert "polyak data fetch cifar100" in capsys.readouterr().err


def test_an_unknown_flag_is_refused(capsys):
    assert call(*TRAIN, "--optimizer", "sgd", "--learning-rate", "0.1") == 2
    assert "--learning-rate" in capsys.readouterr().err


def test_data_list_and_check(capsys):
    assert call("data", "list") == 0
    assert call("data", "check", "digits") == 0
    printed = capsys.readouterr().out
    assert "fashion-mnist" in printed
    assert "digits" in printed


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
)
def test_a_machine_without_memory_is_one_sentence(error, tmp_path, monkeypatch, capsys):
    def read_rows(*_):
        raise error

    monkeypatch.setattr(inspect, "read_rows", read_rows)
    assert call("table", tmp_path) == 1
    assert re.fullmatch(r"polyak: There is no memory left for this command: [^\n]+\.\n", capsys.readouterr().err)


def test_a_seed_that_is_named_twice_is_one_run(recipe, tmp_path, capsys):
    flags = ("--row", "SGD", "--smoke", "--out", tmp_path / "runs")
    assert call("run", recipe, *flags, "--seeds", 3, 3) == 0
    recipe.write_text(RECIPE.replace("[0, 1]", "[3, 3]"))
    assert call("run", recipe, *flags) == 0
    printed = capsys.readouterr().out
    assert printed.count("[1/1] SGD, seed 3: train loss") == 1
    assert "1 of 1 run was finished before." in printed
