"""FSDP2 on two processes trains what one process trains, and its checkpoints are resumed on another number of them."""

import signal

import pytest
import torch

from lab.processes.torchrun import HERE, run
from lab.runs import call, stored_tensors
from polyak_lab.progress import Progress
from polyak_lab.runs import documents, stored

pytestmark = pytest.mark.distributed

RECIPE = """
[defaults]
data = "digits"
model = "mlp"
training = { epochs = 2, batch_size = 148, device = "cpu", threads = 1, distributed = "fsdp2" } # 20 steps
[[row]]
name = "ALI-G"
optimizer = { name = "alig", lr = 0.1, momentum = 0.9, l2_ball = 20.0 }
training = { clip_norm = 1.0 }
[[row]]
name = "MoMo"
optimizer = { name = "momo", lr = 0.1 }
[[row]]
name = "Adam"
optimizer = { name = "adam", lr = 0.001 }
[[row]]
name = "Schedule-free"
optimizer = { name = "schedule-free-sps", lr = 0.5 }
[[row]]
name = "Scaled"
model = "lab.processes.scaled:Scaled"
optimizer = { name = "alig", lr = 0.1 }
"""
# Adam divides gradients that are hardly more than rounding by their own size.
ROWS = {"ali-g": 1e-5, "momo": 1e-5, "schedule-free": 1e-5, "adam": 1e-3}
FLAGS = ("train", "--data", "digits", "--device", "cpu", "--threads", "1", "--batch-size", "148", "--optimizer", "alig")
ALIG = (*FLAGS, "--model", "mlp", "--momentum", "0.9", "--radius", "20", "--epochs", "4", "--distributed", "fsdp2")


def metrics(path):
    return [{key: value for key, value in line.items() if value is not None} for line in stored.load_run(path).records]


def assert_same_run(one, other, tolerance=1e-5):
    """Compare every tensor of the model and of the optimizer, by its norm, and every number measured."""
    ours, theirs = stored_tensors(one), stored_tensors(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert (value - theirs[name]).norm() <= tolerance * theirs[name].norm(), name
    assert metrics(one) == [pytest.approx(record, rel=tolerance, abs=1e-8) for record in metrics(other)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "small.toml").write_text(RECIPE)
    assert call("run", folder / "small.toml", "--out", folder / "one") == 0
    return folder, run("-m", "polyak_lab", "run", folder / "small.toml", "--out", folder / "two")


@pytest.mark.parametrize("row", ROWS)
def test_two_processes_train_what_one_trains(row, recipe):
    one, two = (recipe[0] / name / row / "seed-0" for name in ("one", "two"))
    assert_same_run(two, one, ROWS[row])
    assert documents.read_object(two / "config.json") == documents.read_object(one / "config.json")
    assert [start["processes"] for start in documents.read_object(two / "environment.json")["starts"]] == [2]
    assert sorted(path.name for path in (two / "checkpoint-2").iterdir()) == [
        ".metadata",
        "__0_0.distcp",
        "__1_0.distcp",
    ]


def test_a_model_that_cannot_be_sharded_is_named_once_and_the_other_rows_are_trained(recipe):
    code, _, said = recipe[1]
    assert code == 1
    assert said.count("model 'lab.processes.scaled:Scaled' cannot be sharded by FSDP2 (") == 1
    assert 'write training.distributed = "ddp".' in said
    assert said.count("\n") == 2


def test_two_one_and_two_processes_go_on_with_one_another_s_checkpoints(tmp_path, monkeypatch):
    assert call(*ALIG, "--out", tmp_path / "whole") == 0
    assert run(HERE / "interrupted.py", "stop", *ALIG, "--out", tmp_path / "run")[0] == 1
    content = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert (content["epochs"], content["state"]["tensors"]["folder"]) == (2, "checkpoint-2")
    assert (tmp_path / "run" / "checkpoint-3").exists()  # written, but not yet named by checkpoint.pt
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "epoch_done", lambda *_: signal.raise_signal(signal.SIGINT))
        assert call(*ALIG, "--out", tmp_path / "run") == 130
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-3"]
    assert run("-m", "polyak_lab", *ALIG, "--out", tmp_path / "run")[::2] == (0, "")
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    starts = documents.read_object(tmp_path / "run" / "environment.json")["starts"]
    assert [start["processes"] for start in starts] == [2, 1, 2]
