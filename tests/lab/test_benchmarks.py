"""Every benchmark runs, in its smallest form, and refuses what it cannot measure before it measures."""

import importlib
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SMALLEST = {  # the script: its options, and what it prints
    "step_time": (["--model", "mlp", "--only", "ALI-G, momentum, fused"], "torch SGD, fused: "),
    "step_time of Adam": (["--model", "mlp", "--only", "NGNMD, fused"], "torch AdamW, fused: "),
    "training_step": (["--batch", "2"], "the swap from SGD changes it by "),
    "training_throughput": (["--model", "resnet8", "--images", "4"], "times the plain loop (1 rounds, "),
    "scaling": (["--axis", "parameters", "--axis", "groups", "--largest", "2e4"], "µs per group, "),
}


def run(script, *arguments):
    sys.argv = [f"{script}.py", *map(str, arguments)]
    runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")


@pytest.fixture(autouse=True)
def beside_the_scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", sys.argv)


@pytest.mark.parametrize("name", SMALLEST)
def test_a_benchmark_runs(name, capsys):
    options, expected = SMALLEST[name]
    run(name.partition(" ")[0], *options, "--rounds", 1, "--threads", 1, "--device", "cpu")
    assert expected in capsys.readouterr().out


def test_the_steps_of_replicas_are_timed_and_counted(tmp_path, monkeypatch):
    scaling = importlib.import_module("scaling")
    monkeypatch.setattr(scaling, "HOWS", ("DDP",))
    scaling.replica(0, 1, 1, str(tmp_path))
    lines = scaling.torch.load(tmp_path / "lines.pt", weights_only=True)
    assert [line[:3] for line in lines] == [["1", "DDP", "1"], ["1", "DDP", "12"]]


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        *(
            (name, ["--rounds", "0"], "--rounds: 0 is not 1 or more")
            for name in ("scaling", "step_time", "training_step")
        ),
        ("training_throughput", ["--rounds", "-1"], "--rounds: -1 is not 1 or more"),
        ("training_throughput", ["--images", "0"], "--images: 0 is not 1 or more"),
        ("training_step", ["--batch", "0"], "--batch: 0 is not 1 or more"),
        ("scaling", ["--threads", "0"], "--threads: 0 is not 1 or more"),
        (
            "scaling",
            ["--out", "/missing/table.txt"],
            "--out: /missing/table.txt must be a file in a folder",
        ),
        ("step_time", ["--out", "/"], "--out: / must be a file in a folder that exists"),
        ("step_time", ["--only", "ADAGRAD"], "--only: no row's name holds 'ADAGRAD'"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(script, arguments, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(script, *arguments)
    assert said in capsys.readouterr().err
