"""Resolves a run before training: checks every name and fills in every default."""

import math
from dataclasses import replace
from typing import Any

import torch

import polyak
from polyak_lab import data, models, objectives, optimizers, schedules
from polyak_lab.config.run import Run, Training
from polyak_lab.config.strict import check_known
from polyak_lab.errors import LabError, RowError, first_line
from polyak_lab.imports import is_path
from polyak_lab.processes import group


def resolve(run: Run) -> Run:
    """Spell a run out, or say what is wrong with it."""
    chosen = data.resolve(run.data)
    model, objective = models.resolve(run.model), objectives.resolve(run.objective)
    optimizer = optimizers.resolve(run.optimizer)
    _check_schedule(run, optimizer.options.get("lr", 0.0))
    training = _resolve_training(run.training)
    resolved = replace(run, data=chosen, model=model, objective=objective, optimizer=optimizer, training=training)
    _check_graph(resolved)
    _check_sharding(resolved.training)
    _check_clipping(resolved)
    return resolved


def where_possible(run: Run) -> Run:
    """Leave out the CUDA graph of a recipe, and the compilation for it, where no device has one."""
    training, device = run.training, run.training.device
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu or not training.cuda_graph:
        return run
    return replace(run, training=replace(training, cuda_graph=False, compile=False))


def _check_schedule(run: Run, lr: Any) -> None:
    name = run.schedule.name
    check_known(name, schedules.SCHEDULES, "schedule")
    if name == "step" and not run.schedule.milestones:
        raise LabError("schedule 'step' needs milestones, the epochs after which lr changes: [60, 120].")
    if name != "step" and (run.schedule.milestones or run.schedule.factor is not None):
        raise LabError(f"schedule {name!r} takes no milestones and no factor: leave them out, or write step.")
    if not run.schedule.is_constant and isinstance(lr, float) and math.isinf(lr):
        what = name if name != "constant" else "warmup_steps"
        raise LabError(f"schedule {what!r} needs a finite lr, but {run.optimizer.name} has lr = inf.")


def _resolve_training(training: Training) -> Training:
    return replace(training, shuffle_seed=training.order_seed, device=_resolve_device(training.device))


def _resolve_device(name: str) -> str:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    group.check_device(name)
    try:
        device = torch.device(name)
        torch.ones(1, device=device).sum().item()
        torch.Generator(device)
    except Exception as error:  # each kind of device that is not there has an error of its own
        raise LabError(
            f"The device {name!r} cannot be used ({first_line(error)}): write auto, cpu or cuda as training.device."
        ) from error
    return str(device)


def _check_graph(run: Run) -> None:
    """Refuse what cannot be recorded as a CUDA graph."""
    if not run.training.cuda_graph:
        return
    method = run.optimizer.name
    reads_loss = optimizers.reads_loss(method)
    refusals = {
        f"the device {run.training.device!r} has no CUDA graphs": not run.training.device.startswith("cuda"),
        f"{method} reads its lr in Python, so its schedule must be constant, but for sgd with fused = true": not (
            run.schedule.is_constant or reads_loss or (method == "sgd" and run.optimizer.options.get("fused"))
        ),
        f"{method} may read from the device": is_path(method) and not reads_loss,
        f"{method} evaluates every batch twice": optimizers.reads_loss(method, polyak.SAMSPS),
        f"{method} needs capturable = true": run.optimizer.options.get("capturable") is False,
    }
    for reason, holds in refusals.items():
        if holds:
            raise LabError(f"training.cuda_graph does not go here: {reason}.")


def _check_sharding(training: Training) -> None:
    """Refuse what FSDP2 does not support, on any number of processes."""
    for option in ("channels_last", "compile"):
        if training.distributed == "fsdp2" and getattr(training, option):
            raise LabError(f'training.{option} does not go with distributed = "fsdp2": leave one of them out.')


def _check_clipping(run: Run) -> None:
    """Refuse to clip the gradient of a method that needs more of it than its norm."""
    name = run.optimizer.name
    if run.training.clip_norm is not None and not getattr(optimizers.optimizer_class(name), "takes_norm", True):
        cls = RowError if is_path(name) else LabError
        raise cls(
            f"training.clip_norm does not go with {name}, which needs the whole gradient unclipped: leave it out."
        )
