"""What a type can hold: a step is refused only if its result is not in the type, and no refusal lasts for ever."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import polyak
from catalogue import CLASSIC, METHODS, each_backend, each_classic_form
from observe import bits, give
from polyak._backend import chunks

NARROW = (torch.float16, torch.complex32, torch.bfloat16)
FORMS = [pytest.param(method, form, id=f"{method.name}-{form}") for method in METHODS for form in method.momenta[1:]]
each_classic_momentum = pytest.mark.parametrize(("method", "form"), [row for row in FORMS if row.values[0] in CLASSIC])
each_momentum = pytest.mark.parametrize(("method", "form"), FORMS)


@pytest.fixture(params=["host", "device"])
def where(request, monkeypatch):
    """Decide with numbers on the host, or with tensors as on a device."""
    monkeypatch.setattr(chunks, "INTERPRETED", request.param == "device")
    return request.param


def build(method: object, params: list, form: str, backend: dict, where: str, **options: object) -> object:
    if backend.get("fused") and where == "device":
        pytest.skip("the kernels of a device are tested where Triton is interpreted")
    if "init_step_size" in method.defaults:
        options["init_step_size"] = 1e30
    return method.build(params, form, **options, **backend)


@each_classic_form
@each_backend
@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize(("lr", "size"), [(0.3, 10**6), (10.0, 1000), (1e3, 50)])
def test_a_step_that_is_long_in_all_moves_every_number(method, form, backend, dtype, lr, size, where):
    if size > 1000 and (form != "nesterov" or dtype == torch.complex32):
        size, lr = 1000, 20.0
    w = nn.Parameter(torch.ones(size, dtype=dtype))
    optimizer = build(method, [w], form, backend, where, lr=lr)
    give([w], torch.ones_like(w))
    optimizer.step(loss=1e9)
    expected = 1.0 - lr * (1 + optimizer.param_groups[0]["momentum"])
    assert not optimizer.last_step().skipped
    assert w[0].real.item() == pytest.approx(expected, rel=2e-2)


@each_classic_form
@each_backend
def test_float16_refuses_what_it_cannot_hold_and_nothing_else(method, form, backend, where):
    for x, sign, moves in ((6e4, 1.0, True), (6e4, -1.0, False), (-6e4, -1.0, True), (-6e4, 1.0, False)):
        w, other = (nn.Parameter(torch.full((3,), value, dtype=torch.float16)) for value in (x, 0.0))
        optimizer = build(method, [w, other], form, backend, where, lr=1e4)
        give([w, other], torch.full_like(w, sign), torch.ones_like(w))
        before = bits(w), bits(other)
        optimizer.step(loss=1e9)
        assert bool(optimizer.last_step().skipped) is not moves
        assert ((bits(w), bits(other)) != before) is moves
        assert w.isfinite().all()


def _outlier(params: list[nn.Parameter], size: float) -> None:
    give(params, *(torch.full_like(p, size) for p in params))


@each_momentum
@each_backend
@pytest.mark.parametrize(
    ("dtype", "outlier"), [(torch.float16, 5e4), (torch.bfloat16, 1e19), (torch.float32, 1e19)], ids=str
)
def test_a_buffer_that_is_too_long_decays_until_steps_fit_again(method, form, backend, dtype, outlier, where):
    params = [nn.Parameter(torch.tensor([1.0, -2.0], dtype=dtype)) for _ in range(2)]
    optimizer = build(method, [{"params": [p]} for p in params], form, backend, where, lr=1.0 if method.factor else 1e9)
    for t in range(150):
        if t < 3:
            _outlier(params, outlier / 2 ** (dtype != torch.float16))
        else:
            give(params, *(1e-3 * p.detach().sign() for p in params))
        optimizer.step(loss=1.0 if t < 3 else 1e-6)
        if t == 120:
            skipped = int(optimizer.last_step(1).skipped_steps)
        assert all(p.isfinite().all() and optimizer.state[p]["momentum_buffer"].isfinite().all() for p in params)
    assert int(optimizer.last_step(1).skipped_steps) == skipped


@each_classic_momentum
@each_backend
def test_momentum_that_pushes_out_of_float16_decays(method, form, backend, where):
    w = nn.Parameter(torch.full((3,), 6.5e4, dtype=torch.float16))
    optimizer = build(method, [w], form, backend, where, lr=1.0)
    optimizer.state[w]["momentum_buffer"] = torch.full_like(w.detach(), 1e4)
    for _ in range(60):
        give([w], torch.full_like(w, 1e-2))
        optimizer.step(loss=1.0)
        assert w.isfinite().all()
    assert 0 < int(optimizer.last_step().skipped_steps) < 50


@each_momentum
@each_backend
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_measurement_leaves_the_buffer_as_it_is(method, form, backend, bad, where):
    w = nn.Parameter(torch.full((3,), 6.5e4, dtype=torch.float16))
    optimizer = build(method, [w], form, backend, where, lr=1.0)
    optimizer.state[w]["momentum_buffer"] = torch.full_like(w.detach(), 1e4)
    for loss, gradient in ((bad, 1.0), (1.0, bad)):
        give([w], torch.full_like(w, gradient))
        before = bits(w), bits(optimizer.state[w]["momentum_buffer"])
        optimizer.step(loss=loss)
        assert (bits(w), bits(optimizer.state[w]["momentum_buffer"])) == before


# Scalars that are kept between steps

UNDERFLOWS = {
    "float32 zero": (torch.float32, 1e-38, 1e4),
    "float32 subnormal": (torch.float32, 1e-36, 1e4),
    "float64 zero": (torch.float64, 1e-300, 1e20),
    "float64 subnormal": (torch.float64, 1e-300, 1e10),
    "bfloat16": (torch.bfloat16, 1e-38, 1e4),
    "float16": (torch.float16, 1e-38, 6e4),
}


def _memory(optimizer: polyak.PolyakOptimizer) -> Tensor:
    return optimizer.param_groups[0]["previous_step_size"]


@each_backend
@pytest.mark.parametrize(("dtype", "loss", "gradient"), UNDERFLOWS.values(), ids=UNDERFLOWS.keys())
@pytest.mark.parametrize("steps", [1, 5])
def test_a_memory_that_is_not_zero_never_becomes_zero(backend, dtype, loss, gradient, steps, where):
    w = nn.Parameter(torch.ones(1, dtype=dtype))
    if backend.get("fused") and where == "device":
        pytest.skip("the kernels of a device are tested where Triton is interpreted")
    optimizer = polyak.SmoothSPS([w], steps_per_epoch=1000, init_step_size=0.1, **backend)
    for _ in range(steps):
        give([w], torch.full_like(w, gradient))
        optimizer.step(loss=torch.tensor(loss, dtype=torch.float64))
    caps = []
    for _ in range(3):
        give([w], torch.full_like(w, 1e-2))
        optimizer.step(loss=1.0)
        caps.append(float(_memory(optimizer)))
    assert 0 < caps[0] < caps[1] < caps[2]


def test_a_first_memory_below_the_type_is_the_smallest_number_with_all_digits():
    optimizer = polyak.SmoothSPS([nn.Parameter(torch.ones(1))], steps_per_epoch=10, init_step_size=1e-50)
    assert float(_memory(optimizer)) == torch.finfo(torch.float32).tiny


def test_a_memory_of_float64_stays_positive_in_float32():
    wide = polyak.SmoothSPS([nn.Parameter(torch.ones(1).double())], steps_per_epoch=10, init_step_size=1e-100)
    optimizer = polyak.SmoothSPS([nn.Parameter(torch.ones(1))], steps_per_epoch=10)
    optimizer.load_state_dict(wide.state_dict())
    assert _memory(optimizer).dtype == torch.float32
    assert float(_memory(optimizer)) == torch.finfo(torch.float32).tiny


@each_backend
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_ball_rescales_by_a_factor_with_all_digits(backend, dtype, count):
    """Rounded to float16, where it is below the normal numbers, the factor would be off by 0.3 %."""
    params = [nn.Parameter(torch.zeros(5, dtype=dtype)) for _ in range(count)]
    optimizer = polyak.ALIG(params, lr=1e-9, constraint=polyak.L2Ball(0.5), **backend)
    for p in params:
        p.data.fill_(14072.0)
    give(params, *map(torch.ones_like, params))
    optimizer.step(loss=1.0)
    expected = torch.tensor(0.5 / math.sqrt(5 * count), dtype=dtype)
    assert all(bool((p == expected).all()) for p in params)


@each_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_momentum_is_not_rounded_where_there_are_several_tensors(backend, dtype):
    """Each of them moves as one that is alone in an optimizer."""
    values = torch.linspace(1.0, 2.0, 50).to(dtype)
    ends = []
    for split in (1, 5):
        params = [nn.Parameter(value.clone()) for value in values.chunk(split)]
        optimizer = polyak.ALIG(params, lr=1e-2, momentum=0.9, **backend)
        for _ in range(3):
            give(params, *values.chunk(split))
            optimizer.step(loss=1e6)
        ends.append(torch.cat([p.detach() for p in params]))
    assert torch.equal(*ends)
