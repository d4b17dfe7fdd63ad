"""Constraint sets that do not exist or do not fit the parameters: one sentence that says what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import polyak
from catalogue import each_method
from observe import refused

NAN, INF = math.nan, math.inf


CONSTRAINTS: dict[str, tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = {
    **{
        f"{cls.__name__}({value!r})": (
            lambda cls=cls, value=value: cls(value),
            ValueError,
            (cls.__name__, f"{value!r} is not allowed, it must be a finite number > 0"),
        )
        for cls in (polyak.L2Ball, polyak.L1Ball, polyak.LInfBall, polyak.Simplex)
        for value in (0, -1.0, NAN, INF, "1", None, True)
    },
    **{
        f"Box({low}, {high})": (
            lambda low=low, high=high: polyak.Box(low, high),
            ValueError,
            (f"Box({low!r}, {high!r}) is not allowed", "below high"),
        )
        for low, high in ((1.0, 1.0), (2.0, 1.0), (NAN, 1.0), (0.0, NAN), (INF, INF), ("a", 1.0), (None, 1.0))
    },
    "normal 0": (
        lambda: polyak.Halfspace(torch.zeros(2), 1.0),
        ValueError,
        ("Halfspace", "finite floating-point"),
    ),
    "normal 2-dim": (
        lambda: polyak.Halfspace(torch.ones(2, 2), 1.0),
        ValueError,
        ("Halfspace", "finite floating-point"),
    ),
    "normal NaN": (
        lambda: polyak.Halfspace(torch.tensor([1.0, NAN]), 1.0),
        ValueError,
        ("Halfspace", "finite floating-point"),
    ),
    "normal of integers": (
        lambda: polyak.Halfspace(torch.tensor([1, 1]), 1.0),
        ValueError,
        ("Halfspace", "torch.int64", "floating-point"),
    ),
    "normal list": (lambda: polyak.Halfspace([1.0, 1.0], 1.0), ValueError, ("Halfspace", "finite floating-point")),
    "offset NaN": (lambda: polyak.Halfspace(torch.ones(2), NAN), ValueError, ("Halfspace", "offset=nan", "finite")),
    "offset inf": (lambda: polyak.Halfspace(torch.ones(2), INF), ValueError, ("Halfspace", "offset=inf", "finite")),
    "matrix 1-dim": (
        lambda: polyak.Affine(torch.ones(2), torch.ones(2)),
        ValueError,
        ("Affine", "(m, n)", "(2,)"),
    ),
    "offset length": (lambda: polyak.Affine(torch.ones(1, 2), torch.ones(2)), ValueError, ("Affine", "(1, 2)", "(2,)")),
    "contradiction": (
        lambda: polyak.Affine(torch.ones(2, 2), torch.tensor([1.0, 2.0])),
        ValueError,
        ("Affine", "no point satisfies all", "remove"),
    ),
    "matrix NaN": (lambda: polyak.Affine(torch.full((1, 2), NAN), torch.ones(1)), ValueError, ("Affine", "finite")),
    "matrix list": (lambda: polyak.Affine([[1.0, 1.0]], [1.0]), ValueError, ("Affine", "[[1.0, 1.0]]")),
}


@pytest.mark.parametrize(("make", "error", "parts"), CONSTRAINTS.values(), ids=CONSTRAINTS.keys())
def test_a_set_that_does_not_exist_is_refused(make, error, parts):
    with refused(error, *parts):
        make()


@pytest.mark.parametrize(
    "constraint", [polyak.Halfspace(torch.ones(3), 1.0), polyak.Affine(torch.ones(1, 3), torch.ones(1))], ids=repr
)
def test_a_set_for_another_number_of_parameters_is_refused(constraint):
    with refused(
        ValueError,
        type(constraint).__name__,
        "was made for 3 coordinates, but the parameters that train have 2",
        "one entry for each",
    ):
        polyak.ALIG([nn.Parameter(torch.ones(2))], constraint=constraint)


@pytest.mark.parametrize(
    "constraint",
    [
        *[polyak.L1Ball(1.0), polyak.LInfBall(1.0), polyak.Simplex(), polyak.Box(0.0, 1.0), polyak.NonNegative()],
        *[polyak.Halfspace(torch.ones(2), 1.0), polyak.Affine(torch.ones(1, 2), torch.ones(1))],
    ],
    ids=lambda constraint: type(constraint).__name__,
)
def test_a_set_of_real_vectors_refuses_complex_parameters(constraint):
    with refused(TypeError, type(constraint).__name__, "one is complex: use L2Ball, or torch.view_as_real"):
        polyak.ALIG([nn.Parameter(torch.ones(2, dtype=torch.complex64))], constraint=constraint)


@each_method
@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize(
    ("constraint", "error", "words"),
    [
        ("ball", TypeError, "constraint is a str, but must be an object such as polyak.L2Ball(100.0), or None."),
        (polyak.Box, TypeError, "constraint is the class Box, but must be an object"),
        (polyak.L2Ball(relative=2.0), ValueError, "L2Ball(relative=2.0) gets its radius at construction only"),
    ],
    ids=str,
)
def test_what_a_group_is_given_later_is_refused_before_anything_moves(method, steps, constraint, error, words):
    p = nn.Parameter(torch.ones(2))
    optimizer = method.build([p], lr=0.1)
    p.grad = torch.ones(2)
    for _ in range(steps):
        optimizer.step(loss=1.0)
    before, optimizer.param_groups[0]["constraint"] = p.detach().clone(), constraint
    with refused(error, method.name, words):
        optimizer.step(loss=1.0)
    assert torch.equal(p, before)
    optimizer.param_groups[0]["constraint"] = polyak.L2Ball(0.5)
    optimizer.step(loss=1.0)
    assert float(p.detach().norm()) < 0.51


@pytest.mark.parametrize(
    "constraint", [polyak.Halfspace(torch.ones(4), 1.0), polyak.Affine(torch.ones(1, 4), torch.ones(1))], ids=repr
)
def test_a_set_that_no_longer_fits_is_refused_before_anything_moves(constraint):
    w, v = (nn.Parameter(torch.tensor(values)) for values in ([1.0, 2.0], [3.0, 4.0]))
    optimizer = polyak.ALIG([w, v], lr=0.1, constraint=constraint)
    for p in (w, v):
        p.grad = torch.tensor([1.0, 2.0])
    optimizer.step(loss=1.0)
    v.requires_grad_(False).grad, before = None, w.detach().clone()
    for _ in range(2):
        with refused(ValueError, type(constraint).__name__, "made for 4 coordinates", "have 2"):
            optimizer.step(loss=1.0)
    assert torch.equal(w, before)
    v.requires_grad_(True)
    optimizer.step(loss=1.0)
    assert not torch.equal(w, before)


@pytest.mark.parametrize(
    "constraint",
    [polyak.L1Ball(1.0), polyak.LInfBall(1.0), polyak.Simplex(), polyak.Box(0.0, 1.0), polyak.NonNegative()],
    ids=repr,
)
def test_a_set_of_real_vectors_that_a_group_is_given_later_moves_nothing(constraint):
    w = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer = polyak.ALIG([w], lr=0.1)
    w.grad, optimizer.param_groups[0]["constraint"] = torch.ones_like(w), constraint
    with refused(TypeError, type(constraint).__name__, "one is complex"):
        optimizer.step(loss=1.0)
    assert torch.equal(w, torch.ones_like(w))


@each_method
@pytest.mark.parametrize("make", [lambda: polyak.L2Ball(1.0), lambda: polyak.Box(-0.5, 0.5)], ids=["L2Ball", "Box"])
@pytest.mark.filterwarnings("ignore:.*rescales the parameters")
def test_plain_tensors_are_constrained_as_parameters_are(method, make):
    """Gradients of torch.func belong to tensors that require none."""
    ends = []
    for prepare in (nn.Parameter, torch.clone):
        w = prepare(torch.tensor([3.0, 4.0]))
        optimizer = method.build([w], "nesterov", lr=0.1, constraint=make())
        assert float(w.detach().norm()) <= 1.0 + 1e-6
        for t in range(3):
            w.grad = torch.tensor([1.0, -2.0 - t])
            optimizer.step(loss=1.0)
        ends.append(w.detach().clone())
    assert torch.equal(*ends)


def test_a_set_of_ones_own_needs_no_more_than_a_projection():
    class Origin(polyak.constraints.Constraint):
        def project_(self, params):
            for p in params:
                p.zero_()

    optimizer = polyak.ALIG([w := nn.Parameter(torch.ones(2, dtype=torch.complex64))], constraint=Origin())
    w.grad = torch.ones_like(w)
    optimizer.step(loss=1.0)
    assert not w.any()


@each_method
@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("make", [lambda: polyak.L2Ball(9.0), lambda: polyak.Box(-9, 9)], ids=["L2Ball", "Box"])
def test_a_frozen_parameter_that_moves_out_of_its_set_is_warned_about_once(method, later, make):
    w, v = (nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(2))
    optimizer = method.build([w, v], lr=0.1, constraint=make())
    v.requires_grad_(later)
    for p in (w, v):
        p.grad = torch.ones(2)
    if later:
        optimizer.step(loss=1.0)
        v.requires_grad_(False)
    name = type(make()).__name__
    with pytest.warns(UserWarning, match=f"requires_grad=False has a gradient.*{name} does not hold for it"):
        optimizer.step(loss=1.0)
    optimizer.step(loss=1.0)
    v.grad = None
    optimizer.step(loss=1.0)
