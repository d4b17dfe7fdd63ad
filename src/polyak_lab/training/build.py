"""Builds the objects that train a resolved run."""

import functools
from typing import Any

import torch
from torch import nn

from polyak_lab import data, models, objectives, optimizers, schedules
from polyak_lab.config.run import AUGMENTED_VALIDATION, Data, Run, Training
from polyak_lab.data import Dataset, Streamed
from polyak_lab.data.parts import parts, through_kernel
from polyak_lab.errors import LabError
from polyak_lab.processes import group
from polyak_lab.processes.sharding import shard
from polyak_lab.training import batches, streams
from polyak_lab.training.cuda_graph import is_replayed
from polyak_lab.training.session import Session


def build_session(run: Run, dataset: Dataset | Streamed | None = None) -> Session:
    """Build the objects of a resolved run; its data set is loaded unless it is given."""
    training = run.training
    device = torch.device(training.device)
    dataset = (dataset or group.on_all_ranks(lambda: load_dataset(run.data))).to(device)
    check_images(run, dataset)
    model = _build_model(run, dataset)
    sizes = sizes_of_batches(dataset, training)
    optimizer = optimizers.build(run.optimizer, model.parameters(), len(sizes))
    replayed = is_replayed(training)
    if replayed and not run.schedule.is_constant:
        optimizers.keep_lr_on_device(optimizer, device)
    schedule = schedules.build_schedule(run.schedule, optimizer, training.epochs, len(sizes))
    trained: Any = torch.compile(model) if training.compile else model
    network = model if replayed else trained  # a graph holds batches of one size: compile for that alone
    objective = objectives.build(run.objective, dataset.loss, run.data.name)
    replica = trained if training.distributed == "fsdp2" else group.data_parallel(trained)
    form = optimizers.step_form(run.optimizer)
    return Session(run, dataset, model, optimizer, schedule, objective, sizes, network, replica, form)


def sizes_of_batches(dataset: Dataset | Streamed, training: Training) -> list[int]:
    """Return the number of samples in each batch of an epoch."""
    if isinstance(dataset, Streamed):
        return streams.streamed_sizes(dataset, training)
    return batches.batch_sizes(len(dataset.train.targets), training.batch_size, training.max_batches)


@functools.lru_cache(maxsize=1)
def load_dataset(data_config: Data) -> Dataset | Streamed:
    """Load a data set; consecutive runs on the same data load it once."""
    dataset = parts(data.load_chosen(data_config), data_config.holdout, data_config.train_size)
    width = data_config.kernel_width
    return dataset if width is None else through_kernel(dataset, width)


def check_images(run: Run, dataset: Dataset | Streamed) -> None:
    """Refuse to crop and flip inputs that are not images."""
    protocol = run.training.eval_protocol
    if dataset.is_image or not (run.data.augment or protocol == AUGMENTED_VALIDATION):
        return
    kind = "text" if dataset.is_text else "vectors"
    raise LabError(f"{run.data.name} holds {kind}: crops and flips (augment, {AUGMENTED_VALIDATION}) need images.")


def _build_model(run: Run, dataset: Dataset | Streamed) -> nn.Module:
    """Initialise the weights on the CPU, equal for every device, and move the model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(batches.derive_seed("weights", run.training.seed))
        chosen, text = run.model, dataset.is_text
        model = models.build(chosen.name, dataset.shape, dataset.outputs, text=text, options=chosen.options)
    channels_last = run.training.channels_last and dataset.is_image
    options: dict[str, Any] = {  # a combination that torch's annotations leave out
        "device": torch.device(run.training.device),
        "memory_format": torch.channels_last if channels_last else torch.preserve_format,
    }
    model = group.sync_batch_norm(model, options["device"].type)
    if run.training.distributed == "fsdp2":
        model = shard(model, chosen.name, options["device"])
    return model.to(**options)
