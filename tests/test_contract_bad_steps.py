"""Steps that must not move, or must not leave a trace: zeros, negative gaps, NaN, inf, overflow."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import polyak
from catalogue import each_backend, each_classic, each_form, each_method
from observe import AVERAGES, SMALL_BALLS, bits, changed, give, is_average, is_averaging, moved, random_like, snapshot

pytestmark = [pytest.mark.filterwarnings(SMALL_BALLS), pytest.mark.usefixtures("arithmetic")]

BAD_LOSSES = {"NaN": math.nan, "inf": math.inf, "-inf": -math.inf}
each_bad_loss = pytest.mark.parametrize("bad", BAD_LOSSES.values(), ids=BAD_LOSSES.keys())


def fresh(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(value) for value in random_like([torch.empty(n, dtype=dtype) for n in (3, 2)], seed=7)]


def good(optimizer: polyak.PolyakOptimizer, seed: int) -> None:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    give(params, *random_like(params, seed=seed))
    optimizer.step(loss=1.0 + seed)


def kinds(names: set[str]) -> set[str]:
    """Return what the names of a snapshot are the names of."""
    return {name.split()[0] for name in names}


def one_bad_entry(params: list[nn.Parameter], bad: float) -> list[Tensor]:
    grads = random_like(params)
    grads[-1].view(-1)[-1] = bad
    return grads


@each_form
@each_backend
@each_bad_loss
@pytest.mark.parametrize("seen", [0, 2], ids=["first", "later"])
def test_a_loss_that_is_not_finite_moves_nothing(method, form, backend, bad, seen):
    params = fresh()
    optimizer = method.build(params, form, constraint=polyak.L2Ball(50.0), **backend)
    for seed in range(seen):
        good(optimizer, seed)
    give(params, *random_like(params))
    before, after = snapshot(optimizer), (optimizer.step(loss=torch.tensor(bad)), snapshot(optimizer))[1]
    assert {name for name in moved(before, after) if name in before} == set()
    last = optimizer.last_step()
    assert (bool(last.skipped), int(last.skipped_steps), float(last.step_size)) == (True, 1, 0.0)


@each_form
@each_backend
@each_bad_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.complex64], ids=str)
def test_a_gradient_that_is_not_finite_moves_nothing(method, form, backend, bad, dtype):
    params = fresh(dtype)
    optimizer = method.build([{"params": params[:1]}, {"params": params[1:]}], form, **backend)
    good(optimizer, 0)
    before = snapshot(optimizer)
    give(params, *one_bad_entry(params, bad))
    optimizer.step(loss=1.0)
    assert moved(before, snapshot(optimizer)) == set()
    assert [int(optimizer.last_step(i).skipped_steps) for i in (0, 1)] == [1, 1]


@each_form
@each_backend
@each_bad_loss
def test_the_next_good_step_is_as_if_the_bad_one_had_not_been(method, form, backend, bad):
    plain, disturbed = (method.build(fresh(), form, **backend) for _ in range(2))
    for seed in range(4):
        good(plain, seed)
        params = disturbed.param_groups[0]["params"]
        give(params, *one_bad_entry(params, bad))
        disturbed.step(loss=1.0)
        give(params, *random_like(params))
        disturbed.step(loss=bad)
        good(disturbed, seed)
    assert changed(snapshot(plain), snapshot(disturbed)) == {"skipped_steps 0"}
    assert int(disturbed.last_step().skipped_steps) == 8


@each_form
@each_backend
def test_a_step_that_would_overflow_is_skipped(method, form, backend):
    params = fresh()
    optimizer = method.build(params, form, lr=method.largest_lr, **backend)
    first_cap = optimizer.param_groups[0].get("init_step_size", math.inf)
    give(params, *(1e-3 * grad for grad in random_like(params)))
    before = snapshot(optimizer)
    optimizer.step(loss=1e30)
    last = optimizer.last_step()
    assert bool(last.skipped) == (math.isinf(first_cap) and method.overflows)
    assert all(bool(p.isfinite().all()) for p in params)
    after = {name for name in moved(before, snapshot(optimizer)) if name in before and not is_average(name)}
    assert not last.skipped or after == set()


@each_form
@each_backend
def test_float16_buffers_do_not_overflow(method, form, backend):
    """Gradients that float16 can hold, but not their sum over the steps, nor their product with a later, larger γ."""
    w = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float16))
    optimizer = method.build([w], form, lr=method.largest_lr, **backend)
    for size in (5e4, 5e4, 5e4, 1e4, 1e-3, 1e-3):
        give([w], torch.tensor([size, -size], dtype=torch.float16))
        optimizer.step(loss=1.0)
        assert all(bool(value.isfinite().all()) for value in snapshot(optimizer).values() if value.dtype == w.dtype)


@each_backend
def test_a_buffer_of_gradients_that_a_larger_step_size_would_make_too_long_decays_first(backend):
    w = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = polyak.ALIG([w], lr=math.inf, eps=0.0, momentum=0.1, adjusted_momentum=True, **backend)
    skipped = []
    for size in (1e18, *30 * [1e-12]):  # γ is 5e23 in the second step, and γμv would be 5e40
        before = w.detach().clone()
        give([w], torch.tensor([size, -size]))
        optimizer.step(loss=1.0)
        skipped.append(bool(optimizer.last_step().skipped))
        assert torch.equal(w, before) or not skipped[-1]
        assert w.isfinite().all()
    assert skipped[:3] == [False, True, True]
    assert not skipped[-1]


@each_form
@each_backend
def test_gradients_are_never_modified(method, form, backend):
    params = fresh()
    optimizer = method.build(params, form, lr=0.1, constraint=polyak.L2Ball(1.0), **backend)
    for loss, bad in ((1.0, 1.0), (0.0, 1.0), (math.nan, 1.0), (1.0, math.inf), (1.0, math.nan), (-1.0, 1.0)):
        grads = one_bad_entry(params, bad)
        give(params, *grads)
        handed = [p.grad for p in params]
        optimizer.step(loss=loss)
        assert all(p.grad is grad for p, grad in zip(params, handed, strict=True))
        assert [bits(p.grad) for p in params] == [bits(grad) for grad in grads]


@each_method
@each_backend
@pytest.mark.parametrize("loss", [1.0, 0.0, -3.0], ids=["gap", "no gap", "negative gap"])
@pytest.mark.parametrize("scale", [1.0, 0.0], ids=["gradient", "no gradient"])
@pytest.mark.parametrize("eps", [1e-8, 0.0])
def test_a_zero_neither_moves_nor_poisons(method, backend, loss, scale, eps):
    """Only averages follow such a batch: without them, the next step is as if it had not been."""
    options = {"eps": eps, **backend, **({"betas": (0.0, 0.9)} if "betas" in method.defaults else {})}
    optimizer, undisturbed = (method.build(fresh(), **options) for _ in range(2))
    for each in (optimizer, undisturbed):
        good(each, 0)
    before = snapshot(optimizer)
    params = optimizer.param_groups[0]["params"]
    give(params, *random_like(params, scale=scale))
    optimizer.step(loss=loss)
    last, moves, averages = optimizer.last_step(), loss > 0 and scale > 0, is_averaging(optimizer)
    followed = {"momentum_buffer", *AVERAGES} if averages else set()  # the buffer may hold the distance to an average
    assert (float(last.step_size) > 1e-8, bool(last.skipped)) == (moves, False)  # a kernel rounds a model's terms apart
    assert ("parameter" in kinds(moved(before, snapshot(optimizer)))) == moves
    assert moves or kinds(moved(before, snapshot(optimizer))) <= followed
    for each in (optimizer, undisturbed):
        good(each, 1)
    after, expected = snapshot(optimizer), snapshot(undisturbed)
    decides = {"square_average", "slack_value"} & kinds({*after})  # an average of which the step size is made
    assert moves or decides or kinds(changed(after, expected)) <= followed
    assert kinds(moved(before, after)) >= {"parameter"}
    assert not any(bool(value.isnan().any()) for value in after.values())


@each_form
@each_backend
@pytest.mark.parametrize(("loss", "scale"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)], ids=["loss", "gradient", "gap"])
def test_zero_from_the_start_leaves_the_parameters_alone(method, form, backend, loss, scale):
    """With momentum, too: the buffer of a first step of size 0 is used with γ = 0 or is 0 itself."""
    params = fresh()
    optimizer = method.build(params, form, **backend)
    before = [p.detach().clone() for p in params]
    give(params, *random_like(params, scale=scale))
    optimizer.step(loss=loss)
    assert all(torch.equal(p, x) for p, x in zip(params, before, strict=True))


@each_method
def test_a_negative_cap_in_a_tensor_is_zero(method):
    """It cannot be refused: a step does not read a tensor on a device."""
    params, lr = fresh(), torch.tensor(0.1)
    optimizer = method.build(params, lr=lr, **({"betas": (0.0, 0.9)} if "betas" in method.defaults else {}))
    good(optimizer, 0)
    for value in (-0.1, -1e-30, -math.inf):
        before = snapshot(optimizer)
        lr.fill_(value)
        good(optimizer, 1)
        last = optimizer.last_step()
        assert (float(last.step_size), bool(last.skipped)) == (0.0, False)
        assert "parameter" not in kinds(moved(before, snapshot(optimizer)))


@each_form
def test_only_momentum_moves_when_the_gap_is_negative(method, form):
    params = fresh()
    optimizer = method.build(params, form)
    give(params, *random_like(params))
    optimizer.step(loss=-5.0, lower_bound=-4.0)
    assert float(optimizer.last_step().step_size) == 0.0
    optimizer.step(loss=-5.0, lower_bound=-6.0)
    assert float(optimizer.last_step().step_size) > 0.0


@each_method
@pytest.mark.parametrize("bound", [math.nan, torch.tensor(math.nan)], ids=["float", "tensor"])
def test_a_bound_that_is_not_a_number_skips_the_step(method, bound):
    params = fresh()
    optimizer = method.build(params)
    before = snapshot(optimizer)
    give(params, *random_like(params))
    optimizer.step(loss=1.0, lower_bound=bound)
    assert {name for name in moved(before, snapshot(optimizer)) if name in before} == set()
    assert bool(optimizer.last_step().skipped)


@each_form
def test_the_report_of_a_step_does_not_change_later(method, form):
    params, lr, loss = fresh(), torch.tensor(0.01), torch.tensor(100.0)
    optimizer = method.build(params, form, lr=lr)
    give(params, *random_like(params))
    returned, last = optimizer.step(loss=loss), optimizer.last_step()
    before = [value.clone() for value in (*last, returned)]
    loss.fill_(-1.0)
    lr.fill_(1e9)
    late = optimizer.last_step()
    optimizer.step(loss=math.nan)
    good(optimizer, 3)
    assert [bits(value) for value in (*last, returned)] == [bits(value) for value in before]
    assert [bits(value) for value in (*late, returned)] == [bits(value) for value in before]
    assert bool(last.capped) is method.hard_cap


@each_classic
def test_the_report_says_what_was_done(method):
    params = fresh(torch.float64)
    optimizer = method.build(params, lr=1e-4)
    grads = random_like(params)
    give(params, *grads)
    optimizer.step(loss=torch.tensor(2.0, dtype=torch.float64))
    last = optimizer.last_step()
    assert float(last.loss) == 2.0
    assert float(last.grad_sq_norm) == pytest.approx(float(sum(grad.square().sum() for grad in grads)))
    assert float(last.step_size) == float(optimizer.param_groups[0]["step_size"]) == 1e-4
    assert float(last.ratio) > 1e-4
    assert bool(last.capped)
    optimizer.step(loss=1e-9)
    last = optimizer.last_step()
    assert not last.capped
    assert torch.equal(last.step_size, last.ratio)


@each_method
def test_before_the_first_step_there_is_nothing_to_report(method):
    with pytest.raises(RuntimeError, match=r"there was no step: call it after step\(loss=loss\)"):
        method.build(fresh()).last_step()


@each_classic
@each_backend
@pytest.mark.parametrize(("lr", "moves"), [(math.inf, False), (1e39, False), (0.1, True)])
def test_a_ratio_that_float32_cannot_hold_is_infinite(method, backend, lr, moves):
    w = torch.nn.Parameter(torch.ones(1))
    w.grad = torch.full_like(w, 1e-21)  # ‖g‖² is 1e-42, the ratio 1e40
    optimizer = method.build([w], lr=lr, eps=0.0, **backend)
    if "previous_step_size" in optimizer.param_groups[0]:
        optimizer.param_groups[0]["previous_step_size"].fill_(math.inf)
    optimizer.step(loss=0.01)
    last = optimizer.last_step()
    assert last.ratio == math.inf
    assert bool(last.skipped) is not moves
    assert last.step_size == (torch.tensor(0.1) if moves else 0.0)
    assert w.item() == 1.0  # 0.1 times 1e-21 is nothing beside it
