"""From a resolved run to the objects that train it."""

import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polyak_lab import data, models, optimizers
from polyak_lab.config.run import AUGMENTED_VALIDATION, Data, Run
from polyak_lab.data import Dataset
from polyak_lab.data.parts import parts, through_kernel
from polyak_lab.errors import LabError
from polyak_lab.objectives import OBJECTIVES
from polyak_lab.processes import group as processes
from polyak_lab.training import batches
from polyak_lab.training.session import Session


def start(run: Run, data_set: Dataset | None = None) -> Session:
    """Build the objects of a resolved run, on the data set it names or on one that is at hand."""
    training = run.training
    device = torch.device(training.device)
    found = (data_set or processes.together(lambda: dataset(run.data))).to(device)
    check_images(run, found)
    layout = torch.channels_last if training.channels_last and found.is_image else torch.preserve_format
    moved: dict[str, Any] = {"device": device, "memory_format": layout}  # torch's annotations know no such pair
    model = processes.with_shared_statistics(_model(run, found), device.type).to(**moved)
    sizes = batches.sizes(len(found.train.targets), training.batch_size, training.max_batches)
    optimizer = optimizers.build(run.optimizer, model.parameters(), len(sizes))
    if training.cuda_graph and not run.schedule.is_constant:
        optimizers.keep_lr_on_device(optimizer, device)
    schedule = optimizers.build_schedule(run.schedule, optimizer, training.epochs, len(sizes))
    network: Any = torch.compile(model) if training.compile else model
    objective, replica = OBJECTIVES[found.loss], processes.replica(network)
    return Session(run, found, model, optimizer, schedule, objective, sizes, network, replica)


@functools.lru_cache(maxsize=1)
def dataset(chosen: Data) -> Dataset:
    """Read a data set once for all runs in a row that need it."""
    root = None if chosen.root is None else Path(chosen.root)
    found = parts(data.load(chosen.name, root, context=chosen.context), chosen.holdout, chosen.train_size)
    return found if chosen.kernel_width is None else through_kernel(found, chosen.kernel_width)


def _model(run: Run, dataset: Dataset) -> nn.Module:
    """Draw the weights on the CPU, so that every device starts from the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(batches.stream_seed("weights", run.training.seed))
        return models.build(run.model.name, dataset.shape, dataset.outputs, text=dataset.is_text)


def check_images(run: Run, dataset: Dataset) -> None:
    """Refuse crops and flips of what is no image."""
    protocol = run.training.eval_protocol
    if dataset.is_image or not (run.data.augment or protocol == AUGMENTED_VALIDATION):
        return
    held = "text" if dataset.is_text else "vectors"
    raise LabError(f"{run.data.name} holds {held}: crops and flips (augment, {AUGMENTED_VALIDATION}) need images.")
