"""torch's own optimizer tests, by their upstream names, on our classes: states, names and hooks.

They are TestOptimRenewed of test/test_optim.py, torch 2.13. The machinery is torch's, imported; the bodies are our own.
The end of a test run lists which of them do not apply, and why.
"""

# ruff: noqa: PT009 (upstream's assertions compare nested states of tensors)

from __future__ import annotations

import copy
import io

import torch
from torch.nn import Parameter
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.testing._internal.common_device_type import instantiate_device_type_tests
from torch.testing._internal.common_optimizers import optims
from torch.testing._internal.common_utils import TestCase, parametrize

from conformance import INFOS, affine, all_inputs, closure_of, trained


class TestOptimRenewed(TestCase):
    @optims(INFOS)
    def test_optimizer_can_be_printed(self, device, dtype, optim_info):
        for given in all_inputs(optim_info):
            optimizer, _, _ = trained(optim_info, given.kwargs, steps=1)
            self.assertIn(optim_info.optim_cls.__name__, repr(optimizer))

    @parametrize("is_named", [False, True])
    @optims(INFOS)
    def test_state_dict_deterministic(self, device, dtype, optim_info, is_named):
        """A twin that loads the state goes the same way and ends with the same state; what was loaded is untouched."""
        for given in all_inputs(optim_info):
            optimizer, closure, params = trained(optim_info, given.kwargs)
            twins = [Parameter(p.detach().clone()) for p in params]
            named = list(zip(("weight", "bias"), twins, strict=True)) if is_named else twins
            twin = optim_info.optim_cls(named, **copy.deepcopy(given.kwargs))
            state = copy.deepcopy(optimizer.state_dict())
            twin.load_state_dict(state)
            self.assertEqual(state, optimizer.state_dict())
            other = closure_of(twin, *twins, affine()[2])
            for _ in range(5):
                optimizer.step(closure)
                twin.step(other)
                self.assertEqual(params, twins)
            self.assertEqual(self._unnamed(optimizer.state_dict()), self._unnamed(twin.state_dict()))

    def _unnamed(self, state):
        groups = [{k: v for k, v in group.items() if k != "param_names"} for group in state["param_groups"]]
        return {**state, "param_groups": groups}

    @optims(INFOS)
    def test_can_load_older_state_dict(self, device, dtype, optim_info):
        for given in all_inputs(optim_info):
            optimizer, closure, _ = trained(optim_info, given.kwargs)
            older = copy.deepcopy(optimizer.state_dict())
            for group in older["param_groups"]:
                del group["foreach"]
            optimizer.load_state_dict(older)
            optimizer.step(closure)

    @parametrize("is_named_from", [False, True])
    @parametrize("is_named_to", [False, True])
    @optims(INFOS)
    def test_can_load_from_to_named_state_dict(self, device, dtype, optim_info, is_named_from, is_named_to):
        for given in all_inputs(optim_info):
            pair = []
            for named in (is_named_from, is_named_to):
                weight, bias, x = affine()
                params = [("weight", weight), ("bias", bias)] if named else [weight, bias]
                optimizer = optim_info.optim_cls(params, **copy.deepcopy(given.kwargs))
                pair.append((optimizer, closure_of(optimizer, weight, bias, x)))
            (source, closure), (target, other) = pair
            source.step(closure)
            target.load_state_dict(copy.deepcopy(source.state_dict()))
            named = is_named_from or is_named_to  # torch keeps the names it has
            self.assertEqual("param_names" in target.state_dict()["param_groups"][0], named)
            target.step(other)

    @optims(INFOS)
    def test_save_load_equality_with_weights_only(self, device, dtype, optim_info):
        for given in all_inputs(optim_info):
            optimizer, _, _ = trained(optim_info, given.kwargs)
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            self.assertEqual(optimizer.state_dict(), torch.load(file, weights_only=True))

    @optims(INFOS)
    def test_state_dict_pre_hook(self, device, dtype, optim_info):
        optimizer, _, _ = trained(optim_info, all_inputs(optim_info)[0].kwargs)
        optimizer.register_state_dict_pre_hook(lambda o: setattr(o, "test", True))
        optimizer.state_dict()
        self.assertTrue(optimizer.test)

    @optims(INFOS)
    def test_state_dict_post_hook(self, device, dtype, optim_info):
        optimizer, _, _ = trained(optim_info, all_inputs(optim_info)[0].kwargs)
        optimizer.register_state_dict_post_hook(lambda o, state: {**state, "ran": True})
        self.assertTrue(optimizer.state_dict()["ran"])

    @optims(INFOS)
    def test_state_dict_pre_post_hook(self, device, dtype, optim_info):
        optimizer, _, _ = trained(optim_info, all_inputs(optim_info)[0].kwargs)
        optimizer.register_state_dict_pre_hook(lambda o: setattr(o, "test", True))
        optimizer.register_state_dict_post_hook(lambda o, state: {**state, "ran": True})
        self.assertTrue(optimizer.state_dict()["ran"] and optimizer.test)

    @optims(INFOS)
    def test_load_state_dict_pre_hook(self, device, dtype, optim_info):
        optimizer, _, _ = trained(optim_info, all_inputs(optim_info)[0].kwargs)
        state = optimizer.state_dict()

        def halve(o, given):
            given = copy.deepcopy(given)
            given["param_groups"][0]["lr"] = 0.5
            return given

        optimizer.register_load_state_dict_pre_hook(halve)
        optimizer.load_state_dict(state)
        self.assertEqual(optimizer.param_groups[0]["lr"], 0.5)

    @optims(INFOS)
    def test_load_state_dict_post_hook(self, device, dtype, optim_info):
        optimizer, _, _ = trained(optim_info, all_inputs(optim_info)[0].kwargs)
        optimizer.register_load_state_dict_post_hook(lambda o: setattr(o, "ran", True))
        optimizer.load_state_dict(optimizer.state_dict())
        self.assertTrue(optimizer.ran)

    @optims(INFOS)
    def test_load_state_dict_pre_post_hook(self, device, dtype, optim_info):
        optimizer, _, _ = trained(optim_info, all_inputs(optim_info)[0].kwargs)
        order = []
        optimizer.register_load_state_dict_pre_hook(lambda o, state: order.append("pre"))
        optimizer.register_load_state_dict_post_hook(lambda o: order.append("post"))
        optimizer.load_state_dict(optimizer.state_dict())
        self.assertEqual(order, ["pre", "post"])

    @optims(INFOS)
    def test_step_pre_hook(self, device, dtype, optim_info):
        self._hooked(optim_info, ["register_step_pre_hook"], ["own"])

    @optims(INFOS)
    def test_step_post_hook(self, device, dtype, optim_info):
        self._hooked(optim_info, ["register_step_post_hook"], ["own"])

    @optims(INFOS)
    def test_step_all_hooks(self, device, dtype, optim_info):
        calls: list[str] = []
        handles = [
            register_optimizer_step_pre_hook(lambda *_: calls.append("global pre")),
            register_optimizer_step_post_hook(lambda *_: calls.append("global post")),
        ]
        try:
            names = ["register_step_pre_hook", "register_step_post_hook"]
            self._hooked(optim_info, names, ["own", "global pre", "global post", "own"], calls)
        finally:
            for handle in handles:
                handle.remove()

    def _hooked(self, optim_info, names, expected, calls=None):
        calls = [] if calls is None else calls
        for given in all_inputs(optim_info):
            optimizer, closure, _ = trained(optim_info, given.kwargs, steps=0)
            handles = [getattr(optimizer, name)(lambda *_: calls.append("own")) for name in names]
            calls.clear()
            optimizer.step(closure)
            self.assertEqual(sorted(calls), sorted(expected))
            for handle in handles:
                handle.remove()
            calls.clear()
            optimizer.step(closure)
            self.assertNotIn("own", calls)

    @optims(INFOS)
    def test_deepcopy_copies_all_public_attrs(self, device, dtype, optim_info):
        for given in all_inputs(optim_info):
            optimizer, _, _ = trained(optim_info, given.kwargs)
            public = [{name for name in vars(o) if name[0] != "_"} for o in (optimizer, copy.deepcopy(optimizer))]
            self.assertEqual(*public)

    @optims(INFOS)
    def test_non_empty_state(self, device, dtype, optim_info):
        for given in all_inputs(optim_info):
            optimizer, _, params = trained(optim_info, given.kwargs)
            expected = {"momentum_buffer"} if given.kwargs.get("momentum") else set()
            self.assertEqual([set(optimizer.state.get(p, {})) for p in params], [expected, expected])


instantiate_device_type_tests(TestOptimRenewed, globals(), only_for="cpu")
