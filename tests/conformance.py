"""Our classes as torch's own OptimizerInfo, for the conformance tests.

An adapter supplies a loss of 1 where torch's tests call a bare step().
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.lr_scheduler import ExponentialLR, LinearLR, ReduceLROnPlateau, StepLR
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerInfo,
    OptimizerInput,
    _get_optim_inputs_including_global_cliquey_kwargs,
    get_error_inputs_for_all_optims,
)

import polyak

# Upstream tests that test something our classes do not have.
ABSENT = "no method has the option "
NOT_APPLICABLE = {
    "test_capturable": ABSENT + "capturable: every step is; tests/test_compile.py captures one in a CUDA graph",
    "test_fused_error_on_params_on_meta": "on meta every backend makes the same step",
    "test_grad_scaling_autocast_fused_optimizers": "no grad_scale; tests/test_loss_doors.py has the GradScaler",
    "test_rosenbrock_sparse": "sparse gradients are refused",
    "test_second_order_optims_return_consistent_types": "about LBFGS",
    "test_differentiable": ABSENT + "differentiable",
    "test_cpu_load_state_dict": "one device; tests/test_contract_resume.py has the rest",
    "test_mixed_device_dtype": "needs a GPU; torch runs it for SGD and Adam kernels",
    "test_peak_memory_foreach": "needs a GPU; tests/fused has the temporaries",
    "test_state_dict_with_cuda_params": "needs a GPU",
    "test_defaults_changed_to_foreach": "wants a module function _multi_tensor_<name>: both backends are one function",
    "test_foreach_large_tensor": "needs a GPU with 72 GB",
    "test_load_nontensor_step": "no per-parameter state named 'step'",
    "test_can_load_older_state_dict (maximize, capturable)": "no method has those flags",
}


def adapted(cls: type[polyak.PolyakOptimizer]) -> type[polyak.PolyakOptimizer]:
    """Return the class with a step that supplies a loss of 1 where none is given."""

    def step(self: polyak.PolyakOptimizer, closure: Any = None, **given: Any) -> Any:
        if closure is None:
            given.setdefault("loss", 1.0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*moves nothing, as no parameter has a gradient")  # torch's tests do so
            return polyak.PolyakOptimizer.step(
                self, closure, **given
            )  # not super(): torch wraps each class's step once

    return type(cls.__name__, (cls,), {"step": step})


def inputs(*options: dict[str, Any]) -> Any:
    """Return the function that lists the options of a method, each with a plain and a tensor cap."""

    def listed(device: Any, dtype: Any = None) -> list[OptimizerInput]:
        caps: tuple[dict[str, Any], ...] = ({}, {"lr": 1e-2}, {"lr": torch.tensor(0.001)})
        return [OptimizerInput(None, {**base, **cap}, str(base)) for base in options for cap in caps]

    return listed


def error_inputs(required: dict[str, Any]) -> Any:
    """Return torch's own bad inputs, with our words where torch leaves the check to the class."""

    def listed(device: Any, dtype: Any) -> list[ErrorOptimizerInput]:
        found = get_error_inputs_for_all_optims(device, dtype)
        for bad in found:
            given = bad.optimizer_error_input
            if given.desc == "Tensor lr must be 1-element":
                bad.error_regex = "a tensor of one such number"
            given.kwargs = {**required, **given.kwargs}
        bad_momentum = OptimizerInput(None, {**required, "momentum": -0.5}, "momentum is in [0, 1)")
        return [*found, ErrorOptimizerInput(bad_momentum, error_type=ValueError, error_regex="momentum=-0.5 is not")]

    return listed


SCHEDULERS = (
    [lambda opt: StepLR(opt, gamma=0.9, step_size=10)],
    [lambda opt: LinearLR(opt, start_factor=0.4, end_factor=0.8, total_iters=4), lambda opt: ExponentialLR(opt, 0.99)],
    [lambda opt: StepLR(opt, gamma=0.9, step_size=10), lambda opt: ReduceLROnPlateau(opt)],
)


def info(cls: type[polyak.PolyakOptimizer], required: dict[str, Any], *options: dict[str, Any]) -> OptimizerInfo:
    settings = [{**required, **given} for given in ({}, {"momentum": 0.5}, {"lower_bound": -1.0}, *options)]
    return OptimizerInfo(
        adapted(cls),
        optim_inputs_func=inputs(*settings),
        optim_error_inputs_func=error_inputs(required),
        scheduler_inputs=SCHEDULERS,
        supported_impls=("foreach",),
        not_og_supported_flags=(),
        step_requires_closure=True,
    )


INFOS = [
    info(
        polyak.ALIG,
        {},
        {"momentum": 0.5, "adjusted_momentum": True},
        {"eps": 0.1},
        {"momentum": 0.5, "float32_momentum": True},
    ),
    info(polyak.SPS, {"c": 1.0}, {"c": 2.0}),  # c = 0.5 mirrors at the minimum of a quadratic
    info(polyak.SmoothSPS, {"steps_per_epoch": 10, "init_step_size": 0.01}, {"gamma": 1.5}),
]


def affine(like: Tensor | None = None, rows: int = 10, columns: int = 5) -> tuple[Parameter, Parameter, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(shape, generator=generator) for shape in ((rows, columns), (rows,), (columns,)))
    return Parameter(weight), Parameter(bias), x


def closure_of(optimizer: Any, weight: Tensor, bias: Tensor, x: Tensor) -> Any:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weight.mv(x) + bias).square().sum()
        loss.backward()
        return loss

    return closure


def all_inputs(optim_info: OptimizerInfo) -> list[OptimizerInput]:
    """Every option with both backends; upstream lists foreach for GPUs alone, ours runs on the CPU, too."""
    listed = _get_optim_inputs_including_global_cliquey_kwargs("cpu", None, optim_info)
    return [OptimizerInput(None, {**i.kwargs, "foreach": foreach}, i.desc) for i in listed for foreach in (False, True)]


def trained(optim_info: OptimizerInfo, kwargs: dict[str, Any], steps: int = 5) -> tuple[Any, Any, list[Parameter]]:
    weight, bias, x = affine()
    optimizer = optim_info.optim_cls([weight, bias], **copy.deepcopy(kwargs))
    closure = closure_of(optimizer, weight, bias, x)
    for _ in range(steps):
        optimizer.step(closure)
    return optimizer, closure, [weight, bias]
