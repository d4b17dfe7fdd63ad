"""Checks that a model accepts its data, before any row of a recipe trains.

What is built in is checked from shapes alone; the user's own code is tried on one batch.
"""

import functools
import math
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from polyak_lab import models, objectives
from polyak_lab.config.run import Data, Model, Objective, Run
from polyak_lab.data import Dataset, Split, Streamed
from polyak_lab.data.parts import through_kernel
from polyak_lab.data.seeded import seeded
from polyak_lab.errors import LabError, RowError, typed_line
from polyak_lab.imports import is_path, own_code, own_traceback
from polyak_lab.training import streams
from polyak_lab.training.batches import as_model_input
from polyak_lab.training.build import check_images, load_dataset, sizes_of_batches


def check_fit(run: Run) -> None:
    """Load a resolved run's data, and refuse a model that cannot be trained on it.

    Raises:
        LabError: The data is missing, too small or of another kind, or the model does not accept
            its shape.
    """
    dataset = load_dataset(replace(run.data, kernel_width=None))  # not seen through it, which takes long
    check_images(run, dataset)
    smallest = min(sizes_of_batches(dataset, run.training))
    if any(map(is_path, (run.data.name, run.model.name, run.objective.name))):
        if run.training.cuda_graph and isinstance(dataset, Streamed):
            raise LabError("training.cuda_graph does not go here: the data is not in memory.")
        _try_batch(run.data, run.model, run.objective, smallest, run.optimizer.l2_ball_relative is not None)
    else:
        _check_shapes(run.data, run.model.name, run.objective, smallest)


@functools.cache
def _try_batch(data: Data, model: Model, objective: Objective, batch_size: int, is_ball_relative: bool) -> None:
    """Compute the gradient of a batch on the CPU, with another model than the one that is trained."""
    dataset = load_dataset(data)
    loss = objectives.build(objective, dataset.loss, data.name)
    with seeded(0):
        inputs, targets = _some_batch(dataset, batch_size)
        text = dataset.is_text
        network = models.build(model.name, dataset.shape, dataset.outputs, text=text, options=model.options)
        try:
            outputs = _outputs(network, model.name, inputs)
            if is_ball_relative:
                _check_norm(network, model.name)
            with own_code(f"objective {objective.name!r}") if is_path(objective.name) else nullcontext():
                value = loss.loss(outputs, targets)
            _check_loss(value, objective.name or dataset.loss or "")
            value.backward()
            _check_gradient(network, model.name, objective.name or dataset.loss or "")
        except LabError:
            raise
        except Exception as error:
            shape = tuple(inputs.shape)
            raise RowError(
                f"model {model.name!r} cannot be trained on {data.name!r}, in a batch of shape {shape}: it raised "
                f"{typed_line(error)}.",
                own_traceback(error),
            ) from error


def _outputs(network: nn.Module, name: str, inputs: Tensor) -> Tensor:
    outputs = network(inputs)
    if not isinstance(outputs, Tensor):
        raise RowError(
            f"model {name!r} returned {type(outputs).__name__}: its forward must return a tensor of outputs."
        )
    return outputs.float()


def _check_norm(network: nn.Module, model: str) -> None:
    norm = float(get_total_norm(list(network.parameters())))
    if not 0 < norm < math.inf:
        raise RowError(
            f"The initial weights of model {model!r} have the norm {norm:g}, of which l2_ball_relative cannot be a "
            "multiple: write l2_ball with a radius."
        )


def _check_gradient(network: nn.Module, model: str, objective: str) -> None:
    if all(parameter.grad is None for parameter in network.parameters()):
        raise RowError(
            f"objective {objective!r} returned a loss with no gradient for any weight of model {model!r}: compute it "
            "from the outputs."
        )


def _some_batch(dataset: Dataset | Streamed, size: int) -> tuple[Tensor, Tensor]:
    if isinstance(dataset, Streamed):
        return streams.first_batch(dataset, size)
    rows = slice(0, size)
    return as_model_input(dataset, dataset.train.inputs[rows]), dataset.train.targets[rows]


def _check_loss(value: object, name: str) -> None:
    if not isinstance(value, Tensor) or value.dim():
        what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise RowError(f"objective {name!r} returned {what}: it must return the mean loss, one number.")
    if not value.requires_grad:
        raise RowError(
            f"objective {name!r} returned a loss with no gradient: compute it with torch from the outputs, without "
            "detach(), item() or argmax(), and leave weights to train in the model."
        )


@functools.cache
def _check_shapes(data: Data, model: str, objective: Objective, batch_size: int) -> None:
    """Call the model and its loss on the meta device, which allocates no memory."""
    dataset = load_dataset(replace(data, kernel_width=None))
    if isinstance(dataset, Streamed):
        raise TypeError(dataset.name)
    shape = _input_shape(dataset, data.kernel_width)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            network = models.build(model, shape, dataset.outputs, text=dataset.is_text)
            dtype = torch.int64 if dataset.is_text else torch.float32
            inputs = torch.empty(batch_size, *shape, dtype=dtype)
            targets = dataset.train.targets[:batch_size].to("meta")
            objectives.build(objective, dataset.loss, data.name).loss(network(inputs), targets)
    except LabError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")[:120]
        raise LabError(
            f"Model {model!r} cannot be trained on {data.name!r}, in batches of {batch_size} or more inputs of shape "
            f"{shape} ({reason}): choose another model or batch_size."
        ) from error


def _input_shape(dataset: Dataset, kernel_width: float | None) -> tuple[int, ...]:
    """Return the shape of one input; a kernel turns it into one number per training sample."""
    if kernel_width is None:
        return dataset.shape
    one = Split(dataset.train.inputs[:1], dataset.train.targets[:1])
    # Refuses images and text.
    through_kernel(replace(dataset, train=one, test=one, validation=None), kernel_width)
    return (len(dataset.train.targets),)
