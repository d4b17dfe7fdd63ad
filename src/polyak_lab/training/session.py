"""The objects of one run: data, model, optimizer and schedule."""

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
    """The objects that train a run; a checkpoint stores their state."""

    run: Run
    dataset: Dataset
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler | None
    objective: Objective
    batch_sizes: Sequence[int]
    """Samples in each batch of an epoch, over all ranks."""
    network: Callable[[Tensor], Tensor]
    """The model, compiled if the run requests it."""
    replica: Callable[[Tensor], Tensor]
    """The network used in training, wrapped in DDP with several processes."""

    def outputs(self, inputs: Tensor) -> Tensor:
        """Call the network, in bfloat16 if the run requests it; the outputs are float32."""
        device_type = torch.device(self.run.training.device).type
        network = self.replica if self.model.training else self.network
        use_bfloat16 = self.run.training.precision == "bfloat16"
        with torch.autocast(device_type, torch.bfloat16, enabled=use_bfloat16):
            outputs = network(inputs)
        return outputs.float()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss; without samples it is 0 and has a gradient for every weight."""
        return self.objective.loss(outputs, targets) if len(targets) else outputs.sum()

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches in an epoch."""
        return len(self.batch_sizes)

    def training_batches(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch."""
        training, augment = self.run.training, self.run.data.augment
        all_batches = batches.training_batches(self.dataset, training.batch_size, training.order_seed, epoch, augment)
        return islice(all_batches, self.steps_per_epoch)

    def test_batches(self, epoch: int, augmented: bool = False) -> Iterator[Batch]:
        """Yield the test split, cropped and flipped if `augmented`."""
        training = self.run.training
        device = torch.device(training.device)
        crops = batches.generator(device, "validation", training.order_seed, epoch) if augmented else None
        all_batches = batches.evaluation_batches(self.dataset, self.dataset.test, crops)
        return islice(all_batches, training.max_batches)

    def validation_batches(self) -> Iterator[Batch]:
        """Yield the held-out training samples."""
        if self.dataset.validation is None:
            return iter(())
        all_batches = batches.evaluation_batches(self.dataset, self.dataset.validation)
        return islice(all_batches, self.run.training.max_batches)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the next epoch depends on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state that `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
