"""Every method on every kind of parameters: backends, types, layouts, complex numbers."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import polyak
from catalogue import (
    BACKENDS,
    each_backend,
    each_buffered_form,
    each_classic,
    each_classic_form,
    each_form,
    each_method,
)
from observe import SMALL_BALLS, bits, changed, give, is_averaging, random_like, snapshot
from problem import Problem, flat

pytestmark = pytest.mark.filterwarnings(SMALL_BALLS)

LOOP = [*BACKENDS].index("loop")
LOW = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # unit roundoff


@each_form
@pytest.mark.parametrize("constraint", [None, polyak.L2Ball(1.5)], ids=["free", "ball"])
def test_every_backend_equals_the_loop(method, form, constraint):
    problem, ends = Problem.make(), []
    for backend in BACKENDS.values():
        params = problem.params()
        ends.append(problem.steps(method.build(params, form, constraint=constraint, **backend), params, 20))
    for backend, end in zip(BACKENDS, ends, strict=True):
        np.testing.assert_allclose(end, ends[LOOP], rtol=1e-12, err_msg=backend)


@each_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64], ids=str)
def test_every_backend_equals_the_loop_in_other_types_and_with_gaps(method, form, dtype):
    found = []
    for backend in BACKENDS.values():
        params = [nn.Parameter(value) for value in random_like([torch.empty(n, dtype=dtype) for n in (3, 2, 4)])]
        optimizer = method.build(params, form, lr=0.1, **backend)
        for t in range(4):
            first, _, last = random_like(params, seed=t)
            give(params, first, None, last)
            optimizer.step(loss=1.0 + t)
        found.append(torch.cat([p.detach() for p in params]))
    for backend, end in zip(BACKENDS, found, strict=True):
        torch.testing.assert_close(end, found[LOOP], msg=lambda text, backend=backend: f"{backend}: {text}")


def test_the_choice_of_backend_is_made_per_group():
    params = Problem.make().params()
    optimizer = polyak.ALIG([{"params": params[:2], "foreach": True}, {"params": params[2:]}], foreach=False)
    expected = Problem.make().params()
    end = Problem.make().steps(polyak.ALIG(expected), expected, 5)
    np.testing.assert_allclose(Problem.make().steps(optimizer, params, 5), end, rtol=1e-12)


@each_form
@each_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_type_layout_and_storage_are_kept(method, form, backend, dtype):
    image = torch.randn(2, 3, 4, 5).to(dtype=dtype, memory_format=torch.channels_last)
    params = [
        nn.Parameter(image),
        nn.Parameter(torch.randn(5, 4).to(dtype).t()),
        nn.Parameter(torch.ones((), dtype=dtype)),
    ]
    before = [(p.dtype, p.stride(), p.data_ptr()) for p in params]
    optimizer = method.build(params, form, constraint=polyak.L2Ball(3.0), **backend)
    for t in range(2):
        give(params, *random_like(params, seed=t))
        optimizer.step(loss=1.0)
    assert [(p.dtype, p.stride(), p.data_ptr()) for p in params] == before
    for p in params:
        for name, buffer in optimizer.state.get(p, {}).items():
            wide = torch.promote_types(p.dtype, torch.float32) if name == "square_average" else p.dtype
            assert (buffer.dtype, buffer.stride()) == (wide, p.stride())


@each_method
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.complex64, torch.float32),
        (torch.float64, torch.float64),
        (torch.complex128, torch.float64),
    ],
    ids=str,
)
def test_scalars_are_float32_or_wider(method, dtype, expected):
    w = nn.Parameter(torch.ones(3, dtype=dtype))
    optimizer = method.build([w], "nesterov")
    give([w], torch.ones(3, dtype=dtype))
    optimizer.step(loss=1.0)
    last, group = optimizer.last_step(), optimizer.param_groups[0]
    floats = [last.loss, last.grad_sq_norm, last.ratio, last.step_size, group["step_size"]]
    assert {value.dtype for value in floats} == {expected}
    assert {value.dim() for value in last} == {0}
    assert group["skipped_steps"].dtype == torch.int64


@each_classic_form
@each_backend
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_the_step_size_is_not_rounded_to_the_type_of_the_parameters(method, form, backend, dtype):
    """One step from 0 ends at −γ(1 + μ)g; rounding is unbiased, but a rounded γ would shift every coordinate alike."""
    lr = 0.5 + 0.5 * (round(0.3 / LOW[dtype]) | 1) * LOW[dtype]  # half-way between two numbers of the type
    w = nn.Parameter(torch.zeros(4000, dtype=dtype))
    optimizer = method.build([w], form, lr=lr, **backend)
    give([w], *random_like([w], scale=1e-2))
    optimizer.step(loss=1e3)
    assert optimizer.last_step().step_size == pytest.approx(lr, rel=1e-6)
    expected = -lr * (1 + optimizer.param_groups[0]["momentum"]) * w.grad.double()
    bias = (w.detach().double().sub(expected) * expected.sign()).sum() / expected.abs().sum()
    assert abs(bias) < 0.2 * LOW[dtype]


@each_classic
@each_backend
def test_a_norm_that_float16_cannot_hold_is_summed_in_float32(method, backend):
    ends = []
    for dtype in (torch.float16, torch.float32):
        params = [nn.Parameter(torch.zeros(500, dtype=dtype)) for _ in range(2)]
        optimizer = method.build(params, **backend)
        give(params, *(torch.full_like(p, 30.0) for p in params))
        optimizer.step(loss=1.0)
        assert optimizer.last_step().grad_sq_norm == pytest.approx(9e5)
        ends.append(torch.cat([p.detach() for p in params]).float())
    torch.testing.assert_close(*ends, rtol=1e-3, atol=0)


@each_form
@each_backend
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("constraint", [None, polyak.L2Ball(0.5)], ids=["free", "ball"])
def test_complex_parameters_equal_their_split_twin(method, form, backend, dtype, constraint):
    start = random_like([torch.empty(3, 2, dtype=dtype), torch.empty((), dtype=dtype)])
    whole = [nn.Parameter(value.clone()) for value in start]
    split = [nn.Parameter(torch.view_as_real(value).clone()) for value in start]
    pair = [method.build(params, form, constraint=constraint, **backend) for params in (whole, split)]
    for t in range(4):
        grads = random_like(whole, seed=t)
        for z, x, grad in zip(whole, split, grads, strict=True):
            z.grad, x.grad = grad.conj(), torch.view_as_real(grad.conj().resolve_conj())
        for optimizer in pair:
            optimizer.step(loss=0.5)
    if is_averaging(pair[0]):  # products are summed in another order
        pairs = zip(whole, split, strict=True)
        assert all(torch.allclose(torch.view_as_real(z.detach()), x, rtol=1e-5, atol=1e-6) for z, x in pairs)
        return
    assert [bits(torch.view_as_real(z.detach()))[1] for z in whole] == [bits(x)[1] for x in split]
    assert torch.equal(pair[0].last_step().step_size, pair[1].last_step().step_size)


@each_form
@each_backend
def test_types_mix_in_one_group(method, form, backend):
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float32, torch.complex64)
    params = [nn.Parameter(torch.ones(3, dtype=dtype)) for dtype in dtypes]
    twins = [nn.Parameter(p.detach().to(torch.promote_types(p.dtype, torch.float64))) for p in params]
    for side in (params, twins):
        optimizer = method.build(side, form, lr=0.1, **backend)
        for t in range(3):
            grads = random_like(params, seed=t)
            give(side, *(grad.to(p.dtype) for p, grad in zip(side, grads, strict=True)))
            optimizer.step(loss=2.0)
    assert tuple(p.dtype for p in params) == dtypes
    for p, twin in zip(params, twins, strict=True):
        eps = torch.finfo(p.dtype).eps
        torch.testing.assert_close(p.to(twin.dtype), twin, rtol=4 * eps, atol=4 * eps)
    assert optimizer.last_step().grad_sq_norm.dtype == torch.float64


@each_form
def test_backends_round_alike_when_types_mix(method, form):
    """With the cap as step size, so that the order of the sums in the norm does not matter."""
    decided = () if method.hard_cap else ("step_size", "momentum_buffer", "parameter")  # a soft cap is never reached
    ends = []
    for backend in BACKENDS.values():
        params = [nn.Parameter(torch.ones(200, dtype=dtype)) for dtype in (torch.float32, *LOW, torch.float64)]
        optimizer = method.build(params, form, lr=0.1, **backend)
        give(params, *random_like(params))
        optimizer.step(loss=1e6)
        ends.append(snapshot(optimizer))
    # products are summed in another order, and decide nothing here
    ends = [
        {
            name: value
            for name, value in end.items()
            if not name.startswith(("dot_average", "model_average", "slack_", *decided))
        }
        for end in ends
    ]
    rooted = {name for name in ends[0] if name.startswith(("parameter", "momentum"))}  # torch's √ is off by a bit
    rooted = rooted if any(name.startswith("square_average") for name in ends[0]) else set()
    *others, kernels = [changed(ends[0], end) for end in ends]
    assert [*BACKENDS][-1] == "fused"
    assert others == [set()] * len(others)
    assert kernels <= rooted
    for name in rooted:
        eps = torch.finfo(ends[0][name].dtype).eps
        torch.testing.assert_close(ends[-1][name], ends[0][name], rtol=4 * eps, atol=4 * eps)


@each_form
@each_backend
@pytest.mark.filterwarnings("ignore:.*moves nothing")
def test_nothing_happens_when_no_parameter_has_a_gradient(method, form, backend):
    params = Problem.make().params()
    optimizer = method.build([{"params": params}, {"params": []}], form, **backend)
    before = snapshot(optimizer)
    optimizer.step(loss=1.0)
    assert changed(before, snapshot(optimizer)) == set()
    assert not optimizer.last_step().skipped
    assert not optimizer.state


@each_form
def test_a_long_run_stays_finite_in_low_precision(method, form):
    problem = Problem.make()
    params = problem.params(dtype=torch.bfloat16)
    before = problem.loss(problem.params()).item()
    problem.steps(method.build(params, form, lr=0.1), params, 60)
    wide = [p.detach().double() for p in params]
    assert problem.loss(wide).item() < before
    assert math.isfinite(float(flat(params).sum()))


@each_buffered_form
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_float32_momentum_of_narrow_parameters_survives_a_checkpoint(method, form, dtype):
    def build():
        p = torch.nn.Parameter(torch.linspace(-1, 1, 50).to(dtype))
        return p, method.build([p], form, float32_momentum=True)

    def step(p, optimizer, seed):
        p.grad = torch.randn(50, generator=torch.Generator().manual_seed(seed)).to(dtype)
        optimizer.step(loss=1.0)

    p, optimizer = build()
    for seed in range(3):
        step(p, optimizer, seed)
    q, resumed = build()
    with torch.no_grad():
        q.copy_(p)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert all(b.dtype == torch.float32 for state in resumed.state.values() for b in state.values())
    for seed in range(3, 6):
        step(p, optimizer, seed)
        step(q, resumed, seed)
    assert torch.equal(p, q)
