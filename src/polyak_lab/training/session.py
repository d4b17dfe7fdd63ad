"""The objects of one run: data, model, optimizer, schedule."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from polyak_lab.config.run import Run
from polyak_lab.data import Dataset
from polyak_lab.objectives import Objective
from polyak_lab.training import batches
from polyak_lab.training.batches import Batch


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
                self.dataset, training.batch_size, training.order_seed, epoch, self.run.data.augment
            ),
            self.steps_per_epoch,
        )

    def test_batches(self, epoch: int, augmented: bool = False) -> Iterator[Batch]:
        """Yield the test split, as it is unless the SPS authors' protocol asks for crops and flips."""
        training = self.run.training
        device = torch.device(training.device)
        shifts = batches.generator(device, "validation", training.order_seed, epoch) if augmented else None
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
