"""What every loop is measured against: the objective of a step, computed by other code at the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import polyak

STEPS = 5
ROWS = 4  # of a micro-batch
DTYPES = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}

Objective = Callable[[int], Tensor]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def samples(accumulate: int, processes: int = 1) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    count = STEPS * ROWS * accumulate * processes
    inputs = torch.randn(count, 6, generator=generator)
    return TensorDataset(inputs, torch.randint(3, (count,), generator=generator))


def autocast(precision: str, device: str = "cpu") -> AbstractContextManager[object]:
    dtype = DTYPES[precision]
    return nullcontext() if dtype is None else torch.autocast(device, dtype=dtype)


def optimizer_for(model: nn.Module) -> polyak.PolyakOptimizer:
    """Return an optimizer whose every step follows the loss: the cap never binds."""
    return polyak.ALIG(model.parameters(), lr=math.inf, lower_bound=-1.0)


def mean_loss(model: nn.Module, accumulate: int, precision: str = "32", processes: int = 1) -> Objective:
    """Return the mean cross-entropy over all the samples of step t, each micro-batch in the given precision."""
    inputs, targets = samples(accumulate, processes).tensors

    def objective(t: int) -> Tensor:
        batches = range(t * accumulate * processes, (t + 1) * accumulate * processes)
        parts = [slice(i * ROWS, (i + 1) * ROWS) for i in batches]
        device = next(model.parameters()).device
        losses = []
        for part in parts:
            with autocast(precision, device.type):
                losses.append(F.cross_entropy(model(inputs[part].to(device)), targets[part].to(device)))
        return torch.stack([loss.double() for loss in losses]).mean()

    return objective


class Witness:
    """Compares, at every step, the loss that reached it and the gradient it used with the objective's own."""

    def __init__(self, optimizer: polyak.PolyakOptimizer, objective: Objective, twin: nn.Module | None = None) -> None:
        """Watch the steps; the objective is one of the twin's weights if the model's own are spread over processes."""
        self.errors: list[float] = []
        self.gradient_errors: list[float] = []
        self._objective = objective
        self._params = [p for group in optimizer.param_groups for p in group["params"]]
        self._twins = self._params if twin is None else list(twin.parameters())
        optimizer.register_step_pre_hook(self._before)
        optimizer.register_step_post_hook(self._after)

    @torch.enable_grad()
    def _before(self, optimizer: object, *_: object) -> None:
        for twin, p in zip(self._twins, self._params, strict=True):
            if twin is not p:
                twin.data.copy_(whole(p.detach()))
        self._truth = self._objective(len(self.errors))
        self._gradient = torch.autograd.grad(self._truth, self._twins)

    def _after(self, optimizer: polyak.PolyakOptimizer, *_: object) -> None:
        seen = float(optimizer.last_step().loss)
        self.errors.append(abs(seen - float(self._truth)) / abs(float(self._truth)))
        difference = [whole(p.grad) - gradient for p, gradient in zip(self._params, self._gradient, strict=True)]
        self.gradient_errors.append(float(norm(difference) / norm(self._gradient)))

    def worst(self, steps: int = STEPS, gradient: float = 1e-5) -> float:
        """Return the largest relative error of the loss, after checks that it was about the same function."""
        assert len(self.errors) == steps, f"{len(self.errors)} steps were made, not {steps}"
        assert max(self.gradient_errors) <= gradient, f"the gradient is another function's: {self.gradient_errors}"
        return max(self.errors)


def norm(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([tensor.reshape(-1).double() for tensor in tensors]).norm()


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
