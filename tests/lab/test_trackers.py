"""`--track`: the metrics of every epoch reach a tracker, and a tracker that fails stops no training."""

import json
import os
import struct
import sys
from types import SimpleNamespace
from typing import ClassVar

import pytest

from lab.runs import call
from polyak_lab import trackers

TRAIN = ["train", "--data", "digits", "--model", "mlp", "--optimizer", "alig", "--train-size", "64"]


class Memory:
    """A tracker that keeps what it gets, and fails on request."""

    logged: ClassVar[list] = []
    failing: ClassVar[str] = ""

    def __init__(self, folder):
        self.fail("open")
        Memory.logged.append(("open", folder.label.row))

    error: ClassVar[type[BaseException]] = ConnectionError

    def fail(self, where):
        if Memory.failing == where:
            raise Memory.error("no route to host.\nmore")

    def log(self, numbers, epoch):
        self.fail("log")
        Memory.logged.append((epoch, dict(numbers)))

    def close(self):
        self.fail("close")
        Memory.logged.append("close")


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.setattr(Memory, "logged", [])
    monkeypatch.setattr(Memory, "failing", "")
    monkeypatch.setitem(trackers.KINDS, "wandb", trackers.Kind("Weights & Biases", "json", Memory, True))
    return Memory


def train(path, *options, epochs=2):
    return call(*TRAIN, "--epochs", str(epochs), "--out", str(path), *options)


def records(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_every_epoch_is_tracked_and_the_run_is_closed(memory, tmp_path):
    assert train(tmp_path / "run", "--track", "wandb") == 0
    opened, *epochs, closed = memory.logged
    assert (opened[0], closed) == ("open", "close")
    for (epoch, numbers), record in zip(epochs, records(tmp_path / "run"), strict=True):
        assert epoch == record.pop("epoch")
        assert numbers.keys() == {*record, "seconds", "images_per_second"}
        assert {name: numbers[name] for name in record} == record


def test_the_same_run_has_the_same_files_with_and_without_a_tracker(memory, tmp_path):
    train(tmp_path / "one", "--track", "wandb")
    train(tmp_path / "two")
    assert records(tmp_path / "one") == records(tmp_path / "two")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(
        path.name for path in (tmp_path / "two").iterdir()
    )


@pytest.mark.parametrize("where", ["open", "log", "close"])
def test_a_tracker_that_fails_is_one_sentence_and_training_goes_on(memory, where, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(memory, "error", SystemExit if where == "log" else ConnectionError)
    memory.failing = where
    assert train(tmp_path / "run", "--track", "wandb") == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"polyak: Weights & Biases failed ({memory.error.__name__}: no route to host), so training goes on with "
        "metrics.jsonl alone."
    ]
    assert len(records(tmp_path / "run")) == 2


@pytest.mark.parametrize("name", sorted(trackers.KINDS))
def test_a_tracker_that_is_not_installed_is_one_sentence(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, trackers.KINDS[name].module, None)
    assert train(tmp_path / "run", "--track", name) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"polyak: {trackers.KINDS[name].title} is not installed, so training goes on")
    assert line.endswith(f"pip install 'polyak[{name}]'.")
    assert len(records(tmp_path / "run")) == 2


def test_infinite_numbers_and_missing_ones_are_left_out():
    found = trackers.numbers({"epoch": 1, "lr": float("inf"), "test_accuracy": None, "step_size": 0.5})
    assert found == {"step_size": 0.5}


RECIPE = """
seeds = [0, 1]
[defaults]
data = { name = "digits", train_size = 32 }
model = "mlp"
training = { epochs = 2, batch_size = 16, threads = 1, device = "cpu" }
[[row]]
name = "ALI-G"
optimizer = "alig"
"""


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_all_runs_of_a_recipe_are_tracked(jobs, memory, tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE)
    arguments = ["run", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "runs"), "--jobs", jobs]
    assert call(*arguments, "--track", "wandb") == 0
    assert sum(entry == "close" for entry in memory.logged) == 2
    assert sorted(entry[0] for entry in memory.logged if isinstance(entry[0], int)) == [1, 1, 2, 2]


def test_the_epochs_before_a_resume_are_sent_again_where_that_replaces_them(memory, tmp_path):
    train(tmp_path / "run", "--track", "wandb")
    shown = SimpleNamespace(console=None, each_epoch=False, name="", run_started=lambda *_: None)
    folder = SimpleNamespace(path=tmp_path / "run", label=SimpleNamespace(row="again", table=None))
    memory.logged.clear()
    trackers.Tracking("wandb").follow(shown, folder).run_started(4, 1, 2)
    assert memory.logged[0] == ("open", "again")
    assert [entry[0] for entry in memory.logged if isinstance(entry[0], int)] == [1, 2]


@pytest.mark.trackers
def test_tensorboard_reads_back_what_metrics_jsonl_holds(tmp_path):
    import numpy as np
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train(tmp_path / "run", "--track", "tensorboard", epochs=3) == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    wanted = records(tmp_path / "run")
    for name in wanted[0].keys() - {"epoch"}:
        found = [(event.step, np.float32(event.value)) for event in events.Scalars(name)]
        assert found == [(record["epoch"], np.float32(record[name])) for record in wanted], name


@pytest.mark.trackers
@pytest.mark.filterwarnings("ignore")  # MLflow uses what SQLAlchemy 2.1 deprecates
def test_mlflow_reads_back_what_metrics_jsonl_holds(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert train(tmp_path / "run", "--track", "mlflow", epochs=3) == 0
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("polyak").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.options.lr"] == "0.1"
    wanted = records(tmp_path / "run")
    for name in wanted[0].keys() - {"epoch"}:
        found = [(entry.step, entry.value) for entry in client.get_metric_history(run.info.run_id, name)]
        assert found == [(record["epoch"], record[name]) for record in wanted], name


def run_side_by_side(tmp_path, tracker):
    """Train two runs at once with a tracker; return what their folders hold, by the seed."""
    (tmp_path / "pair.toml").write_text(RECIPE)
    arguments = ["run", str(tmp_path / "pair.toml"), "--out", str(tmp_path / "runs"), "--jobs", "2", "--track", tracker]
    assert call(*arguments) == 0
    return {seed: records(tmp_path / "runs" / "ali-g" / f"seed-{seed}") for seed in (0, 1)}


def wandb_records(path):
    """Yield the records of a file of Weights & Biases: blocks of 32 KiB, as LevelDB writes its log, after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, part = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(part)
            part = b""


@pytest.mark.trackers
@pytest.mark.filterwarnings("ignore")  # those of its imports
def test_wandb_stores_what_metrics_jsonl_holds(tmp_path, monkeypatch, capfd):
    pytest.importorskip("wandb", reason="needs Weights & Biases: pip install 'polyak[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for seed, wanted in run_side_by_side(tmp_path, "wandb").items():
        (file,) = (tmp_path / "runs" / "ali-g" / f"seed-{seed}").glob("wandb/offline-run-*/*.wandb")
        stored = [*wandb_records(file)]
        (run,) = (record.run for record in stored if record.WhichOneof("record_type") == "run")
        assert (run.project, run.display_name) == ("pair", f"ALI-G, seed {seed}")
        assert json.loads({entry.key: entry.value_json for entry in run.config.update}["training"])["seed"] == seed
        lines = [record.history.item for record in stored if record.WhichOneof("record_type") == "history"]
        found = [{item.nested_key[0]: json.loads(item.value_json) for item in line} for line in lines]
        assert [line["_step"] for line in found] == [1, 2]
        for line, record in zip(found, wanted, strict=True):
            assert {name: line[name] for name in record.keys() - {"epoch"}} == without_epoch(record)
    assert "wandb" not in capfd.readouterr().err


@pytest.mark.trackers
@pytest.mark.filterwarnings("ignore")  # those of its imports
def test_trackio_stores_what_metrics_jsonl_holds(tmp_path, monkeypatch, capfd):
    pytest.importorskip("trackio", reason="needs Trackio: pip install 'polyak[trackio]'")
    from trackio import sqlite_storage, utils

    for module in (sqlite_storage, utils):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    wanted = run_side_by_side(tmp_path, "trackio")
    names = sorted(sqlite_storage.SQLiteStorage.get_runs("pair"))
    assert [name[:14] for name in names] == ["ALI-G, seed 0 ", "ALI-G, seed 1 "]
    for name, stored in zip(names, wanted.values(), strict=True):
        found = sqlite_storage.SQLiteStorage.get_logs("pair", name)
        assert [line["step"] for line in found] == [1, 2]
        for line, record in zip(found, stored, strict=True):
            assert {key: line[key] for key in record.keys() - {"epoch"}} == without_epoch(record)
    assert "Trackio" not in capfd.readouterr().out


def without_epoch(record):
    return {name: value for name, value in record.items() if name != "epoch"}


@pytest.mark.parametrize("given", [None, "5"])
def test_mlflow_does_not_try_for_minutes_to_reach_a_server(given, monkeypatch):
    for name in trackers.PATIENCE:
        monkeypatch.delenv(name, raising=False)
    if given:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", given)

    def client():
        raise ConnectionError({name: os.environ[name] for name in trackers.PATIENCE})

    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=client))
    with pytest.raises(ConnectionError) as caught:
        trackers._MLflow(None)
    assert caught.value.args[0] == {
        **trackers.PATIENCE,
        **({"MLFLOW_HTTP_REQUEST_MAX_RETRIES": given} if given else {}),
    }
