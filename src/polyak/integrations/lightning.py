"""Polyak steps in the Lightning Trainer."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor

from .._metrics import has_stepped, measurements, polyak_in

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError:
    from pytorch_lightning import Callback, LightningModule, Trainer


class PolyakCallback(Callback):
    """Watches what Lightning backpropagates and logs the numbers of `polyak.metrics`, such as `step_size`.

    Correct in every precision and under gradient accumulation, where Lightning's own closure returns the last
    micro-batch's share. Write `Trainer(callbacks=[PolyakCallback()])`. With several optimizers a loss belongs to those
    of them whose parameters it reaches, with or without `toggle_optimizer`.

    Args:
        log: whether to log them, after each optimizer step. They stay on the device, so nothing waits for it.
    """

    def __init__(self, log: bool = True) -> None:
        self._log = log
        self._steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn about gradient clipping, which does not fit a Polyak step."""
        if trainer.gradient_clip_val and any(polyak_in(optimizer) is not None for optimizer in trainer.optimizers):
            warnings.warn(
                f"gradient_clip_val={trainer.gradient_clip_val:g} shrinks the gradient but not the loss, so a Polyak "
                "step becomes longer: leave it out, since lr already caps the step.",
                UserWarning,
                stacklevel=2,
            )

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Watch the loss, which Lightning has divided for accumulation and scaled for float16 by now."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        for wrapped in trainer.optimizers:
            optimizer = polyak_in(wrapped)
            if optimizer is not None and any(
                p.requires_grad for group in optimizer.param_groups for p in group["params"]
            ):
                optimizer.watch(loss, scaler)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Log what the step did if this batch was the last of a step."""
        if not self._log or trainer.global_step == self._steps:
            return
        self._steps = trainer.global_step
        optimizers = [polyak for polyak in map(polyak_in, trainer.optimizers) if polyak is not None]
        for i, optimizer in enumerate(optimizers):
            if not has_stepped(optimizer):
                continue
            prefix = f"optimizer/{i}/" if len(optimizers) > 1 else ""
            values = {prefix + name: value.float() for name, value in measurements(optimizer).items()}
            pl_module.log_dict(values, on_step=True, on_epoch=False, batch_size=1)
