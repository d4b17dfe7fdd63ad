"""fused=True on CUDA, without a GPU: Triton interprets the kernels, and compiles them for two GPUs.

With TRITON_INTERPRET=1 the CPU stands for a device, of which nothing is read: γ and the mask stay tensors.
"""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import polyak
from catalogue import each_kind_of_kernel, each_kind_of_move, each_method_of_a_kind
from observe import SMALL_BALLS, changed, give, moved, random_like, snapshot
from polyak._backend import chunks
from polyak._backend.general import General
from polyak._step import parts
from problem import Problem

pytestmark = pytest.mark.filterwarnings(SMALL_BALLS)

pytest.importorskip("triton")
cuda = importlib.import_module("polyak._backend.cuda")
HERE = Path(__file__).parent
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton compiles its kernels or interprets them")
WIDE = [(torch.float64, 1e-12), (torch.float32, 1e-6)]
# Single numbers, none at all, spans that are full, one short and one over, and many of them.
SHAPES = ((), (0,), (3, 2), (4095,), (4096,), (4097,), (5, 7, 600))


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # read when the kernels are imported
    monkeypatch.setattr(chunks, "INTERPRETED", True)


def large(dtype=torch.float32, shapes=SHAPES):
    return [nn.Parameter(value) for value in random_like([torch.empty(shape, dtype=dtype) for shape in shapes], seed=3)]


def run(optimizer, steps=2, loss=1.0):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for t in range(steps):
        give(params, *random_like(params, seed=t))
        optimizer.step(loss=loss)
    return torch.cat([p.detach().reshape(-1) for p in params])


@without_gpu
@each_kind_of_move
@pytest.mark.parametrize("steps", [10, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("dtype", "rtol"), WIDE, ids=str)
def test_the_kernels_move_as_the_loop_does(method, form, dtype, rtol, steps, interpreted):
    def end(noise=0.0, **backend):
        problem = Problem.make()
        params = problem.params(dtype)
        for p, direction in zip(params, random_like(params), strict=True):
            p.data.mul_(1 + noise * direction)
        optimizer = method.build(params, form, lr=0.1, constraint=polyak.L2Ball(2.0), **backend)
        return problem.steps(optimizer, params, steps)

    loop, kernels = end(foreach=False), end(fused=True)
    if steps > 10:  # the polar factor and the sign amplify what rounding changes, up to 1e4 times in 100 steps
        rtol = max(rtol, 10 * np.linalg.norm(end(torch.finfo(dtype).eps, foreach=False) - loop) / np.linalg.norm(loop))
    assert np.linalg.norm(loop - kernels) <= rtol * np.linalg.norm(loop)


@without_gpu
@each_kind_of_kernel
def test_every_step_is_made_by_the_kernels_alone(method, form, interpreted, monkeypatch):
    monkeypatch.setattr(cuda, "as_general", None)
    for dtype, options in zip((torch.float32, torch.float64), method.trials, strict=False):
        params = large(dtype, SHAPES[:3])
        run(method.build(params, form, constraint=polyak.L2Ball(2.0), **{**options, "fused": True}))


@without_gpu
@each_kind_of_move
@pytest.mark.parametrize("steps", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_float16_is_rounded_as_the_loop_does(method, form, steps, interpreted):
    """Bit for bit while the cap is the step size, since then the order of the sums does not matter."""
    ends = []
    for backend in ({"foreach": False}, {"fused": True}):
        params = large(torch.float16, SHAPES[:4])
        ends.append(run(method.build(params, form, lr=1e-3, **backend), steps, loss=1e6))
    assert torch.equal(*ends)


@without_gpu
@each_kind_of_move
def test_bfloat16_is_moved_up_to_its_rounding(method, form, interpreted):
    """The interpreter cuts bfloat16 off where GPUs round, so bits are compared on a GPU only."""
    ends = []
    for backend in ({"foreach": False}, {"fused": True}):
        params = large(torch.bfloat16, SHAPES[:4])
        ends.append(run(method.build(params, form, lr=0.1, **backend), loss=1e6).float())
    assert (ends[0] - ends[1]).norm() <= 4 * torch.finfo(torch.bfloat16).eps * ends[0].norm()


@without_gpu
@pytest.mark.parametrize("radius", [1e3, 50.0], ids=["inside", "active"])
@each_method_of_a_kind
def test_every_span_of_every_tensor_is_measured_moved_and_rescaled(method, radius, interpreted):
    ends, norms = [], []
    for backend in ({"foreach": False}, {"fused": True}):
        optimizer = method.build(large(), "nesterov", lr=0.1, constraint=polyak.L2Ball(radius), **backend)
        ends.append(run(optimizer, loss=1e6))
        norms.append(optimizer.last_step().grad_sq_norm)
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*norms, rtol=1e-5, atol=0)
    norm = float(ends[1].norm())
    assert norm <= radius * (1 + 1e-5)
    averaged = hasattr(method.cls, "eval")  # z lies on the sphere, an average of it and x inside
    assert averaged or (norm == pytest.approx(radius, rel=1e-5)) == (radius == 50.0)


@without_gpu
@each_kind_of_move
def test_layouts_a_kernel_cannot_take_are_moved_all_the_same(method, form, interpreted):
    ends = []
    for backend in ({"foreach": False}, {"fused": True}):
        base = torch.arange(24.0).reshape(4, 6) / 10
        params = [nn.Parameter(base[:, ::2]), nn.Parameter(base.t().clone().t()), nn.Parameter(torch.ones(3))]
        ends.append(run(method.build(params, form, lr=0.1, constraint=polyak.L2Ball(4.0), **backend)))
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-6)


@without_gpu
@each_kind_of_move
@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_skipped_step_stores_nothing(method, form, loss, interpreted):
    optimizer = method.build(large(shapes=SHAPES[:4]), form, lr=0.1, constraint=polyak.L2Ball(1e3), fused=True)
    run(optimizer)
    before = snapshot(optimizer)
    run(optimizer, steps=1, loss=loss)
    assert moved(before, snapshot(optimizer)) == set()
    assert optimizer.last_step().skipped


@without_gpu
@each_kind_of_move
def test_two_runs_are_the_same_bits(method, form, interpreted):
    ends = []
    for _ in range(2):
        optimizer = method.build(large(), form, lr=0.1, constraint=polyak.L2Ball(50.0), fused=True)
        run(optimizer)
        ends.append(snapshot(optimizer))
    assert changed(*ends) == set()


@without_gpu
def test_wide_buffers_of_narrow_parameters_and_mixed_types(interpreted):
    ends = []
    for backend in ({"foreach": False}, {"fused": True}):
        params = [*large(torch.float16, SHAPES[:4]), *large(torch.float32, SHAPES[:4])]
        options = {"momentum": 0.9, "float32_momentum": True, **backend}
        ends.append(run(polyak.ALIG(params, lr=1e-3, **options), loss=1e6))
    assert torch.equal(*ends)


def test_the_compiled_kernels_load_16_bytes_at_a_time_and_add_in_a_fixed_order():
    """For sm_80 and sm_90; no GPU is needed to compile, and no kernel may use an atomic addition."""
    done = subprocess.run([sys.executable, HERE / "compile_kernels.py"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert len(found) == 40
    for name, dtype, architecture, counts in found:
        assert counts["loads"] > 0, (name, dtype, architecture)
        assert (counts["stores"] > 0) == (name != "measure"), (name, dtype, architecture)
        assert counts["atomics"] == 0, (name, dtype, architecture)


@without_gpu
def test_kernels_that_do_not_compile_are_not_usable(interpreted, monkeypatch):
    device = torch.device("cpu")  # which stands for a GPU
    monkeypatch.setattr(cuda, "_usable", {})
    assert cuda.is_usable(device)
    monkeypatch.setattr(cuda, "_usable", {})
    monkeypatch.setattr(cuda.kernels, "scale", None)
    assert not cuda.is_usable(device)
    assert not cuda.is_usable(device)  # which is not tried again


@without_gpu
def test_what_a_capture_has_sent_is_sent_again_by_the_next_step(interpreted, monkeypatch):
    """It is on the device only once the graph is replayed."""
    optimizer = polyak.ALIG(large(), lr=0.1, momentum=0.9, fused=True)
    run(optimizer, 2)
    table = optimizer._kept[0].fields[0]["table"]
    assert not table.on_device.captured
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "is_capturing", lambda device: True)
        run(optimizer, 1)
        assert table.on_device.captured
    run(optimizer, 1)
    assert not table.on_device.captured


def test_tensors_of_another_device_have_no_kernel():
    params = [nn.Parameter(torch.ones(3, device=device)) for device in ("meta", "cpu")]  # meta stands for a GPU
    vectors = {name: [torch.ones_like(p) for p in params] for name in "xg"}
    optimizer = polyak.ALIG([torch.nn.Parameter(torch.ones(3))])
    part = parts._by_kernel(cuda.CudaKernels, optimizer.param_groups[0], params, vectors)
    assert [(type(own), [p.device.type for p in own.params]) for own in part.parts] == [
        (cuda.CudaKernels, ["meta"]),
        (General, ["cpu"]),
    ]


class Constant(polyak.PolyakOptimizer):
    """A method whose ratio is a plain number."""

    def step_size(self, line, group):
        return 0.5, group["lr"]


@without_gpu
@pytest.mark.parametrize("backend", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
def test_a_ratio_that_is_a_plain_number(backend, interpreted):
    w = nn.Parameter(torch.ones(3))
    give([w], torch.ones(3))
    Constant([w], lr=1.0, **backend).step(loss=1.0)
    assert torch.equal(w.detach(), torch.full((3,), 0.5))


def test_a_graph_without_a_step_before_it_is_refused_in_a_sentence():
    pinned = cuda._Pinned()
    with pytest.raises(RuntimeError, match="to warm up"):
        pinned.take(3)


def test_without_triton_a_sentence_says_what_to_do():
    script = "import sys; sys.modules['triton'] = None\n" + (HERE / "one_step.py").read_text()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "fused=True needs Triton on CUDA: pip install triton, or leave fused out.\n"
