"""Methods that average their iterates and store no z: gradients may be missing, and options may change.

The transcriptions store x, y and z of every parameter. One that has no gradient keeps x and z.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import polyak
from catalogue import BACKENDS, METHODS, each_backend
from observe import SMALL_BALLS

pytestmark = pytest.mark.filterwarnings(SMALL_BALLS)

STEPS = 40
FREE = ("ScheduleFreeSPS", "ScheduleFreeAdamSPS", "ScheduleFreePlus")
NAMES = ("IAM", "IAMAdam", "SafeSPS", *FREE)
each_name = pytest.mark.parametrize("name", NAMES)
A = np.random.default_rng(0).normal(size=(2, 6, 4)) / 3  # two parameters of four numbers, in one residual of six
B = np.random.default_rng(1).normal(size=6)


def loss_of(y: list[np.ndarray]) -> tuple[float, list[np.ndarray]]:
    residual = A[0] @ y[0] + A[1] @ y[1] - B
    return residual @ residual + 0.1, [2 * a.T @ residual for a in A]


def transcribed(name: str, momenta: list, present: list[tuple[bool, bool]], **options) -> Iterator[list[np.ndarray]]:
    """Yield the parameters after every step, for schedule-free methods x and y."""
    x, y, z, v, m = ([np.full(4, 1.0) * s for s in (1, -1)] if i < 3 else [np.zeros(4)] * 2 for i in range(5))
    total, top, last = 0.0, 1e-8, momenta[0]
    adam, plus = "Adam" in name, name == "ScheduleFreePlus"
    for k, (β, here) in enumerate(zip(momenta, present, strict=True)):
        t, now, points = k + 1, [i for i in range(2) if here[i]], y if name in FREE else x
        f, g = loss_of(points)
        ahead = sum(g[i] @ (z[i] - x[i]) for i in now) * (β if plus else last if name in FREE else 1.0)
        D = [1.0, 1.0]
        for i in now:
            if adam or plus:
                β2 = 0.95 if plus else 0.999
                v[i] = β2 * v[i] + (1 - β2) * g[i] ** 2
                D[i] = np.sqrt(v[i] / (1 - β2**t)) + 1e-8
            m[i] = 0.9 * m[i] + 0.1 * g[i]
        slope = sum(g[i] @ (g[i] / D[i]) for i in now)
        slope = sum(np.abs(g[i]).sum() for i in now) * math.sqrt(math.pi / 2) if plus else slope
        slope = max(slope, 1.0) if name == "SafeSPS" else slope
        γ = max(f + ahead, 0.0) / slope
        γ = options["lr"] * γ if plus else min(γ, options["lr"])
        top = max(top, γ)
        weight = top**2 if k >= options.get("averaging_warmup", 0) else 0.0
        total += weight
        c = 1 / (t + 1) if not plus else weight / total if total else 1.0
        if name not in FREE:
            c = 1 / (1 + t) if β is None else 1 - β
        for i in now:
            z[i] = z[i] - γ * (m[i] / (1 - 0.9**t) if plus else g[i]) / D[i]
            x[i] = (1 - c) * x[i] + c * z[i]
        if "radius" in options:  # the ball holds for z, that of parameters without a gradient, too
            factor = min(1.0, options["radius"] / np.linalg.norm(z))
            x, z = [x[i] + c * (factor - 1) * z[i] for i in range(2)], [factor * z[i] for i in range(2)]
        y = [β * x[i] + (1 - β) * z[i] if name in FREE else x[i] for i in range(2)]
        last = β
        yield [*x, *y] if name in FREE else [*x]


def trained(name: str, momenta: list, present: list[tuple[bool, bool]], **options) -> Iterator[list[np.ndarray]]:
    """Yield the same of the optimizer, which evaluates after every step."""
    params = [torch.nn.Parameter(torch.full((4,), float(s), dtype=torch.float64)) for s in (1, -1)]
    if "radius" in options:
        options["constraint"] = polyak.L2Ball(options.pop("radius"))
    optimizer = getattr(polyak, name)(params, momentum=momenta[0], **options)
    for t, (momentum, here) in enumerate(zip(momenta, present, strict=True)):
        optimizer.param_groups[0]["momentum"] = momentum
        loss, grads = loss_of([p.detach().numpy() for p in params])
        for p, grad, has in zip(params, grads, here, strict=True):
            p.grad = torch.from_numpy(grad.copy()) if has else None
        optimizer.step(loss=loss)
        if name not in FREE:
            yield [p.detach().numpy().copy() for p in params]
            continue
        y = [p.detach().numpy().copy() for p in params]
        optimizer.param_groups[0]["momentum"] = 0.3  # nothing depends on an option that no step has taken
        optimizer.eval()
        x = [p.detach().numpy().copy() for p in params]
        if t % 7 == 3:  # a state in the mode of evaluation goes on exactly
            state, optimizer = copy.deepcopy(optimizer.state_dict()), getattr(polyak, name)(params, **options)
            optimizer.load_state_dict(state)
        optimizer.train()
        yield [*x, *y]


def compare(name: str, momenta: list, present: list[tuple[bool, bool]], **options) -> None:
    backend = {key: options.pop(key) for key in ("foreach", "fused") if key in options}
    given = {"lr": 0.2, **options}
    ours, theirs = (
        run(name, momenta, present, **given, **more) for run, more in ((trained, backend), (transcribed, {}))
    )
    for t, (mine, paper) in enumerate(zip(ours, theirs, strict=True)):
        for a, b in zip(mine, paper, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9, err_msg=f"step {t}")


def both(steps: int = STEPS) -> list[tuple[bool, bool]]:
    return [(True, True)] * steps


ABSENT = [(True, not (3 <= t < 20 or t in (25, 26, 31))) for t in range(STEPS - 8)] + [(False, True)] * 8
CYCLE = [0.95 - 0.3 * abs(math.sin(t / 5)) for t in range(STEPS)]
SWITCHED = [0.5] * 5 + [0.0] * 5 + [0.5] * 5 + [0.9] * 5 + [0.0] + [0.7] * (STEPS - 21)


@each_name
@each_backend
def test_a_parameter_without_a_gradient_keeps_x_and_z(name, backend):
    compare(name, [0.9] * STEPS, ABSENT, **backend)


@pytest.mark.parametrize("name", ["IAM", "IAMAdam"])
@each_backend
def test_it_keeps_them_where_the_average_is_of_all_iterates(name, backend):
    compare(name, [None] * STEPS, ABSENT, **backend)


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
def test_it_keeps_them_through_a_warmup_of_the_average(backend):
    compare("ScheduleFreePlus", [0.9] * STEPS, ABSENT, averaging_warmup=8, **backend)


@each_name
@each_backend
@pytest.mark.parametrize("momenta", [CYCLE, SWITCHED], ids=["cycle", "switched"])
def test_a_momentum_that_changes_is_that_of_the_steps_after_it(name, backend, momenta):
    compare(name, momenta, both(), **backend)


@each_name
@each_backend
def test_both_at_once(name, backend):
    compare(name, CYCLE, ABSENT, **backend)


@pytest.mark.parametrize("name", FREE)
@pytest.mark.usefixtures("arithmetic")
@each_backend
def test_a_ball_holds_for_the_z_of_all(name, backend):
    compare(name, [0.9] * STEPS, ABSENT, radius=3.0, **backend)


@each_name
@pytest.mark.usefixtures("device_arithmetic")
def test_both_at_once_on_a_device(name):
    compare(name, CYCLE, ABSENT)


@pytest.mark.parametrize("name", ["IAM", "IAMAdam"])
@each_backend
def test_the_average_of_all_iterates_may_be_switched_on_and_off(name, backend):
    compare(name, [0.5] * 8 + [None] * 8 + [0.9] * (STEPS - 16), both(), **backend)


@pytest.mark.parametrize(
    ("name", "compiled"), [*((name, False) for name in NAMES), ("IAM", True), ("ScheduleFreeSPS", True)]
)
def test_a_bad_batch_at_the_change_leaves_x_and_z_as_they_were(name, compiled):
    ends = []
    for bad in (False, True):
        torch.compiler.reset()
        p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
        optimizer = getattr(polyak, name)([p], momentum=0.9)
        step = torch.compile(optimizer.step, backend="eager", fullgraph=True) if compiled else optimizer.step
        for t in range(4):
            optimizer.param_groups[0]["momentum"] = 0.9 if t < 2 else 0.6
            if t == 2 and bad:
                p.grad = torch.ones_like(p)
                step(loss=torch.tensor(math.nan, dtype=torch.float64))
            p.grad = 2 * p.detach()
            step(loss=p.detach().square().sum())
        if name in FREE:
            optimizer.eval()
        ends.append(p.detach().numpy().copy())
    np.testing.assert_allclose(*ends, rtol=1e-12)


@pytest.mark.parametrize("method", [method for method in METHODS if method.name in NAMES], ids=lambda m: m.name)
@pytest.mark.parametrize("trial", [0, 1])
def test_a_state_without_the_last_momentum_goes_on_from_the_options(method, trial):
    ends = []
    for older in (False, True):
        p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
        optimizer = method.build([p], "averaged", **method.trials[trial])
        for t in range(6):
            if t == 3 and older:
                state, optimizer = optimizer.state_dict(), method.build([p], "averaged", **method.trials[trial])
                del state["param_groups"][0]["last_momentum"]
                optimizer.load_state_dict(state)
            p.grad = 2 * p.detach()
            optimizer.step(loss=p.detach().square().sum())
        ends.append(p.detach().numpy().copy())
    np.testing.assert_allclose(*ends, rtol=1e-14)


@each_name
def test_a_state_holds_the_last_momentum_as_a_number(name):
    """On a device it may be a tensor; torch.distributed.checkpoint wants what a new optimizer's state has."""
    torch.compiler.reset()
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    optimizer = getattr(polyak, name)([p], lr=0.1, momentum=0.9)
    step = torch.compile(optimizer.step, backend="eager")
    for momentum in (0.9, 0.9, 0.6, 0.7):
        optimizer.param_groups[0]["momentum"] = momentum
        p.grad = 2 * p.detach()
        step(loss=p.detach().square().sum())
    assert isinstance(optimizer.param_groups[0]["last_momentum"], torch.Tensor)
    state = optimizer.state_dict()
    assert type(state["param_groups"][0]["last_momentum"]) is float
    resumed = getattr(polyak, name)([q := torch.nn.Parameter(p.detach().clone())], lr=0.1)
    resumed.load_state_dict(state)
    for each in (optimizer, resumed):
        param = each.param_groups[0]["params"][0]
        param.grad = torch.tensor([0.5, 1.0, -1.0])
        each.step(loss=1.0)
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
