"""Builds the objects that train a resolved run."""

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
from polyak_lab.processes import group
from polyak_lab.training import batches
from polyak_lab.training.session import Session


def build_session(run: Run, dataset: Dataset | None = None) -> Session:
    """Build the objects of a resolved run; its data set is loaded unless it is given."""
    training = run.training
    device = torch.device(training.device)
    dataset = (dataset or group.on_all_ranks(lambda: load_dataset(run.data))).to(device)
    check_images(run, dataset)
    model = _build_model(run, dataset)
    sizes = batches.batch_sizes(len(dataset.train.targets), training.batch_size, training.max_batches)
    optimizer = optimizers.build(run.optimizer, model.parameters(), len(sizes))
    if training.cuda_graph and not run.schedule.is_constant:
        optimizers.keep_lr_on_device(optimizer, device)
    schedule = optimizers.build_schedule(run.schedule, optimizer, training.epochs, len(sizes))
    network: Any = torch.compile(model) if training.compile else model
    objective, replica = OBJECTIVES[dataset.loss], group.data_parallel(network)
    return Session(run, dataset, model, optimizer, schedule, objective, sizes, network, replica)


@functools.lru_cache(maxsize=1)
def load_dataset(data_config: Data) -> Dataset:
    """Load a data set; consecutive runs on the same data load it once."""
    root = None if data_config.root is None else Path(data_config.root)
    whole = data.load(data_config.name, root, context=data_config.context)
    dataset = parts(whole, data_config.holdout, data_config.train_size)
    width = data_config.kernel_width
    return dataset if width is None else through_kernel(dataset, width)


def check_images(run: Run, dataset: Dataset) -> None:
    """Refuse to crop and flip inputs that are not images."""
    protocol = run.training.eval_protocol
    if dataset.is_image or not (run.data.augment or protocol == AUGMENTED_VALIDATION):
        return
    kind = "text" if dataset.is_text else "vectors"
    raise LabError(f"{run.data.name} holds {kind}: crops and flips (augment, {AUGMENTED_VALIDATION}) need images.")


def _build_model(run: Run, dataset: Dataset) -> nn.Module:
    """Initialise the weights on the CPU, equal for every device, and move the model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(batches.derive_seed("weights", run.training.seed))
        model = models.build(run.model.name, dataset.shape, dataset.outputs, text=dataset.is_text)
    channels_last = run.training.channels_last and dataset.is_image
    options: dict[str, Any] = {  # a combination that torch's annotations leave out
        "device": torch.device(run.training.device),
        "memory_format": torch.channels_last if channels_last else torch.preserve_format,
    }
    return group.sync_batch_norm(model, options["device"].type).to(**options)
