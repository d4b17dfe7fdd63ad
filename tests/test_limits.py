"""Where Polyak steps do not converge, so that nobody promises it: every test here shows a failure that must happen."""

import math

import numpy as np
import pytest
import torch

import polyak


def _descend(optimizer, loss, **given):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step(loss=loss, **given)


def _scalar(value):
    return torch.nn.Parameter(torch.tensor(value, dtype=torch.float64))


# Two parabolas without a common minimiser, each with its own minimum
PARABOLAS = ((lambda x: x**2 + 2 * x + 5, 4.0), (lambda x: 2 * x**2 - 4 * x + 10, 8.0))


def _mean_objective(order):
    """Return the mean of F over the points SPS visits, with the exact minimum of every mini-batch."""
    x, values = _scalar(1.0), []
    optimizer = polyak.SPS([x], c=0.5, eps=0.0)
    for i in order:
        f, lowest = PARABOLAS[i]
        _descend(optimizer, f(x), lower_bound=lowest)
        values.append(sum(parabola(x.item()) for parabola, _ in PARABOLAS) / 2)
    return np.mean(values)


def test_sps_bounces_between_minimisers_that_are_not_common():
    lowest = 22 / 3
    assert _mean_objective([0, 1] * 50) == pytest.approx(9, abs=1e-12)
    assert _mean_objective(np.random.default_rng(0).integers(2, size=500)) == pytest.approx(9, abs=0.15)
    assert _mean_objective([0, 1] * 50) > lowest + 1.6


def _tail(optimizer_of, x, a, steps=200):
    """Minimise ½ax² and return the largest distance from 0 in the second half."""
    optimizer, points = optimizer_of([x]), []
    for _ in range(steps):
        _descend(optimizer, a * x**2 / 2)
        points.append(x.item())
    return np.abs(points[steps // 2 :]).max()


@pytest.mark.parametrize("start", [-3.0, 0.1, 0.7])
@pytest.mark.parametrize("cap_times_a", [0.5, 1.5, 2.1, 4.0, math.inf])
def test_with_a_loose_bound_the_cap_decides_whether_it_converges(start, cap_times_a):
    a, c = 2.0, 0.3
    tail = _tail(lambda x: polyak.SPS(x, lr=cap_times_a / a, c=1.0, lower_bound=-c), _scalar(start), a)
    assert tail < 1e-8 if cap_times_a < 2 else tail > math.sqrt(2 * c / (3 * a)) / 2


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_with_a_loose_bound_and_no_cap_there_is_a_cycle_of_two_points(sign):
    a, c = 2.0, 0.3
    cycle = sign * math.sqrt(2 * c / (3 * a))
    x = _scalar(cycle)
    optimizer = polyak.SPS([x], c=1.0, eps=0.0, lower_bound=-c)
    for step in range(1, 9):  # the cycle repels, rounding doubles at every step
        _descend(optimizer, a * x**2 / 2)
        assert x.item() == pytest.approx((-1) ** step * cycle, rel=1e-12)


def _soft_labels():
    rng = torch.Generator().manual_seed(0)
    inputs = torch.randn(20, 4, generator=rng, dtype=torch.float64)
    labels = torch.nn.functional.one_hot(torch.arange(20) % 3, 3).double() * 0.7 + 0.1
    return inputs, labels, torch.distributions.Categorical(labels).entropy().mean().item()


def _cross_entropy(w, inputs, labels):
    return torch.nn.functional.cross_entropy(inputs @ w, labels)


def test_below_an_entropy_floor_a_capped_step_is_sgd():
    """The ratio cannot go to 0 when the loss cannot, so that the cap always binds."""
    inputs, labels, floor = _soft_labels()
    w, w_sgd = (torch.nn.Parameter(torch.zeros(4, 3, dtype=torch.float64)) for _ in range(2))
    optimizer, sgd = polyak.ALIG([w], lr=0.5), torch.optim.SGD([w_sgd], lr=0.5)
    for _ in range(200):
        _descend(optimizer, loss := _cross_entropy(w, inputs, labels))
        assert loss > floor > 0.6
        assert optimizer.last_step().capped
        sgd.zero_grad()
        _cross_entropy(w_sgd, inputs, labels).backward()
        sgd.step()
    assert torch.equal(w, w_sgd)
