"""fused=True on the CPU: the compiled kernels make the moves of the paper, on every layout, and say what they lack."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import polyak
from catalogue import METHODS, each_form, each_kernel_form, each_method
from observe import SMALL_BALLS, give, random_like, refused
from polyak._backend import cpu
from problem import Problem

pytestmark = pytest.mark.filterwarnings(SMALL_BALLS)

SIZES = ((1 << 19) + 3, 5, (1 << 17) + 1)
LIKE = (torch.empty(3, 2), torch.empty(4))


def pair(method, form, like=LIKE, **options):
    """Return the loop and the kernel on equal parameters."""
    found = []
    for backend in ({"foreach": False}, {"fused": True}):
        params = [nn.Parameter(value) for value in random_like(like, seed=7)]
        found.append(method.build(params, form, **{"lr": 0.1, **options}, **backend))
    return found


def step(optimizers, t, loss=1.0, without=()):
    for optimizer in optimizers:
        params = optimizer.param_groups[0]["params"]
        grads = random_like(params, seed=t)
        give(params, *(None if i in without else grad for i, grad in enumerate(grads)))
        optimizer.step(loss=loss)


def momentum(optimizer):
    return [buffer for state in optimizer.state.values() for buffer in state.values()]


def assert_equal(optimizers, rtol=1e-5, atol=1e-6):
    loop, kernel = optimizers
    for p, q in zip(loop.param_groups[0]["params"], kernel.param_groups[0]["params"], strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=atol)
    torch.testing.assert_close(momentum(loop), momentum(kernel), rtol=rtol, atol=atol)


@each_form
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=str)
def test_the_kernel_moves_as_the_loop_does(method, form, dtype, rtol):
    ends = []
    for backend in ({"foreach": False}, {"fused": True}):
        problem = Problem.make()
        params = problem.params(dtype)
        optimizer = method.build(params, form, lr=0.1, constraint=polyak.L2Ball(2.0), **backend)
        ends.append(problem.steps(optimizer, params, method.kernel_steps))
    assert np.linalg.norm(ends[0] - ends[1]) <= rtol * np.linalg.norm(ends[0])


@each_form
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_bits_are_those_of_the_loop_where_the_cap_decides(method, form, dtype):
    shapes = [torch.empty(size, dtype=dtype) for size in (1, 7, 63, 8193, 40_001)]
    loop, kernel = pair(method, form, shapes)
    for t in range(20):
        step((loop, kernel), t, loss=1e9)
    (group, *_), averages = loop.param_groups, {"gradient_average", "square_average"}
    if "square_average" not in loop.buffers(group):
        assert all(map(torch.equal, group["params"], kernel.param_groups[0]["params"]))
        assert all(map(torch.equal, momentum(loop), momentum(kernel)))
        return
    for states in zip(loop.state.values(), kernel.state.values(), strict=True):
        assert all(torch.equal(*(state[name] for state in states)) for name in averages & states[0].keys())
    vectors = [[*optimizer.param_groups[0]["params"], *momentum(optimizer)] for optimizer in (loop, kernel)]
    for one, other in zip(*vectors, strict=True):  # torch's root is not always the nearest number
        assert (one - other).norm() <= 50 * torch.finfo(dtype).eps * one.norm()


@each_kernel_form
def test_every_step_is_made_by_the_kernels_alone(method, form, monkeypatch):
    monkeypatch.setattr(cpu, "as_general", None)
    for options in ({}, *method.trials):
        params = [nn.Parameter(value) for value in random_like(LIKE, seed=7)]
        optimizer = method.build(params, form, constraint=polyak.L2Ball(2.0), **{**options, "fused": True})
        step((optimizer,), 0)  # makes the buffers
        for t, loss in enumerate((1.0, 1e9, math.nan, 1.0)):
            give(params, *random_like(params, seed=t))
            with Operations() as operations:
                optimizer.step(loss=loss)
            climbs = {"clone", "_foreach_add_", "copy_"} if method.evaluations > 1 else set()
            assert operations.on_tensors_of(params) <= climbs


@each_form
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("backend", [{}, {"fused": True}], ids=["default", "fused"])
def test_tensors_larger_than_a_piece_are_moved_everywhere(method, form, backend, layout):
    ends = []
    for chosen in ({"foreach": False}, backend):
        image = torch.ones(3, 5, 211, 199).contiguous(memory_format=layout)
        params = [nn.Parameter(image), *(nn.Parameter(torch.ones(size)) for size in SIZES)]
        optimizer = method.build(params, form, lr=0.1, constraint=polyak.L2Ball(500.0), **chosen)
        for t in range(3):
            give(params, *(grad.to(memory_format=torch.preserve_format) for grad in random_like(params, seed=t)))
            optimizer.step(loss=1e6)
        ends.append(torch.cat([p.detach().reshape(-1) for p in params]))
    torch.testing.assert_close(ends[0], ends[1], rtol=2e-6, atol=2e-6)


@each_method
def test_a_parameter_without_a_gradient_keeps_its_momentum(method):
    optimizers = pair(method, "nesterov")
    for t, without in enumerate([(), (1,), (1,), (), (0,), ()]):
        step(optimizers, t, without=without)
    assert_equal(optimizers)


@each_method
def test_steps_of_length_zero_and_of_any_other_length_keep_the_momentum(method):
    optimizers = pair(method, "nesterov", lr=1e3)
    for t, loss in enumerate([1.0, 0.0, 1e-12, 10.0, 1e-30, 1e4, 1.0]):
        step(optimizers, t, loss=loss)
        assert_equal(optimizers, atol=1e-4)


@each_form
@pytest.mark.parametrize("backend", [{}, {"fused": True}], ids=["default", "fused"])
@pytest.mark.parametrize("loss", [1e9, 1.0, 1e-6, 1e-12, 1e-20])
def test_the_momentum_is_right_for_steps_of_any_length(method, form, backend, loss):
    ends = []
    for chosen in ({"foreach": False}, backend):
        params = [nn.Parameter(torch.zeros(size)) for size in ((1 << 17) + 1, 3)]
        optimizer = method.build(params, form, lr=1e3, **chosen)
        for t in range(3):
            give(params, *random_like(params, seed=t))
            optimizer.step(loss=loss)
        ends.append([*params, *momentum(optimizer)])
    for loop, other in zip(*ends, strict=True):
        loop, other = loop.double(), other.double()
        assert loop.norm() > 0 or method.evaluations > 1  # the loss at the climbed point lies below its bound
        assert (loop - other).norm() <= 1e-5 * loop.norm()


@each_form
@pytest.mark.parametrize("backend", [{}, {"fused": True}], ids=["default", "fused"])
def test_gradients_may_lie_otherwise_than_their_parameters(method, form, backend):
    ends = []
    for chosen in ({"foreach": False}, backend):
        params = [nn.Parameter(value) for value in random_like([torch.empty(7, 3, 41, 200), torch.empty(7, 5)], seed=3)]
        optimizer = method.build(params, form, lr=0.1, constraint=polyak.L2Ball(100.0), **chosen)
        for t in range(3):
            image, matrix = random_like(params, seed=t)
            give(params, image.contiguous(memory_format=torch.channels_last), matrix.t().contiguous().t())
            optimizer.step(loss=1e3)
        ends.append([*params, *momentum(optimizer)])
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-5, atol=1e-6)


@each_method
@pytest.mark.parametrize("backend", [{}, {"fused": True}], ids=["default", "fused"])
def test_memory_that_changed_between_steps_is_not_taken_for_what_it_was(method, backend):
    w = nn.Parameter(torch.ones(8))
    optimizer = method.build([w], "nesterov", lr=0.1, **backend)
    give([w], torch.ones(8))
    optimizer.step(loss=1.0)
    w.data = torch.ones(100_000)  # the gradient and the momentum are still those of 8 numbers
    with pytest.raises(RuntimeError, match=r"must match the size|inconsistent tensor size|a gradient of size"):
        optimizer.step(loss=1.0)


@each_form
@pytest.mark.parametrize("backend", [{}, {"foreach": False}, {"fused": True}], ids=["default", "loop", "fused"])
@pytest.mark.parametrize("still", ["frozen", "without gradient"])
def test_a_ball_holds_what_does_not_move_as_well(method, form, backend, still):
    params = [nn.Parameter(torch.full((size,), 0.1)) for size in (40_000, 5, 40_000)]
    params[2].requires_grad_(still != "frozen")
    optimizer = method.build(params, form, lr=0.1, constraint=polyak.L2Ball(20.0), **backend)
    give(params, *random_like(params[:2]), None)
    optimizer.step(loss=1e6)
    held = params[:2] if still == "frozen" else params
    norm = float(torch.cat([p.detach().double() for p in held]).norm())
    assert norm <= 20.0 * (1 + 1e-4)
    averaged = hasattr(method.cls, "eval") and form != "none"  # z lies on the sphere, an average of it and x inside
    assert averaged or norm == pytest.approx(20.0, rel=1e-4)
    assert bool((params[2] == params[2][0]).all())
    assert (float(params[2][0].detach()) == pytest.approx(0.1)) == (still == "frozen")


@pytest.mark.parametrize("cls", [polyak.IAM, polyak.IAMAdam])
def test_a_heavy_ball_without_momentum_moves_a_large_tensor(cls):
    ends = []
    for backend in ({"foreach": False}, {}, {"fused": True}):
        w = nn.Parameter(torch.ones(100_000))
        give([w], torch.full_like(w, 0.5))
        cls([w], momentum=0.0, **backend).step(loss=1.0)
        ends.append(w.detach())
    for end in ends[1:]:
        torch.testing.assert_close(end, ends[0], rtol=1e-6, atol=1e-6)


def test_the_adjusted_form_without_momentum_is_the_plain_move():
    optimizers = pair(METHODS[0], "none", adjusted_momentum=True)
    for t in range(3):
        step(optimizers, t)
    assert_equal(optimizers)


@each_form
def test_a_state_goes_from_one_backend_to_the_other(method, form):
    loop, kernel = pair(method, form)
    for t in range(3):
        step((loop, kernel), t)
    for source in (loop, kernel):
        for backend in ({"foreach": False}, {"fused": True}):
            params = [nn.Parameter(p.detach().clone()) for p in source.param_groups[0]["params"]]
            other = method.build(params, form, lr=0.1)
            other.load_state_dict(copy.deepcopy(source.state_dict()))
            other.param_groups[0].update({"foreach": None, "fused": None, **backend})
            step((other,), 3)
            expected, _ = pair(method, form)
            for t in range(4):
                step((expected,), t)
            assert_equal((expected, other))


def test_two_backends_at_once_are_refused():
    w = nn.Parameter(torch.ones(2))
    with refused(ValueError, "ALIG", "fused=True and foreach=True", "choose one"):
        polyak.ALIG([w], fused=True, foreach=True)
    with refused(ValueError, "fused=True and foreach=True"):
        polyak.ALIG([{"params": [w], "foreach": True}], fused=True)


def test_a_device_without_a_kernel_is_refused():
    with torch._subclasses.FakeTensorMode():
        w = nn.Parameter(torch.ones(2, device="xpu"))
    with refused(ValueError, "ALIG", "no kernel for the device xpu:0", "leave it out"):
        polyak.ALIG([w], fused=True)


@pytest.mark.parametrize("backend", [{}, {"foreach": False}, {"fused": True}], ids=["default", "loop", "fused"])
@pytest.mark.parametrize("sizes", [(40_000_000,), (131_072,), (1000,) * 131], ids=["large", "medium", "many small"])
def test_the_norm_of_a_long_gradient_is_right(sizes, backend):
    params = [nn.Parameter(torch.zeros(size)) for size in sizes]
    give(params, *(torch.full_like(p, 0.1) for p in params))  # equal numbers lose most digits when they are added
    optimizer = polyak.ALIG(params, **backend)
    optimizer.step(loss=1.0)
    expected = sum(sizes) * float(torch.tensor(0.1)) ** 2
    assert float(optimizer.last_step().grad_sq_norm) == pytest.approx(expected, rel=1e-5)


@each_form
def test_no_operation_makes_a_tensor_of_more_than_a_mebibyte(method, form):
    for backend in ({}, {"fused": True}):
        params = [nn.Parameter(torch.ones(size)) for size in (3_000_000, 10, 300_000)]
        optimizer = method.build(params, form, lr=0.1, constraint=polyak.L2Ball(10.0), **backend)
        for t in range(2):  # the first step also makes the momentum buffers
            give(params, *random_like(params, seed=t))
            with Largest() as largest:
                optimizer.step(loss=1.0)
        in_pieces = "square_average" in optimizer.buffers(optimizer.param_groups[0]) or method.makes_direction
        bound = 4 << 20 if in_pieces else 1 << 20  # a direction is made for a piece at a time
        assert largest.bytes <= (12_000_000 if method.evaluations > 1 else bound)  # a copy of x, to come back to


@each_form
def test_autograd_sees_that_the_parameters_have_changed(method, form):
    for backend in ({}, {"fused": True}):
        w = nn.Parameter(torch.ones(3))
        optimizer = method.build([w], form, lr=0.1, constraint=polyak.L2Ball(1.0), **backend)
        loss = (w * w).sum()
        give([w], torch.ones(3))
        optimizer.step(loss=1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("backend", [{}, {"fused": True}], ids=["default", "fused"])
def test_a_projected_point_stays_as_it_is_when_training_goes_on(backend):
    params = [nn.Parameter(value) for value in random_like([torch.empty(size) for size in SIZES], seed=3)]
    for t in range(3):
        optimizer = polyak.ALIG(params, momentum=0.9, constraint=polyak.L2Ball(9.0), **backend)
        give(params, *random_like(params, seed=t))
        optimizer.step(loss=1e6)
        ended = [p.detach().clone() for p in params]
        polyak.ALIG(params, constraint=polyak.L2Ball(9.0), **backend)
        assert all(map(torch.equal, params, ended))


def test_tensors_without_a_kernel_are_moved_beside_those_with_one():
    ends = []
    for backend in ({"foreach": False}, {"fused": True}):
        negated = torch.tensor([1 + 2j]).conj().imag  # its memory holds the number with the other sign
        assert negated.is_neg()
        assert negated.is_contiguous()
        values = (torch.ones(4), torch.ones(4, dtype=torch.float16), torch.ones(1))
        params = [nn.Parameter(value.clone()) for value in values]
        optimizer = polyak.ALIG(params, momentum=0.9, constraint=polyak.L2Ball(3.0), **backend)
        for _ in range(3):
            give(params, *values[:2], None)
            params[2].grad = negated
            optimizer.step(loss=1.0)
        ends.append(torch.cat([p.detach().float() for p in params]))
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-6)


class Operations(TorchDispatchMode):
    """Note the operations of torch and the sizes of the tensors that they take."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        sizes = {tensor.numel() for tensor in filter(is_tensor, tree_leaves(args))}
        self.found.append((func.overloadpacket.__name__, sizes))
        return func(*args, **(kwargs or {}))

    def on_tensors_of(self, params):
        own = {p.numel() for p in params} - {1}
        return {name for name, sizes in self.found if sizes & own} - {"detach", "view", "alias"}


class Largest(TorchDispatchMode):
    """Note the size of the largest tensor that an operation makes."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if is_tensor(t)}
        for made in filter(is_tensor, tree_leaves(result)):
            if made.untyped_storage().data_ptr() not in known:
                self.bytes = max(self.bytes, made.untyped_storage().nbytes())
        return result


def is_tensor(value):
    return isinstance(value, torch.Tensor)
