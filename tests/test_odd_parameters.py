"""Parameters and gradients that are not dense floating-point tensors: left alone, or refused in a sentence."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import polyak
from catalogue import each_backend, each_method
from observe import SMALL_BALLS, changed, give, refused, snapshot

pytestmark = pytest.mark.filterwarnings(SMALL_BALLS)


def fresh(*sizes: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(size)) for size in sizes or (2,)]


@each_method
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float8_e4m3fn, torch.bool], ids=str)
def test_frozen_quantised_weights_are_left_alone(method, dtype):
    """An adapter is trained on top of them."""
    frozen = nn.Parameter(torch.ones(4).to(dtype), requires_grad=False)
    adapter = fresh()
    optimizer = method.build([frozen, *adapter], "nesterov", constraint=polyak.L2Ball(0.5))
    for _ in range(2):
        give(adapter, torch.ones(2))
        optimizer.step(loss=1.0)
    assert frozen.float().tolist() == [1.0] * 4
    assert frozen not in optimizer.state
    resumed = method.build([nn.Parameter(frozen.clone(), requires_grad=False), *fresh()], "nesterov")
    resumed.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["step_size"].dtype == torch.float32


@each_method
@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr", "to_mkldnn"])
def test_sparse_parameters_are_refused_at_construction(method, layout):
    sparse = nn.Parameter(getattr(torch.eye(3), layout)())
    with refused(TypeError, method.name, "moves dense parameters: leave the sparse one of shape (3, 3) out."):
        method.build([*fresh(), sparse])
    optimizer = method.build(fresh())
    with refused(TypeError, "the sparse one"):
        optimizer.add_param_group({"params": [sparse]})
    assert len(optimizer.param_groups) == 1


@each_method
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_parameters_are_refused_at_construction(method):
    nested = nn.Parameter(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))
    with refused(TypeError, method.name, "moves dense parameters: leave the nested one out."):
        method.build([*fresh(), nested])


@each_method
@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("where", ["optimizer", "group", "later"])
def test_a_constraint_on_a_lazy_module_is_refused_until_it_has_values(method, where):
    layer, ball = nn.LazyLinear(3), polyak.L2Ball(relative=2.0)
    with refused(ValueError, method.name, "L2Ball needs the values of all parameters", "run a batch through the model"):
        if where == "later":
            method.build(fresh()).add_param_group({"params": layer.parameters(), "constraint": ball})
        group = {"params": layer.parameters()}
        method.build([group | {"constraint": ball}] if where == "group" else [group], constraint=ball)
    method.build(layer.parameters())
    layer(torch.ones(1, 2))
    method.build(layer.parameters(), constraint=ball)


@each_method
def test_parameters_given_twice_are_refused_and_the_optimizer_is_as_before(method):
    params = fresh()
    optimizer = method.build(params, constraint=polyak.L2Ball(1.0))
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": params, "constraint": polyak.NonNegative()})
    give(params, torch.ones(2))
    optimizer.step(loss=1.0)
    assert len(optimizer.param_groups) == 1


@each_method
def test_no_parameters_are_refused(method):
    with pytest.raises(ValueError, match="empty parameter list"):
        method.build([])


@each_method
def test_sparse_gradients_are_refused_and_nothing_moves(method):
    dense, sparse = fresh(2), [nn.Parameter(torch.ones(3, 2))]
    optimizer = method.build([{"params": dense}, {"params": sparse}])
    give(dense, torch.ones(2))
    sparse[0].grad = torch.ones(3, 2).to_sparse()
    before = snapshot(optimizer)
    with refused(RuntimeError, "A gradient of shape (3, 2) is sparse", "sparse=False"):
        optimizer.step(loss=1.0)
    assert {name for name in changed(before, snapshot(optimizer)) if name in before} == set()


@each_backend
@pytest.mark.filterwarnings("ignore:Sparse")  # torch's own remarks about layouts that are not stable yet
@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr", "to_mkldnn"])
def test_gradients_of_parameters_that_are_not_dense_are_refused(layout, backend):
    w = nn.Parameter(getattr(torch.eye(3), layout)(), requires_grad=False)
    optimizer = polyak.ALIG([w], momentum=0.0, **backend)
    w.requires_grad_(True).grad = getattr(torch.eye(3), layout)()
    with refused(RuntimeError, "A gradient of shape (3, 3) is sparse", "sparse=False"):
        optimizer.step(loss=1.0)
