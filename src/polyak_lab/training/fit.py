"""Whether a model fits its data, found on shapes alone: every row of a recipe is checked before one trains."""

import functools
from dataclasses import replace

import torch

from polyak_lab import models
from polyak_lab.config.run import Data, Run
from polyak_lab.data import Dataset, Split
from polyak_lab.data.parts import through_kernel
from polyak_lab.errors import LabError
from polyak_lab.objectives import OBJECTIVES
from polyak_lab.training import batches, build


def check_fit(run: Run) -> None:
    """Read a resolved run's data, and refuse a model that cannot be trained on it.

    Raises:
        LabError: The data is missing, too small or of another kind, or the model does not take its shape.
    """
    data_set = build.dataset(replace(run.data, kernel_width=None))
    build.check_images(run, data_set)
    sizes = batches.sizes(len(data_set.train.targets), run.training.batch_size, run.training.max_batches)
    _check_shapes(run.data, run.model.name, min(sizes))


@functools.cache
def _check_shapes(chosen: Data, model: str, batch_size: int) -> None:
    """Run a batch of no content through the model, on torch's device without memory."""
    data_set = build.dataset(replace(chosen, kernel_width=None))
    shape = _shape(data_set, chosen.kernel_width)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            network = models.build(model, shape, data_set.outputs, text=data_set.is_text)
            inputs = torch.empty(batch_size, *shape, dtype=torch.int64 if data_set.is_text else torch.float32)
            targets = data_set.train.targets[:batch_size].to("meta")
            OBJECTIVES[data_set.loss].loss(network(inputs), targets)
    except LabError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")[:120]
        raise LabError(
            f"Model {model!r} cannot be trained on {chosen.name!r}, in batches of {batch_size} or more inputs of shape "
            f"{shape} ({reason}): choose another model or batch_size."
        ) from error


def _shape(data_set: Dataset, kernel_width: float | None) -> tuple[int, ...]:
    """Return the shape of one input; through a kernel it has a number for every training sample."""
    if kernel_width is None:
        return data_set.shape
    one = Split(data_set.train.inputs[:1], data_set.train.targets[:1])
    through_kernel(replace(data_set, train=one, test=one, validation=None), kernel_width)  # refuses what has no kernel
    return (len(data_set.train.targets),)
