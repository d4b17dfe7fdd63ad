"""torch's own optimizer tests, by their upstream names, on our classes: what a step does.

They are TestOptimRenewed of test/test_optim.py, torch 2.13. The machinery is torch's, imported; the bodies are our own.
The end of a test run lists which of them do not apply, and why.
"""

# ruff: noqa: PT009, PT027 (upstream's assertions compare nested states of tensors)

from __future__ import annotations

import copy
import math

import torch
from torch.nn import Parameter
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.testing._internal.common_device_type import instantiate_device_type_tests
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, TensorTracker, optims
from torch.testing._internal.common_utils import TestCase, parametrize

from conformance import INFOS, affine, all_inputs, closure_of, trained


class TestOptimRenewed(TestCase):
    @optims(INFOS)
    def test_optim_infos_do_not_specify_global_cliquey_kwargs(self, device, dtype, optim_info):
        for given in optim_info.optim_inputs_func(device=device):
            self.assertFalse({"foreach", "fused", "differentiable"} & given.kwargs.keys())

    @optims(INFOS)
    def test_errors(self, device, dtype, optim_info):
        for bad in optim_info.optim_error_inputs_func(device=device, dtype=dtype):
            given = bad.optimizer_error_input
            params = [Parameter(torch.randn(2, 3))] if given.params is None else given.params
            self.assertEqual(bad.error_on, OptimizerErrorEnum.CONSTRUCTION_ERROR)
            if issubclass(bad.error_type, Warning):
                with self.assertWarnsRegex(bad.error_type, bad.error_regex):
                    optim_info.optim_cls(params, **given.kwargs)
            else:
                with self.assertRaisesRegex(bad.error_type, bad.error_regex):
                    optim_info.optim_cls(params, **given.kwargs)

    @parametrize("contiguous", [True, False])
    @parametrize("with_schedulers", [True, False])
    @optims(INFOS)
    def test_forloop_goes_right_direction(self, device, dtype, optim_info, contiguous, with_schedulers):
        self._goes_right_direction(optim_info, contiguous, with_schedulers, foreach=False)

    @parametrize("with_schedulers", [True, False])
    @optims(INFOS)
    def test_foreach_goes_right_direction(self, device, dtype, optim_info, with_schedulers):
        self._goes_right_direction(optim_info, True, with_schedulers, foreach=True)

    def _goes_right_direction(self, optim_info, contiguous, with_schedulers, foreach):
        for schedulers in optim_info.scheduler_inputs if with_schedulers else ([],):
            for given in optim_info.optim_inputs_func("cpu"):
                weight, bias, x = affine()
                if not contiguous:
                    weight = Parameter(torch.stack([weight.detach(), weight.detach()], dim=-1)[..., 0])
                    bias = Parameter(torch.stack([bias.detach(), bias.detach()], dim=-1)[..., 0])
                kwargs = {**copy.deepcopy(given.kwargs), "foreach": foreach}
                if with_schedulers and math.isinf(kwargs.get("lr", math.inf)):
                    kwargs["lr"] = 0.01  # no cap is not schedulable
                optimizer = optim_info.optim_cls([weight, bias], **kwargs)
                self._descends(optimizer, closure_of(optimizer, weight, bias, x), [s(optimizer) for s in schedulers])

    def _descends(self, optimizer, closure, schedulers=()):
        first = closure().item()
        for _ in range(20):
            loss = optimizer.step(closure)
            for scheduler in schedulers:
                scheduler.step(*([loss] if isinstance(scheduler, ReduceLROnPlateau) else []))
        self.assertLess(closure().item(), first)

    @parametrize("foreach", [False, True])
    @optims(INFOS)
    def test_param_group_with_lrscheduler_goes_right_direction(self, device, dtype, optim_info, foreach):
        for schedulers in optim_info.scheduler_inputs:
            weight, bias, x = affine()
            groups = [{"params": [weight]}, {"params": [bias], "lr": 0.01}]
            required = optim_info.optim_inputs_func("cpu")[0].kwargs
            optimizer = optim_info.optim_cls(groups, **{**required, "lr": 0.01, "foreach": foreach})
            self._descends(optimizer, closure_of(optimizer, weight, bias, x), [s(optimizer) for s in schedulers])

    @parametrize("dim", [0, 1])
    @optims(INFOS)
    def test_tensor_lr(self, device, dtype, optim_info, dim):
        for given in all_inputs(optim_info):
            kwargs = {name: value for name, value in given.kwargs.items() if name != "lr"}
            ends = [trained(optim_info, {**kwargs, "lr": lr})[2] for lr in (1e-3, torch.full([1] * dim, 1e-3))]
            self.assertEqual(*ends)

    @parametrize("foreach", [False, True])
    @optims(INFOS)
    def test_param_groups_lr(self, device, dtype, optim_info, foreach):
        """A cap of 1e-28 moves nothing, while the group's gradient stays in the norm: the loss depends on it."""
        for given in optim_info.optim_inputs_func("cpu"):
            weight, bias, x = affine()
            irrelevant = Parameter(torch.randn(2))
            before = irrelevant.detach().clone()
            groups = [{"params": [weight]}, {"params": [bias, irrelevant], "lr": 1e-28}]
            kwargs = {**given.kwargs, "lr": 0.01, "foreach": foreach}
            optimizer = optim_info.optim_cls(groups, **kwargs)
            closure = closure_of(optimizer, weight, bias, x)
            first = closure().item()
            for _ in range(20):
                optimizer.step(closure)
                irrelevant.grad = torch.rand_like(irrelevant)
            self.assertLess(closure().item(), first)
            self.assertEqual(irrelevant, before)

    @optims(INFOS)
    def test_param_groups_weight_decay(self, device, dtype, optim_info):
        """Upstream tests that it acts; here it must be refused, with the constraint to use instead."""
        weight, bias, _ = affine()
        required = optim_info.optim_inputs_func("cpu")[0].kwargs
        with self.assertRaisesRegex(ValueError, r"L2Ball\(radius\)"):
            optim_info.optim_cls([{"params": [weight]}, {"params": [bias], "weight_decay": 0.1}], **required)

    @parametrize("foreach", [False, True])
    @optims(INFOS)
    def test_complex(self, device, dtype, optim_info, foreach):
        for given in optim_info.optim_inputs_func("cpu"):
            kwargs = {**given.kwargs, "foreach": foreach}
            whole = Parameter(torch.randn(10, 5, dtype=torch.complex64))
            parts = Parameter(torch.view_as_real(whole.detach()).clone())
            twins = [optim_info.optim_cls([p], **copy.deepcopy(kwargs)) for p in (whole, parts)]
            for _ in range(3):
                whole.grad = torch.randn_like(whole)
                parts.grad = torch.view_as_real(whole.grad).clone()
                for optimizer in twins:
                    optimizer.step()
                self.assertEqual(torch.view_as_real(whole), parts)

    @optims(INFOS)
    def test_complex_2d(self, device, dtype, optim_info):
        for given in all_inputs(optim_info):
            whole = Parameter(torch.randn(2, dtype=torch.complex128))  # an uncapped step amplifies rounding
            real, imag = Parameter(whole.detach().real.clone()), Parameter(whole.detach().imag.clone())
            first, second = (optim_info.optim_cls(p, **copy.deepcopy(given.kwargs)) for p in ([whole], [real, imag]))
            for _ in range(10):
                for optimizer, point in ((first, whole), (second, torch.complex(real, imag))):
                    optimizer.zero_grad()
                    loss = (1 - point[0]).abs().square() + 10 * (point[1] - point[0].square()).abs().square()
                    loss.backward()
                    optimizer.step(loss=loss)
                self.assertEqual(torch.complex(real, imag), whole)

    @optims(INFOS)
    def test_foreach_matches_forloop(self, device, dtype, optim_info):
        """With a frozen layer, gradients that are None, and a 0-dim parameter, step by step."""
        for given in optim_info.optim_inputs_func("cpu"):
            tracker = TensorTracker({"rtol": 1e-6, "atol": 1e-8})
            for foreach in (False, True):
                self._track(
                    optim_info, {**copy.deepcopy(given.kwargs), "foreach": foreach}, tracker, record=not foreach
                )
            self.assertTrue(tracker.all_popped())

    def _track(self, optim_info, kwargs, tracker, record):
        torch.manual_seed(0)
        layers = [torch.nn.Linear(2, 3), torch.nn.Sigmoid(), torch.nn.Linear(3, 1), torch.nn.Sigmoid()]
        model = torch.nn.Sequential(*layers).double()
        model[2].weight.requires_grad_(False)
        scale = Parameter(torch.tensor(1.5, dtype=torch.double))
        params = [*model.parameters(), scale]
        optimizer = optim_info.optim_cls(params, **kwargs)
        x = torch.arange(6, dtype=torch.double).reshape(3, 2) / 10
        for i in range(7):
            optimizer.zero_grad()
            loss = (scale * model(x)).square().sum()
            loss.backward()
            if i == 3:
                optimizer.zero_grad(set_to_none=True)
            optimizer.step(loss=loss)
            state = [optimizer.state[p][name] for p in params for name in optimizer.state.get(p, {})]
            for tensor in [*params, *state, optimizer.param_groups[0]["step_size"]]:
                if record:
                    tracker.add(tensor)
                else:
                    tracker.pop_check_set(tensor, self)

    @optims(INFOS)
    def test_set_default_dtype_works_with_foreach(self, device, dtype, optim_info):
        default = torch.get_default_dtype()
        for given in all_inputs(optim_info):
            try:
                torch.set_default_dtype(torch.float64)
                weight, bias, x = (t.detach().float() for t in affine())
                params = [Parameter(weight), Parameter(bias)]
                optimizer = optim_info.optim_cls(params, **copy.deepcopy(given.kwargs))
                for _ in range(3):
                    optimizer.step(closure_of(optimizer, *params, x))
                self.assertEqual({p.dtype for p in params}, {torch.float32})
            finally:
                torch.set_default_dtype(default)

    @optims(INFOS)
    def test_step_is_noop_when_params_have_no_grad(self, device, dtype, optim_info):
        for given in all_inputs(optim_info):
            params = [Parameter(torch.randn(2, 3)) for _ in range(2)]
            before = [p.detach().clone() for p in params]
            optimizer = optim_info.optim_cls(params, **copy.deepcopy(given.kwargs))
            optimizer.step()
            self.assertEqual(before, params)

    @optims(INFOS)
    def test_step_is_noop_for_zero_grads(self, device, dtype, optim_info):
        for given in all_inputs(optim_info):
            p = Parameter(torch.randn(5, 1))
            before = p.detach().clone()
            optimizer = optim_info.optim_cls([p], **copy.deepcopy(given.kwargs))
            p.grad = torch.zeros_like(p)
            optimizer.step()
            self.assertEqual(before, p)


instantiate_device_type_tests(TestOptimRenewed, globals(), only_for="cpu")
