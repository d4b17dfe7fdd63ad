"""Several processes started by torchrun train what one would train, and stop together."""

import os
import signal

import pytest
import torch
import torch.nn.functional as F

from lab.processes.torchrun import HERE, POLYAK, end, kill, run, start
from lab.runs import call
from polyak_lab import data, models
from polyak_lab.data.augment import normalise
from polyak_lab.processes import group, torchrun
from polyak_lab.runs import documents, stored

RECIPE = """
[defaults]
data = "digits"
model = "mlp"
training = { epochs = 5, batch_size = 148, device = "cpu", threads = 1 } # 10 steps an epoch, the last of 105 samples
[[row]]
name = "ALI-G"
optimizer = { name = "alig", lr = 0.1, momentum = 0.9, l2_ball = 20.0 }
[[row]]
name = "SPS"
optimizer = { name = "sps", c = 20.0 } # with c = 5, rounding alone moves the end of one run in four by 1e-4
[[row]]
name = "SGD"
optimizer = { name = "sgd", lr = 0.1, momentum = 0.9 }
[[row]]
name = "Fewer samples than processes"
data = { name = "digits", train_size = 1261, holdout = 101 }
training = { batch_size = 140 } # the tenth step has one sample
optimizer = { name = "alig", lr = 0.1, momentum = 0.9, l2_ball = 20.0 }
[[row]]
name = "Cropped"
data = { name = "digits", augment = true }
model = "logistic"
training = { eval_protocol = "sps-augmented-validation" }
optimizer = { name = "alig", lr = 0.1, momentum = 0.9 }
"""
ROWS = ("ali-g", "sps", "sgd", "fewer-samples-than-processes", "cropped")
TRAIN = ("train", "--data", "digits", "--device", "cpu", "--threads", "1", "--batch-size", "148", "--optimizer", "alig")
ALIG = (*TRAIN, "--model", "mlp", "--momentum", "0.9", "--radius", "20")


def weights(path):
    return torch.load(path / "checkpoint.pt", weights_only=True)["state"]["model"]


def metrics(path):
    """Read what was measured; torch's own optimizers leave some of it out."""
    return [{key: value for key, value in line.items() if value is not None} for line in stored.load_run(path).records]


def assert_same_run(one, other):
    """Ask for 1e-5 of the size of every parameter, and of every number measured."""
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert (value - theirs[name]).norm() <= 1e-5 * theirs[name].norm(), name
    assert metrics(one) == [pytest.approx(record, rel=1e-5, abs=1e-8) for record in metrics(other)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Run the recipe in one process and in two."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "small.toml").write_text(RECIPE)
    assert call("run", folder / "small.toml", "--out", folder / "one") == 0
    code, printed, said = run(*POLYAK, "run", folder / "small.toml", "--out", folder / "two")
    assert (code, said) == (0, "")
    return folder, printed


@pytest.mark.distributed
@pytest.mark.parametrize("row", ROWS)
def test_two_processes_train_what_one_trains(row, recipe):
    one, two = (recipe[0] / name / row / "seed-0" for name in ("one", "two"))
    assert sum(record["epoch"] > 0 for record in metrics(two)) * 10 == 50
    assert_same_run(two, one)
    assert documents.read_object(two / "config.json") == documents.read_object(one / "config.json")
    assert [start["processes"] for start in documents.read_object(two / "environment.json")["starts"]] == [2]


@pytest.mark.distributed
def test_only_rank_zero_prints(recipe):
    assert recipe[1].count("ALI-G, seed 0: train loss") == 1
    assert recipe[1].count("paper") == 0
    assert recipe[1].count("test accuracy") == len(ROWS)  # a line per run,
    assert recipe[1].count("┏") == 1  # and the table


@pytest.mark.distributed
def test_one_process_goes_on_with_the_checkpoint_of_two(tmp_path, capsys):
    flags = (*ALIG, "--epochs", "5")
    assert call(*flags, "--out", tmp_path / "whole") == 0
    code, _, said = run(HERE / "interrupted.py", "stop", *flags, "--out", tmp_path / "run")
    assert (code, said) == (1, "polyak: stopped; run the same command again to resume.\n")
    assert len(torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["state"]["model"]) == 6
    before = metrics(tmp_path / "run")[:2]
    assert call(*flags, "--out", tmp_path / "run") == 0
    assert "resuming after epoch 2 of 5" in capsys.readouterr().out
    assert metrics(tmp_path / "run")[:2] == before
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    starts = documents.read_object(tmp_path / "run" / "environment.json")["starts"]
    assert [start["processes"] for start in starts] == [2, 1]


@pytest.mark.distributed
def test_three_processes_go_on_with_the_checkpoint_of_two(tmp_path):
    flags = (*ALIG, "--epochs", "5", "--out")
    run(HERE / "interrupted.py", "stop", *flags, tmp_path / "run")
    assert run("-m", "polyak_lab", *flags, tmp_path / "run", processes=3)[0] == 0
    assert call(*flags, tmp_path / "whole") == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.distributed
def test_every_process_scores_with_the_running_statistics_that_are_stored(tmp_path):
    flags = (*TRAIN, "--model", "resnet8", "--epochs", "1", "--out", tmp_path / "run")
    assert run("-m", "polyak_lab", *flags)[0] == 0
    digits = data.load("digits")
    model = models.build("resnet8", digits.shape, digits.outputs).eval()
    model.load_state_dict(weights(tmp_path / "run"))
    with torch.no_grad():
        outputs = model(normalise(digits.test.inputs, digits.mean, digits.std))
    expected = float(F.cross_entropy(outputs, digits.test.targets))
    assert metrics(tmp_path / "run")[0]["test_loss"] == pytest.approx(expected, rel=1e-5)


WRONG = {
    "an unknown optimizer": ((*TRAIN[:-1], "aligg", "--model", "mlp"), "did you mean 'alig'?"),
    "no epochs": ((*ALIG, "--epochs", "0"), "training.epochs is 0"),
    "one GPU for two": ((*ALIG, "--device", "cuda:0"), "write cuda, which gives each its own GPU"),
    "too few GPUs": ((*ALIG, "--device", "cuda"), "start at most one process per GPU"),
    "no data": ((*ALIG, "--data", "cifar100"), "polyak data fetch cifar100"),
    "an alien folder": ((*ALIG, "--out", HERE), "is not empty and not a run folder"),
    "another verb": (("table", "runs"), "torchrun starts polyak train and polyak run"),
}


@pytest.mark.distributed
@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_sentence_said_once(case, tmp_path, monkeypatch):
    monkeypatch.setenv("POLYAK_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    flags, sentence = WRONG[case]
    code, printed, said = run("-m", "polyak_lab", *flags)
    assert (code, printed) == (1, "")
    assert sentence in said
    assert said.count("\n") == 1


@pytest.mark.distributed
def test_a_process_that_runs_out_of_memory_says_so_and_stops_the_others(tmp_path):
    code, _, said = run(HERE / "interrupted.py", "memory", *ALIG, "--out", tmp_path / "run")
    assert code == 1
    assert said.count("batch_size = 74") == 1
    assert said.count("\n") == 2
    assert said.count("run the same command again to resume") == 2  # torchrun may stop the first before it notices
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["epochs"] == 2


@pytest.mark.distributed
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_processes_and_is_said_once(sent, tmp_path):
    child = start("-m", "polyak_lab", *ALIG, "--epochs", "100000", "--out", tmp_path / "run")
    try:
        assert child.stdout.readline().startswith("epoch 1/100000: ")
        os.kill(child.pid, sent)
        code, _, said = end(child, seconds=60)
    finally:
        kill(child)
    assert code != 0
    assert said == "polyak: stopped; run the same command again to resume.\n"
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["epochs"] >= 1


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 7, 128])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_are_the_whole_batch_and_their_weighted_means_its_mean(samples, size, monkeypatch):
    values = torch.arange(samples, dtype=torch.float64) ** 2
    parts, means = [], []
    monkeypatch.setattr(group, "world_size", lambda: size)
    for rank in range(size):
        monkeypatch.setattr(group, "rank", lambda rank=rank: rank)
        parts.append(values[group.local_slice(samples)])
        means.append(group.loss_weight(samples) * float(parts[-1].mean() if len(parts[-1]) else 0))
    assert torch.equal(torch.cat(parts), values)
    assert sum(means) / size == pytest.approx(float(values.mean()))
    assert len(parts[0])  # its running statistics are those that are kept


def test_a_cluster_that_names_ranks_without_torchrun_changes_nothing(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert (torchrun.rank(), torchrun.world_size()) == (0, 1)
