"""Checks from shapes alone that a model accepts its data, before any row of a recipe trains."""

import functools
from dataclasses import replace

import torch

from polyak_lab import models
from polyak_lab.config.run import Data, Run
from polyak_lab.data import Dataset, Split
from polyak_lab.data.parts import through_kernel
from polyak_lab.errors import LabError
from polyak_lab.objectives import OBJECTIVES
from polyak_lab.training.batches import batch_sizes
from polyak_lab.training.build import check_images, load_dataset


def check_fit(run: Run) -> None:
    """Load a resolved run's data, and refuse a model that cannot be trained on it.

    Raises:
        LabError: The data is missing, too small or of another kind, or the model does not accept
            its shape.
    """
    dataset = load_dataset(replace(run.data, kernel_width=None))
    check_images(run, dataset)
    training = run.training
    sizes = batch_sizes(len(dataset.train.targets), training.batch_size, training.max_batches)
    _check_shapes(run.data, run.model.name, min(sizes))


@functools.cache
def _check_shapes(data: Data, model: str, batch_size: int) -> None:
    """Call the model and its loss on the meta device, which allocates no memory."""
    dataset = load_dataset(replace(data, kernel_width=None))
    shape = _input_shape(dataset, data.kernel_width)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            network = models.build(model, shape, dataset.outputs, text=dataset.is_text)
            dtype = torch.int64 if dataset.is_text else torch.float32
            inputs = torch.empty(batch_size, *shape, dtype=dtype)
            targets = dataset.train.targets[:batch_size].to("meta")
            OBJECTIVES[dataset.loss].loss(network(inputs), targets)
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
