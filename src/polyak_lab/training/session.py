"""The objects of one run: data, model, optimizer and schedule."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from polyak_lab.config.run import Run
from polyak_lab.data import Dataset, Streamed
from polyak_lab.objectives import Objective
from polyak_lab.optimizers import StepForm
from polyak_lab.training import batches, streams
from polyak_lab.training.batches import Batch


@dataclass(frozen=True)
class Session:
    """The objects that train a run; a checkpoint stores their state."""

    run: Run
    dataset: Dataset | Streamed
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler | None
    objective: Objective
    batch_sizes: Sequence[int]
    """Samples in each batch of an epoch, over all ranks."""
    network: Callable[[Tensor], Tensor]
    """The model as it is evaluated, compiled if the run requests it without a CUDA graph."""
    replica: Callable[[Tensor], Tensor]
    """The network used in training: compiled if the run requests it, wrapped in DDP with several processes."""
    step_form: StepForm = "plain"
    """How the optimizer steps."""

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
        return (batch for batch, _ in self.sized_batches(epoch))

    def sized_batches(self, epoch: int) -> Iterator[tuple[Batch, int]]:
        """Yield the batches of an epoch, and the samples of each over all ranks."""
        training = self.run.training
        if isinstance(self.dataset, Streamed):
            return streams.training_stream(self.dataset, training, epoch)
        args = training.batch_size, training.order_seed, epoch, self.run.data.augment
        all_batches = islice(batches.training_batches(self.dataset, *args), self.steps_per_epoch)
        return zip(all_batches, self.batch_sizes, strict=True)

    def test_batches(self, epoch: int, augmented: bool = False) -> Iterator[Batch]:
        """Yield the test split, cropped and flipped if `augmented`."""
        training = self.run.training
        device = torch.device(training.device)
        crops = batches.generator(device, "validation", training.order_seed, epoch) if augmented else None
        return self._evaluation_batches(self.dataset.test, crops)

    def validation_batches(self) -> Iterator[Batch]:
        """Yield the held-out training samples."""
        return iter(()) if self.dataset.validation is None else self._evaluation_batches(self.dataset.validation)

    def _evaluation_batches(self, part: Any, crops: torch.Generator | None = None) -> Iterator[Batch]:
        training = self.run.training
        if isinstance(self.dataset, Streamed):
            return islice(streams.evaluation_stream(self.dataset, part, training), training.max_batches)
        return islice(batches.evaluation_batches(self.dataset, part, crops), training.max_batches)

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
