"""Polyak steps in the Hugging Face Trainer."""

from __future__ import annotations

import math
import warnings
from typing import Any

from torch import Tensor

from .._metrics import has_stepped, metrics, polyak_in

CONSTANT = frozenset({"constant", "constant_with_warmup"})


class PolyakTrainerMixin:
    """Watches the loss of a Trainer and logs the numbers of `polyak.metrics`, such as `step_size`, beside the loss.

    Put it before the Trainer: `class PolyakTrainer(PolyakTrainerMixin, transformers.Trainer): ...`. The objective that
    reaches the step is exact under gradient accumulation, `num_items_in_batch`, `average_tokens_across_devices`, label
    smoothing, a `compute_loss_func` and mixed precision. With another kind of optimizer the mixin does nothing.
    """

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the Trainer computes, with a watched loss."""
        result = super().compute_loss(*args, **kwargs)  # type: ignore[misc]
        if isinstance(result, tuple):
            return self._watched(result[0]), *result[1:]
        return self._watched(result)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """Make the scheduler, after a warning about the settings that do not fit the Polyak optimizer.

        Raises:
            ValueError: there is a warm-up although `lr` is infinite.
        """
        optimizer = polyak_in(getattr(self, "optimizer", None))
        if optimizer is not None:
            given = getattr(self, "lr_scheduler", None) is not None
            for advice in misfits(self.args, scheduler_given=given) + unused(self.args, optimizer):  # type: ignore[attr-defined]
                warnings.warn(advice, UserWarning, stacklevel=2)
            if not given:
                _refuse_warmup(self.args, optimizer)  # type: ignore[attr-defined]
            if _schedule(self.args) == "constant" and not given:  # type: ignore[attr-defined]
                optimizer._advice.leave_out("schedule")  # it is one in name only, so lr=inf is fine
        return super().create_scheduler(*args, **kwargs)  # type: ignore[misc]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add `polyak.metrics` to what is logged during training; `learning_rate` is the cap."""
        optimizer = polyak_in(getattr(self, "optimizer", None))
        if optimizer is not None and has_stepped(optimizer) and "learning_rate" in logs:
            logs.update(metrics(optimizer))
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _watched(self, loss: Tensor) -> Tensor:
        optimizer = polyak_in(getattr(self, "optimizer", None))
        if optimizer is None or not loss.requires_grad:
            return loss
        loss = loss.mean()  # DataParallel returns one loss per device; the Trainer takes their mean, too
        return optimizer.watch(loss, self.accelerator.scaler)  # type: ignore[attr-defined]


def misfits(args: Any, *, scheduler_given: bool = False) -> list[str]:
    """Return a sentence for each training argument that does not fit a Polyak step.

    Args:
        args: the TrainingArguments.
        scheduler_given: the user made the scheduler, so that the one named in the arguments is not used.
    """
    sentences = []
    if args.max_grad_norm and args.max_grad_norm > 0:
        sentences.append(
            f"max_grad_norm={args.max_grad_norm:g} shrinks the gradient but not the loss, so a Polyak step becomes "
            "longer: write TrainingArguments(max_grad_norm=0.0), since the optimizer's lr already caps the step."
        )
    schedule = _schedule(args)
    if schedule not in CONSTANT and not scheduler_given:
        sentences.append(
            f"lr_scheduler_type={schedule!r} lowers the cap of a method that adapts its step to the loss already: "
            "write TrainingArguments(lr_scheduler_type='constant')."
        )
    return sentences


def unused(args: Any, optimizer: Any) -> list[str]:
    """Return a sentence for each training argument that an optimizer made without the Trainer does not read.

    Args:
        args: the TrainingArguments.
        optimizer: the Polyak optimizer of the Trainer.
    """
    sentences, name = [], type(optimizer).__name__
    rate, default = args.learning_rate, type(args).learning_rate
    if rate != default and all(float(group["lr"]) != rate for group in optimizer.param_groups):
        sentences.append(
            f"learning_rate={rate:g} has no effect on an optimizer that is given to the Trainer: write "
            f"polyak.{name}(params, lr={rate:g}), and leave TrainingArguments(learning_rate=...) out."
        )
    decays = [group.get("weight_decay") for group in optimizer.param_groups]
    if "weight_decay" not in optimizer.defaults and args.weight_decay:
        sentences.append(
            f"weight_decay={args.weight_decay:g} has no effect on polyak.{name}: write "
            f"polyak.{name}(params, constraint=polyak.L2Ball(relative=1.5)), and TrainingArguments(weight_decay=0.0)."
        )
    elif args.weight_decay and args.weight_decay not in decays:
        sentences.append(
            f"weight_decay={args.weight_decay:g} has no effect on an optimizer that is given to the Trainer: write "
            f"polyak.{name}(params, weight_decay={args.weight_decay:g}), and TrainingArguments(weight_decay=0.0)."
        )
    return sentences


WITHOUT_WARMUP = frozenset({"constant", "reduce_lr_on_plateau", "greedy"})  # schedules that ignore warmup_steps


def _refuse_warmup(args: Any, optimizer: Any) -> None:
    """Raise ValueError if the schedule begins at 0 times an infinite cap, which is NaN."""
    warms_up = _schedule(args) not in WITHOUT_WARMUP and bool(args.warmup_steps or getattr(args, "warmup_ratio", None))
    if warms_up and any(float(group["lr"]) == math.inf for group in optimizer.param_groups):
        raise ValueError(
            f"{type(optimizer).__name__}: a warm-up multiplies lr=inf by 0, which is NaN: give a finite lr, or write "
            "TrainingArguments(warmup_steps=0, lr_scheduler_type='constant')."
        )


def _schedule(args: Any) -> str:
    return str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
