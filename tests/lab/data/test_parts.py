"""Held-out samples, smaller training sets, and vectors seen through a kernel."""

import math

import pytest
import torch

from polyak_lab import data
from polyak_lab.config import run as config
from polyak_lab.data.parts import parts, through_kernel
from polyak_lab.errors import LabError


def rows(split):
    return {tuple(row.flatten().tolist()) for row in split.inputs}


def test_held_out_samples_are_not_trained_on():
    whole = data.load("separable-logistic")
    cut = parts(whole, holdout=200, train_size=300)
    assert (len(cut.validation.targets), len(cut.train.targets), len(cut.test.targets)) == (200, 300, 250)
    assert not rows(cut.validation) & rows(cut.train)
    assert rows(cut.validation) | rows(cut.train) < rows(whole.train)
    signs = cut.validation.inputs @ torch.linalg.lstsq(whole.train.inputs, whole.train.targets[:, None]).solution
    assert ((signs[:, 0] > 0) == (cut.validation.targets > 0)).float().mean() > 0.9  # targets went with their inputs


def test_the_same_samples_are_held_out_whatever_is_trained_on():
    whole = data.load("digits")
    one, other = parts(whole, 100, None), parts(whole, 100, 50)
    assert torch.equal(one.validation.inputs, other.validation.inputs)
    assert parts(whole, None, None) is whole


@pytest.mark.parametrize(
    ("holdout", "train_size", "said"),
    [
        (1437, None, "holdout is 1437, but must be 1436 or less"),
        (437, 1001, "holdout = 437 and train_size = 1001 together must not exceed that"),
        (None, 1438, "train_size is 1438, but must be 1437 or less"),
    ],
)
def test_more_than_there_is(holdout, train_size, said):
    with pytest.raises(LabError, match=rf"^digits has 1437 training samples: {said}\.$"):
        parts(data.load("digits"), holdout, train_size)


def test_a_kernel_as_its_formula_says():
    whole = data.load("separable-logistic")
    seen = through_kernel(parts(whole, 100, None), 0.5)
    x, y = whole.test.inputs[3].double(), parts(whole, 100, None).train.inputs[7].double()
    assert seen.shape == (900,)
    assert seen.test.inputs[3, 7].item() == pytest.approx(math.exp(-(x - y).square().sum().item() / 0.5), rel=1e-4)
    assert torch.allclose(seen.train.inputs.diagonal(), torch.ones(900), atol=1e-4)
    assert seen.validation.inputs.shape == (100, 900)
    assert torch.equal(seen.train.targets, parts(whole, 100, None).train.targets)


def test_a_kernel_needs_vectors():
    with pytest.raises(LabError, match="digits holds images"):
        through_kernel(data.load("digits"), 1.0)


@pytest.mark.parametrize("wrong", [{"holdout": 0}, {"train_size": -1}, {"kernel_width": 0.0}])
def test_impossible_values(wrong):
    with pytest.raises(LabError, match=f"data.{next(iter(wrong))} is"):
        config.Data("digits", **wrong)


def test_to_moves_the_held_out_samples():
    assert parts(data.load("digits"), 10, None).to("meta").validation.inputs.device.type == "meta"
