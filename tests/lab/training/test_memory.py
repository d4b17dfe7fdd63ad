"""A device with too little memory: a sentence that helps, and a run that can be resumed."""

import re

import numpy as np
import pytest
import torch

from lab.runs import call, run
from polyak_lab import models
from polyak_lab.errors import LabError
from polyak_lab.training.failures import explain_oom

TRAIN = ("train", "--data", "digits", "--model", "mlp", "--optimizer", "alig", "--device", "cpu", "--threads", 1)


@pytest.fixture
def memory_for(monkeypatch):
    """Let the network run out of memory in training after so many batches."""

    def limit(batches):
        build, seen = models.build, []

        def count(model, _):
            seen.append(None)
            if model.training and len(seen) > batches:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has ...")

        def full(*arguments, **options):
            model = build(*arguments, **options)
            model.register_forward_pre_hook(count)
            return model

        monkeypatch.setattr(models, "build", full)

    return limit


def said(capsys):
    sentence = capsys.readouterr().err
    assert re.fullmatch(r"polyak: [^\n]+\n", sentence)
    return sentence


def test_the_sentence_says_what_to_write_and_the_checkpoint_is_kept(tmp_path, memory_for, monkeypatch, capsys):
    flags = (*TRAIN, "--epochs", 3, "--batch-size", 128, "--out")
    assert call(*flags, tmp_path / "whole") == 0
    memory_for(20)
    assert call(*flags, tmp_path / "run") == 1
    sentence = said(capsys)
    assert "cpu ran out of memory with batch_size = 128" in sentence
    assert "batch_size = 64 in the recipe or --batch-size 64, or precision = " in sentence
    assert "--precision bfloat16; or free the memory that other programs use" in sentence
    monkeypatch.undo()
    assert call(*flags, tmp_path / "run") == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_what_was_tried_already_is_not_proposed(tmp_path, memory_for, capsys):
    memory_for(0)
    flags = ("--batch-size", 1, "--precision", "bfloat16", "--out", tmp_path / "run")
    assert call(*TRAIN, *flags) == 1
    assert "batch_size = 1: write a smaller model; " in said(capsys)


@pytest.mark.parametrize("allocate", [lambda: torch.empty(1 << 60), lambda: np.empty(1 << 57), lambda: bytes(1 << 62)])
def test_the_memory_of_the_cpu_is_said_as_well(allocate):
    sentence = r"^The device cpu ran out of memory with batch_size = 256: write batch_size = 128"
    with pytest.raises(LabError, match=sentence), explain_oom(run().training):
        allocate()


def test_other_errors_are_not_taken_for_it():
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), explain_oom(run().training):
        raise RuntimeError("shapes differ")
