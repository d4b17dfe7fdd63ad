"""A step never waits for the device: it runs on `meta` tensors, which hold no numbers that could be read."""

import warnings
from contextlib import contextmanager

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import polyak
from catalogue import each_backend, each_form, each_method
from observe import SMALL_BALLS
from polyak._metrics import measurements
from problem import Problem

COPY, TO_COPY = torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default

SIZE = len(Problem.make().start)
CONSTRAINTS = {
    "none": None,
    "L2Ball": polyak.L2Ball(1.0),
    "L1Ball": polyak.L1Ball(1.0),
    "LInfBall": polyak.LInfBall(1.0),
    "Box": polyak.Box(-1.0, 2.0),
    "NonNegative": polyak.NonNegative(),
    "Simplex": polyak.Simplex(),
    "Halfspace": polyak.Halfspace(torch.ones(SIZE), 1.0),
    "Affine": polyak.Affine(torch.ones(1, SIZE), torch.ones(1)),
}
each_constraint = pytest.mark.parametrize("constraint", CONSTRAINTS.values(), ids=CONSTRAINTS.keys())
# On meta tensors no kernel applies and the default is the loop: `fused` and `foreach=False` would repeat it.
BACKENDS = {"default": {}, "foreach": {"foreach": True}}
each_backend_on_meta = pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS.keys())
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])


def _blocks(func, args, kwargs, result):
    """Whether an operation copies from the host and waits for the copy, which `meta` tensors alone do not show."""
    from_host = any(isinstance(arg, torch.Tensor) and arg.device.type == "cpu" for arg in args)
    to_device = isinstance(result, torch.Tensor) and result.is_meta
    waits = not (kwargs.get("non_blocking") or (func is COPY and True in args[2:]))
    return func in (COPY, TO_COPY) and from_host and to_device and waits


class NoBlockingCopies(TorchDispatchMode):
    """Raise when a tensor goes from the host to the device in the blocking way."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if _blocks(func, args, kwargs or {}, result):
            raise RuntimeError("A tensor was copied to the meta device in the blocking way.")
        return result


class NoNumbersFromTheHost(TorchFunctionMode):
    """Raise when a tensor is made on the device from a Python number, which CUDA does by a blocking copy."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], torch.Tensor) and result.is_meta:
            raise RuntimeError("A tensor was made on the meta device from a Python number: use torch.full.")
        return result


def _steps_on_meta(make, dtype=torch.float32, **given):
    """Make two steps, the second of which finds momentum buffers and memory in place."""
    problem = Problem.make()
    params = problem.params(dtype, "meta")
    optimizer = make(params)
    for t in range(2):
        loss = problem.loss(params, t)
        loss.backward()
        with NoBlockingCopies(), NoNumbersFromTheHost():
            optimizer.step(loss=loss, **given)
    assert all(entry.is_meta for entry in optimizer.last_step())
    with NoBlockingCopies(), NoNumbersFromTheHost():
        assert all(value.is_meta for value in measurements(optimizer).values())
    return optimizer


def test_every_constraint_of_the_library_is_crossed():
    public = {getattr(polyak, name) for name in polyak.__all__} - {polyak.Constraint, polyak.metrics}
    known = {kind for kind in public if issubclass(kind, polyak.Constraint)}
    assert {type(constraint) for constraint in CONSTRAINTS.values()} - {type(None)} == known


@each_constraint
@each_backend_on_meta
@each_form
def test_a_step_reads_nothing(method, form, backend, constraint):
    _steps_on_meta(lambda params: method.build(params, form, constraint=constraint, **backend))


@each_dtype
@each_backend_on_meta
@each_form
def test_a_step_reads_nothing_in_any_dtype(method, form, backend, dtype):
    ball = polyak.L2Ball(1.0)
    optimizer = _steps_on_meta(lambda params: method.build(params, form, constraint=ball, **backend), dtype)
    wide = torch.promote_types(dtype, torch.float32)
    assert optimizer.param_groups[0]["step_size"].dtype == wide


@each_constraint
@each_dtype
def test_a_constraint_reads_nothing_in_any_dtype(dtype, constraint):
    _steps_on_meta(lambda params: polyak.ALIG(params, constraint=constraint), dtype)


@each_backend_on_meta
@each_form
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_tensors_for_the_cap_and_for_the_bound_are_not_read(method, form, backend, device):
    scalar = torch.ones((), device=device)
    _steps_on_meta(lambda params: method.build(params, form, lr=scalar, **backend), lower_bound=scalar)


@each_backend_on_meta
@each_form
def test_groups_with_caps_and_constraints_of_their_own_are_not_read(method, form, backend):
    def make(params):
        ball = {"params": params[:2], "lr": 0.1, "constraint": polyak.L1Ball(1.0)}
        box = {"params": params[2:], "constraint": polyak.Box(0.0, 1.0)}
        return method.build([ball, box], form, **backend)

    _steps_on_meta(make)


@each_form
def test_a_watched_loss_is_not_read(method, form):
    problem = Problem.make()
    params = problem.params(torch.float32, "meta")
    optimizer = method.build(params, form)
    (optimizer.watch(problem.loss(params)) / 2).backward()
    assert optimizer.step().is_meta


class OnDevice:
    """A scaler whose scale, like that of torch.amp.GradScaler, is to be had on the device through `scale` alone."""

    def scale(self, tensor):
        return 2.0**16 * tensor

    def get_scale(self):
        raise AssertionError("the scale was read")


@each_method
def test_the_scale_of_a_watched_loss_is_not_read(method):
    problem = Problem.make()
    params = problem.params(torch.float32, "meta")
    optimizer = method.build(params)
    scaler = OnDevice()
    scaler.scale(optimizer.watch(problem.loss(params), scaler)).backward()
    assert optimizer.step().is_meta


@each_form
def test_a_complex_parameter_is_not_read(method, form):
    w = torch.nn.Parameter(torch.empty(3, dtype=torch.complex64, device="meta"))
    optimizer = method.build([w], form, constraint=polyak.L2Ball(1.0))
    loss = (w.abs() - 1).square().sum()
    loss.backward()
    assert optimizer.step(loss=loss).is_meta


class ReadsTheLoss(polyak.PolyakOptimizer):
    """A method that waits for the device."""

    def __init__(self, params, lr=1.0):
        super().__init__(params, lr)

    def step_size(self, line, group):
        return line.gap / line.slope, min(group["lr"], line.value.item())


class ReadsTheNorm(polyak.Constraint):
    """A constraint that waits for the device."""

    def project_(self, params):
        if torch.cat([p.reshape(-1) for p in params]).norm() > 1:
            raise NotImplementedError


def test_a_method_that_reads_a_number_is_caught():
    problem = Problem.make()
    params = problem.params()
    problem.steps(ReadsTheLoss(params), params, 2)  # where there are numbers it works
    with pytest.raises(RuntimeError, match="meta"):
        _steps_on_meta(ReadsTheLoss)


@each_method
def test_a_constraint_that_reads_a_number_is_caught(method):
    with pytest.raises(RuntimeError, match="meta"):
        _steps_on_meta(lambda params: method.build(params, constraint=ReadsTheNorm()))


@pytest.mark.gpu
@pytest.mark.filterwarnings(SMALL_BALLS)
@each_constraint
@each_backend
@each_form
def test_a_step_on_cuda_does_not_synchronise(method, form, backend, constraint):
    problem = Problem.make()
    params = problem.params(torch.float32, "cuda")
    optimizer = method.build(params, form, constraint=constraint, **backend)
    problem.steps_without_reading(optimizer, params, 1)
    optimizer.zero_grad()
    loss = problem.loss(params)
    loss.backward()
    with waits_are_errors():
        optimizer.step(loss=loss)


@contextmanager
def waits_are_errors():
    with warnings.catch_warnings(action="ignore"):  # torch says that this mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_the_mode_that_finds_waits_finds_one():
    one = torch.ones((), device="cuda")
    with waits_are_errors(), pytest.raises(RuntimeError, match="synchronizing"):
        one.item()


@pytest.mark.gpu
@each_method
def test_parameters_on_the_cpu_wait_for_a_loss_on_cuda(method):
    w, one = torch.nn.Parameter(torch.ones(2)), torch.ones((), device="cuda")
    w.grad = torch.ones(2)
    optimizer = method.build([w])
    torch.cuda._sleep(1_000_000_000)  # the loss is computed half a second after step() is called
    optimizer.step(loss=3 * one)
    assert optimizer.last_step().loss == 3
