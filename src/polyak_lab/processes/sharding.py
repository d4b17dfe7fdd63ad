"""FSDP2: each process stores a part of every parameter, of its gradient and of its optimizer state.

On one process there is nothing to shard, and the functions here leave the model as it is.
"""

from collections import Counter
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from polyak_lab.errors import RowError, first_line
from polyak_lab.processes import group


def shard(model: nn.Module, name: str, device: torch.device) -> nn.Module:
    """Shard a model over all processes, part by part, so that a device never holds the whole of a large one.

    Raises:
        RowError: FSDP2 does not support the model.
    """
    if group.world_size() == 1:
        return model
    from torch.distributed.device_mesh import init_device_mesh  # only here: they take long to import
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (group.world_size(),))
    try:
        for part in (*_parts(model), model):
            # Also the outermost: the weights must be sharded again after an evaluation.
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
    except Exception as error:  # scalar and non-contiguous parameters, each with an error of its own
        raise RowError(
            f'model {name!r} cannot be sharded by FSDP2 ({first_line(error)}): write training.distributed = "ddp".'
        ) from error
    return model


def whole(value: Tensor) -> Tensor:
    """Return the whole of a tensor of which each process may hold a part; all processes must call this."""
    gather = getattr(value, "full_tensor", None)
    return value if gather is None else cast(Tensor, gather())


def is_sharded(value: Tensor) -> bool:
    """Tell whether each process holds a part of a tensor."""
    return hasattr(value, "full_tensor")


def _parts(model: nn.Module) -> list[nn.Module]:
    """Return the parts to gather one after the other: those whose parameters no other part uses."""
    uses = Counter(_ids(model))
    return [part for part in _elements(model) if all(uses[i] == n for i, n in Counter(_ids(part)).items())]


def _ids(module: nn.Module) -> list[int]:
    return [id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False)]


def _elements(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the elements of the outermost lists and sequences of modules, such as the blocks of a transformer."""
    for child in module.children():
        is_element = isinstance(module, (nn.Sequential, nn.ModuleList))
        if is_element and not isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield child
        else:
            yield from _elements(child)
