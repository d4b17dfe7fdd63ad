"""The scripts in examples/ that need torch alone run and learn."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from lab.processes.torchrun import run as torchrun

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_the_page_lists_every_example():
    names = {path.name for path in EXAMPLES.iterdir()} - {"README.md"}
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert {name.rstrip("/").split("/")[0] for name in re.findall(r"\]\(([\w./]+)\)", page)} == names


def test_a_loop_with_mixed_precision_and_accumulation_learns(capsys):
    spec = importlib.util.spec_from_file_location("own_loop", EXAMPLES / "own_loop.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.EPOCHS = 5
    assert module.main() > 0.9
    assert "epoch 5: loss" in capsys.readouterr().out


@pytest.mark.distributed
def test_two_processes_learn():
    code, printed, errors = torchrun(EXAMPLES / "ddp.py")
    assert (code, errors) == (0, "")
    assert float(re.search(r"2 processes: training accuracy ([\d.]+) %", printed)[1]) > 95
