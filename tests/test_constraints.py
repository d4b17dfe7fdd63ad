"""Every constraint set: the projection lies inside, is idempotent, and is the nearest point of the set.

Nearest is checked by the variational inequality: Πx is the nearest point of the convex set Ω to x exactly if
⟨x − Πx, y − Πx⟩ ≤ 0 for every y in Ω. For bounded sets the y that makes the left side largest is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray
from torch import nn

import polyak
from catalogue import each_method
from observe import give

Rng = np.random.Generator


@dataclass(frozen=True)
class Instance:
    """One set in n dimensions: how far a point is outside, and feasible points, written without the library."""

    constraint: polyak.Constraint
    outside: Callable[[ndarray], float]
    feasible: Callable[[ndarray, Rng], ndarray]  # as far along the given direction as the set allows, if it is bounded


def l2_ball(n: int, rng: Rng) -> Instance:
    radius = float(rng.uniform(0.1, 20))
    return Instance(
        polyak.L2Ball(radius),
        lambda x: float(np.linalg.norm(x) - radius),
        lambda d, rng: radius * d / max(float(np.linalg.norm(d)), 1e-300),
    )


def l1_ball(n: int, rng: Rng) -> Instance:
    radius = float(rng.uniform(0.1, 20))
    return Instance(
        polyak.L1Ball(radius),
        lambda x: float(np.abs(x).sum() - radius),
        lambda d, rng: radius * np.sign(d) * (np.arange(n) == np.abs(d).argmax()),
    )


def linf_ball(n: int, rng: Rng) -> Instance:
    radius = float(rng.uniform(0.1, 20))
    return Instance(
        polyak.LInfBall(radius), lambda x: float(np.abs(x).max() - radius), lambda d, rng: radius * np.sign(d)
    )


def box(n: int, rng: Rng) -> Instance:
    low, high = sorted(rng.uniform(-20, 20, size=2).tolist())
    return Instance(
        polyak.Box(low, high),
        lambda x: float(max(low - x.min(), x.max() - high)),
        lambda d, rng: np.where(d > 0, high, low),
    )


def half_open_box(n: int, rng: Rng) -> Instance:
    low = float(rng.uniform(-5, 5))
    return Instance(
        polyak.Box(low, np.inf), lambda x: float(low - x.min()), lambda d, rng: low + rng.exponential(size=n) * (d > 0)
    )


def non_negative(n: int, rng: Rng) -> Instance:
    return Instance(polyak.NonNegative(), lambda x: float(-x.min()), lambda d, rng: rng.exponential(size=n) * (d > 0))


def simplex(n: int, rng: Rng) -> Instance:
    total = float(rng.uniform(0.1, 20))
    return Instance(
        polyak.Simplex(total),
        lambda x: float(max(abs(x.sum() - total), -x.min())),
        lambda d, rng: total * (np.arange(n) == d.argmax()),
    )


def half_space(n: int, rng: Rng) -> Instance:
    a, b = rng.normal(size=n) + 0.01, float(rng.normal())
    return Instance(
        polyak.Halfspace(torch.tensor(a), b),
        lambda x: float(a @ x - b) / float(np.linalg.norm(a)),
        lambda d, rng: (y := rng.normal(size=n) * 10) - max(float(a @ y) - b, 0.0) * a / (a @ a),
    )


def affine(n: int, rng: Rng) -> Instance:
    A, solution = rng.normal(size=(max(1, n // 3), n)), rng.normal(size=n)
    b = A @ solution
    return Instance(
        polyak.Affine(torch.tensor(A), torch.tensor(b)),
        lambda x: float(np.abs(A @ x - b).max() / np.linalg.norm(A)),
        lambda d, rng: solution + (z := rng.normal(size=n) * 10) - np.linalg.lstsq(A, A @ z, rcond=None)[0],
    )


def redundant_affine(n: int, rng: Rng) -> Instance:
    a = rng.normal(size=n) + 0.01
    return Instance(
        polyak.Affine(torch.tensor(np.stack([a, 2 * a])), torch.tensor([1.0, 2.0], dtype=torch.float64)),
        lambda x: abs(float(a @ x) - 1) / float(np.linalg.norm(a)),
        lambda d, rng: (y := rng.normal(size=n)) - (float(a @ y) - 1) * a / (a @ a),
    )


SETS = [l2_ball, l1_ball, linf_ball, box, half_open_box, non_negative, simplex, half_space, affine, redundant_affine]
each_set = pytest.mark.parametrize("make", SETS, ids=lambda make: make.__name__)

points = st.lists(
    st.floats(-1e6, 1e6).map(lambda value: value if abs(value) > 1e-9 else 0.0) | st.sampled_from([0.0, 1.0, -1.0]),
    min_size=1,
    max_size=12,
)
seeds = st.integers(0, 2**32 - 1)


def project(constraint: polyak.Constraint, x: ndarray, pieces: int = 1) -> ndarray:
    """Project a copy that is cut into several tensors of different shapes."""
    tensors = [part.clone() for part in torch.tensor(x).tensor_split(pieces)]
    shaped = [part.reshape(1, -1) if i % 2 else part for i, part in enumerate(tensors)]
    constraint.project_(shaped)
    return torch.cat([part.reshape(-1) for part in shaped]).numpy()


@each_set
@given(point=points, seed=seeds)
def test_the_projection_is_inside_and_idempotent(make, point, seed):
    rng, x = np.random.default_rng(seed), np.array(point)
    instance, tolerance = make(len(x), rng), 1e-12 * (1 + np.abs(x).max())
    inside = project(instance.constraint, x)
    assert instance.outside(inside) <= tolerance
    np.testing.assert_allclose(project(instance.constraint, inside), inside, rtol=1e-12, atol=tolerance)


@each_set
@given(point=points, seed=seeds)
def test_a_feasible_point_stays_where_it_is(make, point, seed):
    rng, x = np.random.default_rng(seed), np.array(point)
    instance = make(len(x), rng)
    y = instance.feasible(x, rng)
    np.testing.assert_allclose(project(instance.constraint, y), y, rtol=1e-9, atol=1e-9)


@each_set
@given(point=points, seed=seeds)
def test_the_projection_is_the_nearest_point(make, point, seed):
    rng, x = np.random.default_rng(seed), np.array(point)
    instance = make(len(x), rng)
    nearest = project(instance.constraint, x)
    residual = x - nearest
    scale = (1 + np.abs(x).max()) * (1 + np.linalg.norm(residual))
    directions = [residual, *rng.normal(size=(4, len(x)))]
    for y in (instance.feasible(direction, rng) for direction in directions):
        assert residual @ (y - nearest) <= 1e-10 * scale
        assert np.linalg.norm(x - y) >= np.linalg.norm(residual) - 1e-10 * scale


@each_set
@given(point=points, seed=seeds)
def test_projections_do_not_drive_points_apart(make, point, seed):
    rng, x = np.random.default_rng(seed), np.array(point)
    instance, y = make(len(x), rng), x + rng.normal(size=len(x))
    distance = np.linalg.norm(project(instance.constraint, x) - project(instance.constraint, y))
    assert distance <= np.linalg.norm(x - y) + 1e-9 * (1 + np.abs(x).max())


@each_set
@settings(max_examples=25)
@given(point=points, seed=seeds, pieces=st.integers(2, 4))
def test_several_tensors_are_one_vector(make, point, seed, pieces):
    """More pieces than coordinates leave empty tensors among them."""
    x = np.array(point)
    constraint = make(len(x), np.random.default_rng(seed)).constraint
    expected = project(constraint, x)
    np.testing.assert_allclose(project(constraint, x, pieces), expected, rtol=1e-12, atol=1e-12 * (1 + np.abs(x).max()))


@each_set
@settings(max_examples=25)
@given(point=points, seed=seeds)
def test_a_set_is_coordinatewise_if_every_coordinate_can_be_projected_by_itself(make, point, seed):
    x = np.array(point)
    constraint = make(len(x), np.random.default_rng(seed)).constraint
    assert constraint.coordinatewise == (make in (linf_ball, box, half_open_box, non_negative))
    if constraint.coordinatewise:
        alone = np.concatenate([project(constraint, x[i : i + 1]) for i in range(len(x))])
        np.testing.assert_array_equal(alone, project(constraint, x))


@each_set
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@settings(max_examples=15)
@given(point=st.lists(st.floats(-2e4, 2e4, width=16), min_size=1, max_size=8), seed=seeds)
def test_narrow_parameters_are_projected_up_to_the_rounding_of_the_result(make, dtype, point, seed):
    """What is large before the projection must not blur what is small after it."""
    instance = make(len(point), np.random.default_rng(seed))
    narrow = torch.tensor(point).to(dtype)
    expected = project(instance.constraint, narrow.double().numpy())
    instance.constraint.project_([narrow])
    found = narrow.double().numpy()
    tolerance = 4 * torch.finfo(dtype).eps * (1 + np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
    assert instance.outside(found) <= len(point) * tolerance


@each_method
@each_set
def test_a_step_ends_inside_one_groups_set(method, make):
    rng = np.random.default_rng(0)
    params = [nn.Parameter(torch.tensor(3 * rng.normal(size=shape))) for shape in ((4, 2), (3,), (5,))]
    instance = make(11, rng)
    groups = [{"params": params[:2], "constraint": instance.constraint}, {"params": params[2:]}]
    optimizer, free = method.build(groups, "nesterov", lr=5.0), params[2].detach().clone()
    for _ in range(3):
        give(params, *(torch.tensor(rng.normal(size=p.shape)) for p in params))
        optimizer.step(loss=100.0)
        x = torch.cat([p.detach().reshape(-1) for p in params[:2]]).numpy()
        assert instance.outside(x) <= 1e-10
    assert not torch.equal(params[2], free)


# Beyond the ordinary


BOUNDED = [polyak.L2Ball(1.0), polyak.L1Ball(1.0), polyak.LInfBall(1.0), polyak.Box(-1.0, 1.0), polyak.Simplex()]
each_bounded = pytest.mark.parametrize("constraint", BOUNDED, ids=repr)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@each_bounded
@each_dtype
@pytest.mark.parametrize("size", [1e6, 1e12])
def test_a_point_far_away_has_the_nearest_point_of_a_closer_one(constraint, dtype, size):
    x, closer = (torch.tensor([scale, -scale, 0.0], dtype=dtype) for scale in (size, 1e3))
    constraint.project_([x])
    constraint.project_([closer])
    torch.testing.assert_close(x, closer, rtol=1e-5, atol=1e-5)


@each_bounded
@each_dtype
@pytest.mark.parametrize("size", [1e17, 1e20, 1e30])
def test_even_a_point_extremely_far_away_is_brought_inside(constraint, dtype, size):
    x = torch.tensor([size, -size, 0.0], dtype=dtype)
    constraint.project_([x])
    inside = x.clone()
    constraint.project_([inside])
    assert float(x.abs().max()) <= 1.0
    torch.testing.assert_close(x, inside, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("constraint", [*BOUNDED, polyak.NonNegative()], ids=repr)
def test_nothing_to_project_is_no_error(constraint):
    constraint.project_([])
    constraint.project_([torch.zeros(0)])


def test_complex_vectors_have_a_norm_too():
    z = torch.tensor([3j, 4.0 + 0j])
    polyak.L2Ball(1.0).project_([z])
    torch.testing.assert_close(z, torch.tensor([0.6j, 0.8 + 0j]))


@pytest.mark.parametrize("cls", [polyak.L2Ball, polyak.L1Ball, polyak.LInfBall, polyak.Simplex])
def test_sets_with_the_same_size_are_equal_and_print_as_they_are_written(cls):
    assert cls(2.0) == cls(2.0) != cls(3.0)
    assert repr(cls(2.0)).startswith(f"{cls.__name__}(")
    with pytest.raises(AttributeError):
        cls(2.0).radius = 3.0
