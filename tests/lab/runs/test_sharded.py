"""Checkpoints of runs with distributed = "fsdp2", on one process: atomic, checked, loaded without executing code."""

import hashlib
import pickle

import pytest
import torch
from torch import nn

from lab.runs import execute, run
from polyak_lab.config import run as config
from polyak_lab.errors import LabError
from polyak_lab.processes import sharding
from polyak_lab.recipes.resolve import resolve
from polyak_lab.runs import checkpoint
from polyak_lab.runs import folder as record
from polyak_lab.runs.folder import RunFolder

DATA = ".metadata", "__0_0.distcp"
MOMENTUM = config.Optimizer("alig", options={"lr": 0.5, "momentum": 0.9})


def sharded(**training):
    settings = {"epochs": 2, "batch_size": 64, "max_batches": 2, "distributed": "fsdp2"}
    return run(MOMENTUM, model="logistic", **{**settings, **training})


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A run that was cut short between its second epoch's tensors and the file that names them."""

    def save_one(path, state, epochs, *hashes):
        if epochs == 2:
            raise KeyboardInterrupt
        save(path, state, epochs, *hashes)

    with monkeypatch.context() as patch:
        save = checkpoint.save
        patch.setattr(checkpoint, "save", save_one)
        with pytest.raises(KeyboardInterrupt):
            execute(tmp_path / "run", sharded())
    return tmp_path / "run"


def metrics(folder):
    return (folder / "metrics.jsonl").read_bytes()


def test_a_crash_loses_nothing_and_one_process_has_the_bits_of_ddp(stopped, tmp_path):
    assert sorted(path.name for path in stopped.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    execute(stopped, sharded())
    assert [path.name for path in stopped.glob("checkpoint-*")] == ["checkpoint-2"]
    execute(tmp_path / "ddp", sharded(distributed="ddp"))
    assert metrics(stopped) == metrics(tmp_path / "ddp")


def test_large_checkpoints_keep_their_tensors(tmp_path, monkeypatch):
    commit = RunFolder.commit

    def interrupted(folder, *arguments):
        commit(folder, *arguments)
        if len(folder.records) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(record, "LARGE", 0)
    monkeypatch.setattr(record, "SHARE", 1e-9)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            execute(tmp_path / "run", sharded(epochs=4))
    execute(tmp_path / "run", sharded(epochs=4))
    execute(tmp_path / "ddp", sharded(epochs=4, distributed="ddp"))
    assert metrics(tmp_path / "run") == metrics(tmp_path / "ddp")


def rename(path):
    path.rename(path.with_name("other"))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("damage", [rename, flip, lambda path: path.write_bytes(b"")])
def test_damage_is_one_sentence(stopped, name, damage):
    damage(stopped / "checkpoint-1" / name)
    with pytest.raises(
        LabError, match=r"checkpoint-1 is damaged: delete .*checkpoint.pt to train the run again"
    ) as caught:
        execute(stopped, sharded())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).replace(str(stopped), "")) < 300


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


@pytest.mark.parametrize("content", [Bomb(), {"state_dict_metadata": Bomb()}])
def test_loading_executes_nothing_even_if_the_digests_match(stopped, content):
    path = stopped / "checkpoint-1" / ".metadata"
    path.write_bytes(pickle.dumps(content))
    stored = torch.load(stopped / "checkpoint.pt", weights_only=True)
    stored["state"]["tensors"]["files"][".metadata"] = hashlib.sha256(path.read_bytes()).hexdigest()
    torch.save(stored, stopped / "checkpoint.pt")
    with pytest.raises(LabError, match="checkpoint-1 is damaged"):
        execute(stopped, sharded())


def test_a_run_of_another_mode_is_refused(stopped):
    with pytest.raises(LabError, match=r"holds another run: its training.distributed is 'fsdp2', but 'not set' was"):
        execute(stopped, sharded(distributed="ddp"))


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"distributed": "fsdp"}, "training.distributed: 'fsdp' is not known; did you mean 'fsdp2'"),
        ({"compile": True}, 'training.compile does not go with distributed = "fsdp2"'),
        ({"channels_last": True}, 'training.channels_last does not go with distributed = "fsdp2"'),
    ],
)
def test_what_cannot_be_is_one_sentence(training, message):
    with pytest.raises(LabError, match=message):
        resolve(sharded(**training))


def test_the_default_is_not_in_the_configuration():
    assert "distributed" not in config.as_json(resolve(sharded(distributed="ddp")))["training"]
    assert config.as_json(resolve(sharded()))["training"]["distributed"] == "fsdp2"


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4)), nn.ModuleList([nn.Linear(4, 4)])])
        self.shared = nn.Sequential(nn.Linear(4, 5, bias=False))
        self.head.weight = self.embed.weight
        self.shared[0].weight = self.embed.weight


def test_the_parts_are_the_elements_of_the_outermost_lists_that_share_no_weights():
    model = Tied()
    assert sharding._parts(model) == [model.blocks[0], model.blocks[1][0]]
