"""The objects of one run: data, model, optimizer, schedule."""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils import deterministic

from polyak_lab import batches, data, graph, models, optimizers, processes, step
from polyak_lab.batches import Batch
from polyak_lab.config import Data, Run
from polyak_lab.data import Dataset
from polyak_lab.data.parts import parts, through_kernel
from polyak_lab.errors import LabError
from polyak_lab.objectives import OBJECTIVES, Objective
from polyak_lab.step import Step

AUGMENTED_VALIDATION = "sps-augmented-validation"


@dataclass(frozen=True)
class Session:
    """What a run trains, and with what; a checkpoint is its state."""

    run: Run
    dataset: Dataset
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler | None
    objective: Objective
    batch_sizes: Sequence[int]
    """Samples in every batch of an epoch, over all processes."""
    network: Callable[[Tensor], Tensor]
    """The model as it is called: itself, or compiled."""
    replica: Callable[[Tensor], Tensor]
    """The network as it is called in training: among several processes, one whose backward averages gradients."""

    make_step: Callable[["Session", Batch, float], Step]

    def outputs(self, inputs: Tensor) -> Tensor:
        """Call the network, in bfloat16 where the run asks for it; losses are always taken in float32."""
        kind = torch.device(self.run.training.device).type
        network = self.replica if self.model.training else self.network
        with torch.autocast(kind, torch.bfloat16, enabled=self.run.training.precision == "bfloat16"):
            outputs = network(inputs)
        return outputs.float()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Average the loss over the samples; where there are none it is 0, and still depends on every weight."""
        return self.objective.loss(outputs, targets) if len(targets) else outputs.sum()

    @property
    def steps_per_epoch(self) -> int:
        """Count the batches of an epoch."""
        return len(self.batch_sizes)

    def training_batches(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of one epoch."""
        training = self.run.training
        return islice(
            batches.training_batches(
                self.dataset, training.batch_size, training.shuffle_seed, epoch, self.run.data.augment
            ),
            self.steps_per_epoch,
        )

    def test_batches(self, epoch: int, augmented: bool = False) -> Iterator[Batch]:
        """Yield the test split, as it is unless the SPS authors' protocol asks for crops and flips."""
        training = self.run.training
        device = torch.device(training.device)
        shifts = batches.generator(device, "validation", training.shuffle_seed, epoch) if augmented else None
        return islice(batches.evaluation_batches(self.dataset, self.dataset.test, shifts), training.max_batches)

    def validation_batches(self) -> Iterator[Batch]:
        """Yield the training samples that were held out."""
        if self.dataset.validation is None:
            return iter(())
        limit = self.run.training.max_batches
        return islice(batches.evaluation_batches(self.dataset, self.dataset.validation), limit)

    def state_dict(self) -> dict[str, Any]:
        """Collect everything that the next epoch depends on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a stored state."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])


def start(run: Run, data_set: Dataset | None = None) -> Session:
    """Build the objects of a resolved run, on the data set it names or on one that is at hand."""
    training = run.training
    device = torch.device(training.device)
    found = (data_set or processes.together(lambda: dataset(run.data))).to(device)
    _check_images(run, found)
    layout = torch.channels_last if training.channels_last and found.is_image else torch.preserve_format
    model = processes.with_shared_statistics(_model(run, found), device.type).to(device, memory_format=layout)
    sizes = batches.sizes(len(found.train.targets), training.batch_size, training.max_batches)
    optimizer = optimizers.build(run.optimizer, model.parameters(), len(sizes))
    if training.cuda_graph and not run.schedule.is_constant:
        graph.keep_lr_on_device(optimizer, device)
    schedule = optimizers.build_schedule(run.schedule, optimizer, training.epochs, len(sizes))
    network: Any = torch.compile(model) if training.compile else model
    objective, replica = OBJECTIVES[found.loss], processes.replica(network)
    make_step = graph.Recorder() if training.cuda_graph else step.make
    return Session(run, found, model, optimizer, schedule, objective, sizes, network, replica, make_step)


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


def _check_images(run: Run, dataset: Dataset) -> None:
    protocol = run.training.eval_protocol
    if dataset.is_image or not (run.data.augment or protocol == AUGMENTED_VALIDATION):
        return
    held = "text" if dataset.is_text else "vectors"
    raise LabError(f"{run.data.name} holds {held}: crops and flips (augment, {AUGMENTED_VALIDATION}) need images.")


@contextmanager
def settled(device: str, threads: int | None) -> Iterator[None]:
    """Make torch repeat itself bit by bit while a run trains, and leave it afterwards as it was."""
    if device.startswith("cuda"):  # cuBLAS reads this when it starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory
    threads_before = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = False  # a write per temporary, and it decides nothing
    torch.set_num_threads(threads or threads_before)
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        torch.use_deterministic_algorithms(before[0])
        deterministic.fill_uninitialized_memory = before[1]
