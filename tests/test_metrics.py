"""`polyak.metrics`: plain numbers of the last step, read at once."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import polyak
from catalogue import each_backend, each_form, each_method
from observe import SMALL_BALLS, give, random_like
from problem import Problem

pytestmark = pytest.mark.filterwarnings(SMALL_BALLS)

NAMES = ["step_size", "cap", "capped", "ratio", "skipped", "skipped_steps"]


@each_method
@each_backend
def test_the_gradient_of_a_batch_whose_loss_is_not_finite_is_not_said_to_be_zero(method, backend):
    params = [nn.Parameter(torch.ones(3))]
    optimizer = method.build(params, **backend)
    give(params, torch.ones(3))
    optimizer.step(loss=math.inf)
    assert polyak.metrics(optimizer)["gradient_norm"] != 0


@each_backend
@each_form
def test_metrics_are_the_numbers_of_the_last_step(method, form, backend):
    problem = Problem.make()
    params = problem.params()
    optimizer = method.build(params, form, **method.trials[1], **backend, constraint=polyak.L2Ball(2.0))
    problem.steps(optimizer, params, 3)
    found, last = polyak.metrics(optimizer), optimizer.last_step()
    assert all(type(value) is float for value in found.values())
    for name in NAMES:
        assert found[name] == float(getattr(last, name)), name
    assert found["step_size"] == float(optimizer.param_groups[0]["step_size"])
    assert found["capped"] == (found["ratio"] > found["cap"])
    points = [p.detach() for p in params]
    if hasattr(optimizer, "eval"):  # a schedule-free method, whose ball measures z = x + (1 − c)v
        optimizer.eval()
        group = optimizer.param_groups[0]
        share = float(group.get("share", 1 / (group["steps"] + 1)))
        points = [p.detach() + (1 - share) * optimizer.state[p]["momentum_buffer"] for p in params]
    norm = torch.cat([point.flatten() for point in points]).norm().item()
    assert found["weight_norm"] == pytest.approx(norm, rel=1e-12)


NORMS = {  # of a gradient, in the first step without an average of earlier ones
    "SignSPS": lambda matrix, vector: torch.cat([matrix.flatten(), vector]).abs().sum(),
    "ScheduleFreePlus": lambda matrix, vector: (
        math.sqrt(math.pi / 2) * torch.cat([matrix.flatten(), vector]).abs().sum()
    ),
    "MuonMoMo": lambda matrix, vector: torch.linalg.svdvals(matrix).sum() + vector.abs().sum(),
}


@each_method
def test_the_gradient_norm_is_a_norm_of_the_gradient(method):
    if method.name in ("MoMoAdam", "IAMAdam", "NGNMD", "ScheduleFreeAdamSPS", "SAMSPS"):
        return  # Adam's norm of the first gradient is the root of ‖g‖₁, and SAM's gradient is that of another point
    params = [nn.Parameter(torch.ones(4, 3, dtype=torch.float64)), nn.Parameter(torch.ones(2, dtype=torch.float64))]
    grads = random_like([p.detach() for p in params], seed=3)
    options = {"momentum": 0.0} if method.name in NORMS and method.name != "ScheduleFreePlus" else {}
    options |= {"polar_steps": 30, "eps": 0.0} if method.name == "MuonMoMo" else {}
    optimizer = method.build(params, **options)
    give(params, *grads)
    optimizer.step(loss=1.0)
    norm = NORMS.get(method.name, lambda *all_of: torch.cat([grad.flatten() for grad in all_of]).norm())(*grads)
    assert polyak.metrics(optimizer)["gradient_norm"] == pytest.approx(float(norm), rel=1e-6)


@pytest.mark.parametrize("radius", [0.5, 100.0], ids=["active", "inactive"])
@pytest.mark.parametrize("relative", [False, True])
def test_the_weight_norm_is_that_after_the_step(radius, relative):
    w = torch.nn.Parameter(torch.tensor([0.3, 0.4], dtype=torch.float64))  # norm 0.5
    ball = polyak.L2Ball(relative=2 * radius) if relative else polyak.L2Ball(radius)
    optimizer = polyak.ALIG([w], lr=10.0, constraint=ball)
    for target in (5.0, 0.1):
        optimizer.zero_grad()
        loss = (w - target).square().sum()
        loss.backward()
        optimizer.step(loss=loss)
        assert polyak.metrics(optimizer)["weight_norm"] == pytest.approx(w.detach().norm().item(), rel=1e-12)


def test_no_norm_is_told_that_no_ball_measured():
    w = torch.nn.Parameter(torch.ones(2))
    optimizer = polyak.ALIG([w], constraint=polyak.L2Ball(3.0))
    w.square().sum().backward()
    optimizer.step(loss=2.0)
    assert "weight_norm" in polyak.metrics(optimizer)
    w.grad.fill_(math.nan)
    optimizer.step(loss=2.0)
    found = polyak.metrics(optimizer)
    assert "weight_norm" not in found
    assert (found["skipped"], found["skipped_steps"], found["step_size"]) == (1.0, 1.0, 0.0)
    optimizer = polyak.ALIG([w], constraint=polyak.LInfBall(3.0))
    w.grad.fill_(1.0)
    optimizer.step(loss=2.0)
    assert list(polyak.metrics(optimizer)) == [*NAMES, "gradient_norm"]


def test_groups_are_told_apart_and_may_differ_in_type():
    x = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    y = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = polyak.SPS([{"params": [x], "lr": 1e-9}, {"params": [y]}])
    loss = x.square().sum() + y.float().square().sum()
    loss.backward()
    optimizer.step(loss=loss)
    found = polyak.metrics(optimizer)
    assert set(found) == {f"{name}/{i}" for name in NAMES for i in range(2)} | {"gradient_norm"}
    assert (found["step_size/0"], found["capped/0"]) == (1e-9, 1.0)
    assert (found["cap/1"], found["capped/1"]) == (math.inf, 0.0)


@each_method
def test_a_wrapper_is_looked_into(method):
    problem = Problem.make()
    params = problem.params()
    optimizer = method.build(params)
    problem.steps(optimizer, params, 1)
    wrapped = SimpleNamespace(optimizer=SimpleNamespace(optimizer=optimizer))
    assert polyak.metrics(wrapped) == polyak.metrics(optimizer)


def test_another_optimizer_and_no_step_are_a_sentence():
    w = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(TypeError, match=r"^polyak.metrics needs a Polyak optimizer, but a SGD [^\n]*\.$"):
        polyak.metrics(torch.optim.SGD([w]))
    with pytest.raises(RuntimeError, match="there was no step"):
        polyak.metrics(polyak.ALIG([w]))


class CountReads(TorchDispatchMode):
    """Counts the operations that read numbers from a device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_the_device_is_read_once(monkeypatch):
    problem = Problem.make()
    params = problem.params()
    optimizer = polyak.ALIG([{"params": params[:2]}, {"params": params[2:]}], constraint=polyak.L2Ball(5.0))
    problem.steps(optimizer, params, 1)
    lists = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: lists.append(self) or tolist(self))
    with CountReads() as reads:
        polyak.metrics(optimizer)
    assert len(lists) == 1
    assert reads.count == 0  # nothing is read one by one
