"""How right answers are counted."""

import math

import pytest
import torch

from lab.runs import execute, run
from polyak_lab.config import run as config
from polyak_lab.objectives import OBJECTIVES

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("name", "outputs", "targets", "correct"),
    [
        ("cross_entropy", [[2.0, 1.0], [1.0, 2.0], [1.0, 2.0]], [0, 1, 0], 2),
        ("cross_entropy", [[NAN, NAN], [1.0, NAN], [NAN, 1.0], [0.0, 1.0]], [0, 1, 0, 1], 1),
        ("cross_entropy", [[INF, 1.0], [INF, INF], [-INF, -INF]], [0, 0, 0], 0),
        ("cross_entropy", [[-INF, 1.0], [1.0, -INF]], [1, 0], 2),  # a class that the model rules out
        ("logistic", [[NAN], [NAN], [2.0], [-2.0]], [1, -1, 1, 1], 1),
    ],
)
def test_outputs_that_are_not_finite_are_never_right(name, outputs, targets, correct):
    counted = OBJECTIVES[name].count_correct(torch.tensor(outputs), torch.tensor(targets))
    assert (counted.item(), counted.dtype) == (correct, torch.int64)


def test_right_answers_are_counted_without_reading_the_device():
    outputs, targets = torch.empty(3, 2, device="meta"), torch.empty(3, dtype=torch.int64, device="meta")
    assert OBJECTIVES["cross_entropy"].count_correct(outputs, targets).device.type == "meta"


def test_a_diverged_run_has_no_right_answers(tmp_path):
    wanted = run(config.Optimizer("sgd", options={"lr": 1e30}), epochs=1, max_batches=3)
    (record,) = execute(tmp_path, wanted).records
    assert math.isnan(float(record["test_loss"]))
    assert record["test_accuracy"] == 0.0
