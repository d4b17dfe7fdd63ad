"""Hooks on loading: torch runs them before and after, and what they make of a state stands."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import polyak
from catalogue import each_buffered
from observe import SMALL_BALLS, give, random_like

pytestmark = pytest.mark.filterwarnings(SMALL_BALLS)


def taught(optimizer: Any, params: list[nn.Parameter], steps: int) -> None:
    for t in range(steps):
        give(params, *random_like(params, seed=t))
        optimizer.step(loss=1.0 / (1 + t))


def by_name(optimizer: Any, loaded: dict[str, Any]) -> dict[str, Any]:
    """Give every parameter the buffers that were saved under its name: torch's recipe for another model."""
    saved, own = loaded["param_groups"][0], copy.deepcopy(optimizer.state_dict())
    keys = dict(zip(saved["param_names"], saved["params"], strict=True))
    names = zip(own["param_groups"][0]["param_names"], own["param_groups"][0]["params"], strict=True)
    return {**own, "state": {key: loaded["state"][keys[name]] for name, key in names if name in keys}}


@each_buffered
def test_a_hook_may_load_the_buffers_by_name(method):
    shapes = {"a": 3, "b": 2, "c": 4}
    params = {name: nn.Parameter(torch.ones(n, dtype=torch.bfloat16)) for name, n in shapes.items()}
    saved = method.build([(name, params[name]) for name in "ab"], "nesterov")
    taught(saved, [params["a"], params["b"]], 1)
    content, others = saved.state_dict(), {name: nn.Parameter(p.detach().clone()) for name, p in params.items()}

    for order in ("ba", "cba"):
        optimizer = method.build([(name, others[name]) for name in order], "nesterov")
        optimizer.register_load_state_dict_pre_hook(by_name)
        optimizer.load_state_dict(content)
        assert others["c"] not in optimizer.state
        for name in "ab":
            ours, theirs = saved.state[params[name]], optimizer.state[others[name]]
            assert ours
            assert ours.keys() == theirs.keys()
            for key in ours:
                torch.testing.assert_close(theirs[key], ours[key], rtol=0, atol=0)
                assert theirs[key] is not ours[key]


@each_buffered
def test_what_a_hook_does_after_loading_stands(method):
    params = [nn.Parameter(torch.ones(n, dtype=torch.bfloat16)) for n in (3, 2)]
    optimizer = method.build(params, "nesterov")
    taught(optimizer, params, 2)
    content = optimizer.state_dict()

    def reset(loaded: Any) -> None:
        for buffers in loaded.state.values():
            for buffer in buffers.values():
                buffer.fill_(7.0)

    optimizer.register_load_state_dict_post_hook(reset)
    optimizer.load_state_dict(content)
    assert all((buffer == 7).all() for p in params for buffer in optimizer.state[p].values())


def test_a_state_of_what_is_no_parameter_is_kept_as_it_is():
    params = [nn.Parameter(torch.ones(3))]
    optimizer = polyak.ALIG(params, lr=0.1, momentum=0.9)
    taught(optimizer, params, 2)
    content = optimizer.state_dict()
    content["state"][17] = {"momentum_buffer": torch.ones(5)}
    optimizer.load_state_dict(content)
    assert optimizer.state[17]["momentum_buffer"].tolist() == [1.0] * 5
    taught(optimizer, params, 2)
