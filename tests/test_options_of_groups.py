"""Groups that are none, and values in them that are checked before anything is computed from them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from catalogue import each_method
from observe import changed, give, random_like, refused, snapshot
from test_options import wrong


def fresh() -> list[nn.Parameter]:
    return [nn.Parameter(value) for value in random_like([torch.empty(2), torch.empty(3)], seed=7)]


@each_method
def test_a_group_that_is_no_dict_is_refused(method):
    for group, given in (
        ([torch.ones(2)], "a list"),
        (torch.ones(2), "a Tensor"),
        ({"lr": 0.1}, "the dict {'lr': 0.1}"),
    ):
        words = f"a parameter group is {given}, but must be a dict such as"
        with refused(TypeError, method.name, words):
            method.build(fresh()).add_param_group(group)
        with refused(TypeError, method.name, words):
            method.build([{"params": fresh()}, group])


@each_method
def test_a_wrong_value_in_a_group_is_refused_before_anything_is_computed_from_it(method):
    for option in method.defaults:
        for value in wrong(method, option)[0]:
            with refused(ValueError, f"{method.cls.__name__}: {option}=", " is not allowed"):
                method.build([{"params": fresh(), option: value}])


@each_method
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize(
    "lr", [torch.ones(2), torch.ones(0), torch.tensor(1j), torch.tensor(True), torch.ones(1).to_sparse()], ids=str
)
def test_a_tensor_that_a_group_is_given_later_must_be_a_cap(method, steps, lr):
    optimizer = method.build(params := fresh())
    give(params, *random_like(params))
    for _ in range(steps):
        optimizer.step(loss=1.0)
    before, right = snapshot(optimizer), optimizer.param_groups[0]["lr"]
    optimizer.param_groups[0]["lr"] = lr
    with refused(ValueError, f"{method.cls.__name__}: lr=", "must be "):
        optimizer.step(loss=1.0)
    optimizer.param_groups[0]["lr"] = right
    assert changed(before, snapshot(optimizer)) == set()


@each_method
def test_a_cap_in_another_kind_of_tensor_that_a_group_is_given_later_is_the_number(method):
    ends = []
    for lr in (1.0, torch.tensor(1), torch.tensor([1.0]), torch.tensor([[1]])):
        optimizer = method.build(params := fresh())
        for t in range(3):
            give(params, *random_like(params, seed=t))
            optimizer.step(loss=1.0)
            optimizer.param_groups[0]["lr"] = lr
        ends.append([p.detach().clone() for p in params])
    for end in ends[1:]:
        for ours, first in zip(end, ends[0], strict=True):
            torch.testing.assert_close(ours, first, rtol=1e-6, atol=1e-7)
