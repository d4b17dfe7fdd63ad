"""Run folders that version 0.1.0 wrote: tables show them, finished runs stay finished, interrupted ones resume."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from lab.runs import call, run
from polyak_lab.config.run import Optimizer
from polyak_lab.recipes.resolve import resolve
from polyak_lab.runs import checkpoint, stored
from polyak_lab.training.build import build_session

OLD = Path(__file__).with_name("version_0_1_0")
TRAIN = ("train", "--data", "digits", "--model", "logistic", "--optimizer", "alig", "--lr", 1.0, "--momentum", 0.9)
OPTIONS = ("--l2-ball", 20, "--epochs", 3, "--batch-size", 256, "--threads", 1, "--device", "cpu")


@pytest.fixture
def folder(tmp_path):
    """Copies of the folders, to write in."""
    return Path(shutil.copytree(OLD, tmp_path / "runs"))


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["finished", "interrupted"])
def test_a_table_shows_them(name, folder, capsys):
    assert call("table", folder / name, "--format", "csv") == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert row.startswith("digits-logistic-alig,87.77" if name == "finished" else "digits-logistic-alig,,")


def test_a_finished_run_stays_as_it_is(folder, capsys):
    before = {path.name: path.read_bytes() for path in (folder / "finished").iterdir()}
    assert call(*TRAIN, *OPTIONS, "--out", folder / "finished") == 0
    after = {path.name: path.read_bytes() for path in (folder / "finished").iterdir()}
    configs = [json.loads(files.pop("config.json")) for files in (before, after)]
    assert after == before
    assert configs[1].pop("checksum")  # which 0.1.0 did not write
    assert configs[1] == configs[0]


def test_an_interrupted_run_resumes_from_its_checkpoint(folder, capsys):
    old, run = lines(OLD / "finished"), folder / "interrupted"
    assert call(*TRAIN, *OPTIONS, "--out", run) == 0
    assert "after epoch 2 of 3" in capsys.readouterr().out
    assert lines(run)[:2] == old[:2]
    last = lines(run)[2]  # it also has what later versions record
    assert {key: last[key] for key in old[2]} == pytest.approx(old[2], rel=1e-4)
    assert stored.load_run(run).finished
    assert len(json.loads((run / "environment.json").read_text())["starts"]) == 2


def test_another_run_is_refused(folder, capsys):
    assert call(*TRAIN, *OPTIONS, "--seed", 1, "--out", folder / "interrupted") == 1
    assert "holds another run: its training.seed is 0, but 1 was requested" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["iam", "iam-adam", "safe-sps", "schedule-free-sps", "schedule-free-plus", "alig"])
def test_a_checkpoint_may_lack_the_keys_that_came_later(name, tmp_path):
    wanted = resolve(run(Optimizer(name)))
    path, session = tmp_path / "checkpoint.pt", build_session(wanted)
    checkpoint.save(path, session, 1, "hash", "metrics")
    content = torch.load(path, weights_only=True)
    for group in content["state"]["optimizer"]["param_groups"]:
        for key in checkpoint.LATER_KEYS:
            group.pop(key, None)
    torch.save(content, path)
    assert checkpoint.load(path, build_session(wanted), "hash", wanted.training) == (1, "metrics")
