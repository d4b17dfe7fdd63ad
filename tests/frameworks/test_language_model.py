"""A small language model trains with ALI-G on two processes, is killed, and ends as if nothing had happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from launch import ProcessError, launch

pytestmark = pytest.mark.frameworks

NEVER = -1


def train(folder: Path, stop: int = NEVER) -> None:
    folder.mkdir(exist_ok=True)
    launch("train_language_model.py", [str(folder), str(stop)], size=2, seconds=180)


def weights(folder: Path, rank: int) -> dict[str, Any]:
    return torch.load(folder / f"weights-{rank}.pt", weights_only=True)


def test_a_killed_training_resumes_and_ends_as_the_uninterrupted_one(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(whole)
    with pytest.raises(ProcessError, match="ended with -9"):
        train(killed, stop=27)
    assert {path.name for path in killed.iterdir()} == {"checkpoint-10", "checkpoint-20"}
    train(killed)
    expected = weights(whole, 0)
    assert sum(tensor.numel() for tensor in expected.values()) > 200_000
    for folder, rank in ((whole, 1), (killed, 0), (killed, 1)):
        found = weights(folder, rank)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    logs = [json.loads((folder / "log.json").read_text(encoding="utf-8")) for folder in (whole, killed)]
    rows = [[{k: row[k] for k in ("loss", "step_size/0")} for row in log if "loss" in row] for log in logs]
    assert rows[0] == rows[1]
    losses = [row["loss"] for row in rows[0]]
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]
