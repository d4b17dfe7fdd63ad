"""fused=True on a CUDA device: the compiled kernels against the loop, and what only a device shows."""

import importlib

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import polyak
from catalogue import each_form, each_method
from observe import SMALL_BALLS, changed, give, random_like, snapshot

cuda = importlib.import_module("polyak._backend.cuda") if torch.cuda.is_available() else None

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings(SMALL_BALLS),
    pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning"),
]

SHAPES = ((), (0,), (3, 2), (4095,), (4096,), (4097,), (64, 64, 3, 3), (1000, 512))
TYPES = [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 0.0), (torch.float16, 0.0)]
MEBIBYTE = 1 << 20


def params(dtype=torch.float32, shapes=SHAPES):
    made = random_like([torch.empty(shape, dtype=dtype) for shape in shapes], seed=3)
    return [nn.Parameter(value.cuda()) for value in made]


def gradients(of, seed):
    give(of, *(grad.cuda() for grad in random_like([p.cpu() for p in of], seed=seed)))


def run(optimizer, steps, loss=1.0):
    own = optimizer.param_groups[0]["params"]
    for t in range(steps):
        gradients(own, t)
        optimizer.step(loss=torch.tensor(loss, device="cuda"))
    return torch.cat([p.detach().reshape(-1) for p in own])


@each_form
@pytest.mark.parametrize("ball", [None, 1e4, 20.0], ids=["free", "inside", "active"])
@pytest.mark.parametrize(("dtype", "rtol"), TYPES, ids=str)
def test_the_kernels_move_as_the_loop_does(method, form, dtype, rtol, ball):
    """Over 100 steps: narrow types bit for bit at the cap, where the order of the sums does not matter."""
    ends = []
    for backend in ({"foreach": False}, {"fused": True}):
        constraint = None if ball is None else polyak.L2Ball(ball)
        optimizer = method.build(params(dtype), form, lr=1e-3, constraint=constraint, **backend)
        ends.append(run(optimizer, 100, loss=6e4).double())
    if rtol == 0.0 and ball == 20.0:  # an active ball rescales by a sum, whose last digits round some numbers otherwise
        rtol = 10 * torch.finfo(dtype).eps
    elif rtol == 0.0 and not (method.has_kernel and "Adam" not in method.name):  # torch rounds some numbers otherwise
        rtol = torch.finfo(dtype).eps / 100
    assert (ends[0] - ends[1]).norm() <= rtol * ends[0].norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("bad", [1.0, float("nan")], ids=["finite", "skipped"])
@each_form
def test_multi_tensor_kernels_move_as_the_loop_does(method, form, bad, dtype):
    """Also parameters and gradients whose numbers lie in another order, or whose strides differ where a size is 1."""
    ends = []
    for backend in ({"foreach": False}, {"foreach": True}):
        own = [
            nn.Parameter(p.detach().to(memory_format=torch.channels_last) if p.dim() == 4 else p) for p in params(dtype)
        ]
        own += [nn.Parameter(p) for p in (own[2].detach().t(), own[6].detach()[:, :, :1, :1].clone())]
        optimizer = method.build(own, form, lr=1e-3, **backend)
        run(optimizer, 3)
        gradients(own, 3)
        own[2].grad.mul_(bad)
        before, versions = [p.detach().clone() for p in own], [p._version for p in own]
        optimizer.step(loss=torch.ones((), device="cuda"))
        assert bool(optimizer.last_step().skipped) == (bad != bad)
        assert (bad == bad) or all(map(torch.equal, before, own))
        assert all(p._version > version for p, version in zip(own, versions, strict=True))  # a stale graph is found
        ends.append(torch.cat([p.detach().double().reshape(-1) for p in own]))
    rtol = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: torch.finfo(dtype).eps / 100}[dtype]
    assert (ends[0] - ends[1]).norm() <= rtol * ends[0].norm()


def test_the_kernels_are_the_default(monkeypatch):
    def kinds(**options):
        optimizer = polyak.ALIG(params(), lr=0.1, momentum=0.9, **options)
        run(optimizer, 1)
        return {*optimizer._kept[0].kinds}

    assert kinds() == kinds(fused=True) != kinds(foreach=True) == kinds(fused=False)
    monkeypatch.setattr(cuda, "_usable", {torch.device("cuda", 0): False})
    assert kinds() == kinds(foreach=True)


@each_form
def test_two_runs_are_the_same_bits(method, form):
    ends = []
    for _ in range(2):
        optimizer = method.build(params(), form, lr=0.1, constraint=polyak.L2Ball(20.0), fused=True)
        run(optimizer, 3)
        ends.append(snapshot(optimizer))
    assert changed(*ends) == set()


@each_form
@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_skipped_step_stores_nothing(method, form, loss):
    optimizer = method.build(params(), form, lr=0.1, fused=True)
    before = run(optimizer, 2).clone()
    assert torch.equal(before, run(optimizer, 1, loss=loss))
    assert optimizer.last_step().skipped


@each_form
def test_a_step_needs_no_memory_of_the_size_of_the_model(method, form):
    if method.cls is polyak.MuonMoMo:
        pytest.skip("its polar factor takes products of whole matrices")
    own = params(shapes=((4096, 4096),))
    optimizer = method.build(own, form, lr=0.1, constraint=polyak.L2Ball(20.0), fused=True)
    run(optimizer, 2)
    gradients(own, 2)
    loss = torch.ones((), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    optimizer.step(loss=loss)
    assert torch.cuda.max_memory_allocated() - before <= MEBIBYTE


@each_method
def test_the_number_of_launches_does_not_grow_with_the_number_of_tensors(method):
    if method.cls is polyak.MuonMoMo:
        pytest.skip("each matrix has a polar factor of its own, which takes some products")
    counts = []
    for tensors in (2, 200):
        own = params(shapes=((33, 5),) * tensors)
        optimizer = method.build(own, "nesterov", lr=0.1, constraint=polyak.L2Ball(1e4), fused=True)
        run(optimizer, 2)
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            optimizer.step(loss=torch.ones((), device="cuda"))
            torch.cuda.synchronize()
        counts.append(sum(event.count for event in found.key_averages() if "Memcpy" not in event.key))
    assert counts[0] == counts[1]


def test_more_than_two_to_the_31_numbers_in_one_tensor():
    w = nn.Parameter(torch.zeros(2**31 + 5, dtype=torch.bfloat16, device="cuda"))
    w.grad = torch.zeros_like(w)
    w.grad[-1] = 1.0
    polyak.ALIG([w], lr=0.5, fused=True).step(loss=torch.ones((), device="cuda"))
    assert float(w.detach()[-1]) == -0.5
    assert float(w.detach()[:-1].abs().max()) == 0.0
