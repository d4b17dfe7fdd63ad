"""A model that moves, or gets another type, after its optimizer was built: scalars and buffers follow."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import polyak
from catalogue import Method, each_backend, each_form, each_method
from observe import give, random_like, snapshot

TYPES = {
    "double": (torch.float64,),
    "half": (torch.float16,),
    "bfloat16": (torch.bfloat16,),
    "there and back": (torch.float64, torch.float32),
    "narrow and wide": (torch.float16, torch.float64, torch.bfloat16),
}


def build(method: Method, form: str, **options: object) -> tuple[nn.Module, polyak.PolyakOptimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    groups = [{"params": [*layer.parameters()]} for layer in model]
    return model, method.build(groups, form, lr=0.1, constraint=polyak.L2Ball(50.0), **options)


def step(model: nn.Module, optimizer: polyak.PolyakOptimizer, seed: int = 0) -> None:
    params = [*model.parameters()]
    give(params, *(grad.to(p.device) for p, grad in zip(params, random_like(params, seed=seed), strict=True)))
    optimizer.step(loss=1.0)


def check(optimizer: polyak.PolyakOptimizer, skipped: int) -> None:
    """Check that all is where the parameters are, and in a type that goes with theirs."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    scalar = torch.float64 if any(p.dtype == torch.float64 for p in params) else torch.float32
    for group in optimizer.param_groups:
        scalars = [value for name, value in group.items() if isinstance(value, torch.Tensor) and name != "lr"]
        assert {value.device for value in scalars} == {group["params"][0].device}
        assert {value.dtype for value in scalars} == {scalar, torch.int64}
        for p in group["params"]:
            for name, buffer in optimizer.state[p].items():
                wide = torch.promote_types(p.dtype, torch.float32) if name == "square_average" else p.dtype
                assert (buffer.device, buffer.dtype) == (p.device, wide)
    if not params[0].is_meta:
        assert int(optimizer.param_groups[0]["skipped_steps"]) == skipped


@each_form
@each_backend
@pytest.mark.parametrize("dtypes", TYPES.values(), ids=TYPES.keys())
@pytest.mark.parametrize("part", [slice(None), slice(0, 1), slice(1, 2)], ids=["all", "the first group", "the last"])
def test_scalars_and_buffers_follow_the_types(method, form, backend, dtypes, part):
    model, optimizer = build(method, form, **backend)
    for seed in range(2):
        step(model, optimizer, seed)
    optimizer.step(loss=float("nan"))
    for dtype in dtypes:
        model[part].to(dtype)
        step(model, optimizer)
        check(optimizer, 1)
    twin = copy.deepcopy(model)
    groups = [{"params": [*layer.parameters()]} for layer in twin]
    restored = method.build(groups, form, lr=0.1, constraint=polyak.L2Ball(50.0), **backend)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for side in ((model, optimizer), (twin, restored)):
        step(*side, seed=9)
    torch.testing.assert_close(snapshot(optimizer), snapshot(restored), rtol=0, atol=0)
    check(optimizer, 1)


@pytest.fixture
def in_place():
    """Let modules move to another kind of device without replacing their parameters."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(before)


@pytest.mark.usefixtures("in_place")
@each_form
@pytest.mark.parametrize("foreach", [None, False, True])
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("part", [slice(None), slice(0, 1)], ids=["all", "the first group"])
def test_scalars_and_buffers_follow_to_a_device_and_the_host_reads_nothing_there(method, form, foreach, steps, part):
    """The device is `meta`, of which nothing can be read."""
    model, optimizer = build(method, form, foreach=foreach)
    if part != slice(None):
        optimizer = method.build([{"params": [*layer.parameters()]} for layer in model[part]], form, foreach=foreach)
    for seed in range(steps):
        step(model, optimizer, seed)
    model[part].to("meta")
    for _ in range(2):
        step(model[part], optimizer)
    assert {p.device.type for p in optimizer.param_groups[0]["params"]} == {"meta"}
    check(optimizer, 0)


@pytest.mark.filterwarnings("ignore:.*moves nothing")
@each_form
def test_a_module_that_replaces_its_parameters_leaves_the_optimizer_where_it_was(method, form):
    """As with every torch optimizer: it holds the old parameters until it is built again."""
    model, optimizer = build(method, form)
    step(model, optimizer)
    old = [p for group in optimizer.param_groups for p in group["params"]]
    for p in old:
        p.grad = None
    before = [p.detach().clone() for p in old]
    model.to("meta")
    step(model, optimizer)
    torch.testing.assert_close([p.detach() for p in old], before, rtol=0, atol=0)
    check(optimizer, 0)


@each_form
def test_one_parameter_of_a_group_may_change_its_type(method, form):
    model, optimizer = build(method, form)
    step(model, optimizer)
    model[0].bias.data = model[0].bias.data.double()
    step(model, optimizer)
    check(optimizer, 0)


def test_a_buffer_stays_wide_where_that_is_asked_for():
    w = nn.Parameter(torch.ones(3))
    optimizer = polyak.ALIG([w], momentum=0.9, float32_momentum=True)
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.float16):
        w.data, w.grad = w.data.to(dtype), None
        w.grad = torch.ones_like(w)
        optimizer.step(loss=1.0)
        assert optimizer.state[w]["momentum_buffer"].dtype == torch.promote_types(dtype, torch.float32)


@each_method
@pytest.mark.parametrize("place", [0, 1])
def test_a_group_that_was_put_into_the_list_gets_every_option(method, place):
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = method.build([a], lr=0.01)
    optimizer.param_groups.insert(place, {"params": [b]})
    give([a, b], torch.ones(2), torch.ones(2))
    optimizer.step(loss=1.0)
    assert optimizer.param_groups[place]["lr"] == optimizer.defaults["lr"] == 0.01
    assert a[0] == b[0] < 1.0


def test_a_group_that_was_put_into_the_list_gets_what_it_lacks():
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = polyak.SmoothSPS([a], steps_per_epoch=3, momentum=0.5)
    optimizer.param_groups.append({"params": [b], "lr": 0.01})
    give([a, b], torch.ones(2), torch.ones(2))
    optimizer.step(loss=1.0)
    assert optimizer.param_groups[1]["step_size"] == pytest.approx(0.01)
    assert b[0] < 1.0
