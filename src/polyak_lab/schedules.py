"""Schedules of `lr` by name."""

from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
)

from polyak_lab.config import run as config


def build_schedule(
    choice: config.Schedule, optimizer: torch.optim.Optimizer, epochs: int, steps_per_epoch: int
) -> LRScheduler | None:
    """Make the schedule of `lr`, counted in steps; None where it is constant."""
    schedule = SCHEDULES[choice.name](choice, optimizer, epochs, steps_per_epoch)
    if choice.warmup_steps < 2:
        return schedule
    rise = LinearLR(optimizer, 1 / choice.warmup_steps, total_iters=choice.warmup_steps - 1)
    return rise if schedule is None else ChainedScheduler([schedule, rise])


def _constant(*_: object) -> None:
    return None


def _cosine(
    _: config.Schedule,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    steps: int,
) -> LRScheduler:
    return CosineAnnealingLR(optimizer, T_max=epochs * steps)


def _step(
    choice: config.Schedule,
    optimizer: torch.optim.Optimizer,
    _: int,
    steps: int,
) -> LRScheduler:
    return MultiStepLR(optimizer, [epoch * steps for epoch in choice.milestones], choice.multiplier)


SCHEDULES: dict[str, Callable[..., LRScheduler | None]] = {
    "constant": _constant,
    "cosine": _cosine,
    "step": _step,
}
