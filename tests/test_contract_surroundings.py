"""What is switched on around a step has no effect on it: default devices, types, autocast and modes of autograd."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import nn

import polyak
from catalogue import each_backend, each_form, each_method
from observe import SMALL_BALLS, changed, give, random_like, snapshot

pytestmark = pytest.mark.filterwarnings(SMALL_BALLS)

SHAPES = [(4, 3), (3,), (2, 2)]


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Give new tensors another type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "another default device": lambda: torch.device("meta"),
    "another default dtype": lambda: default_dtype(torch.float64),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference mode": torch.inference_mode,
}
each_surrounding = pytest.mark.parametrize("surrounding", SURROUNDINGS.values(), ids=SURROUNDINGS.keys())
CONSTRAINTS: dict[str, Callable[[], Any]] = {
    "L2Ball": lambda: polyak.L2Ball(1.0),
    "relative L2Ball": lambda: polyak.L2Ball(relative=0.7),
    "L1Ball": lambda: polyak.L1Ball(1.0),
    "LInfBall": lambda: polyak.LInfBall(0.3),
    "Box": lambda: polyak.Box(-0.2, 0.3),
    "NonNegative": polyak.NonNegative,
    "Simplex": polyak.Simplex,
    "Halfspace": lambda: polyak.Halfspace(torch.ones(19), 0.5),
    "Affine": lambda: polyak.Affine(torch.ones(1, 19), torch.ones(1)),
}


def ends(build: Callable[..., Any], surrounding: Callable[[], AbstractContextManager[Any]]) -> list[Any]:
    """Return what steps leave that are made without and with something around them."""
    found = []
    for around in (contextlib.nullcontext, surrounding):
        params = [nn.Parameter(value) for value in random_like([torch.empty(shape) for shape in SHAPES], seed=7)]
        optimizer = build([{"params": params[:1], "lr": 0.5}, {"params": params[1:]}])
        for t in range(5):
            give(params, *random_like(params, seed=t))
            with around():
                optimizer.step(loss=math.nan if t == 3 else 1.0 / (1 + t), lower_bound=-0.25)
        found.append(snapshot(optimizer))
    return found


@each_form
@each_backend
@each_surrounding
def test_a_step_does_not_depend_on_what_is_around_it(method, form, backend, surrounding):
    plain, surrounded = ends(lambda groups: method.build(groups, form, **backend), surrounding)
    assert changed(plain, surrounded) == set()


@pytest.mark.parametrize("make", CONSTRAINTS.values(), ids=CONSTRAINTS.keys())
@each_surrounding
def test_a_projection_does_not_depend_on_what_is_around_it(make, surrounding):
    plain, surrounded = ends(lambda groups: polyak.ALIG(groups, lr=0.5, momentum=0.9, constraint=make()), surrounding)
    assert changed(plain, surrounded) == set()


@each_method
@each_surrounding
def test_an_optimizer_may_be_made_and_loaded_anywhere(method, surrounding):
    params = [nn.Parameter(value) for value in random_like([torch.empty(shape) for shape in SHAPES], seed=7)]
    saved = method.build(params)
    give(params, *random_like(params))
    saved.step(loss=1.0)
    with surrounding():
        made = method.build(params)
        made.load_state_dict(saved.state_dict())
    assert changed(snapshot(saved), snapshot(made)) == set()
