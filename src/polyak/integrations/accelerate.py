"""Polyak steps in a loop that Accelerate drives."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ._wrapped import inner, step_sizes


def backward(accelerator: Any, optimizer: Any, loss: Tensor, **kwargs: Any) -> None:
    """Do `accelerator.backward(loss)`, and let the optimizer see the objective that it makes of the loss.

    Correct under `accelerator.accumulate`, for the last, shorter accumulation of an epoch, and in every precision.

    Args:
        accelerator: the accelerate.Accelerator.
        optimizer: what `accelerator.prepare` returned for a Polyak optimizer, or that optimizer.
        loss: the loss of this micro-batch on this process, undivided and unscaled.
        kwargs: passed on to `accelerator.backward`.

    Raises:
        TypeError: there is no Polyak optimizer in `optimizer`.
    """
    watched = inner(optimizer, "accelerator.backward(loss)").watch(loss, accelerator.scaler)
    accelerator.backward(watched, **kwargs)


def step_size(optimizer: Any) -> dict[str, float]:
    """Return the step size that was taken, for `accelerator.log(step_size(optimizer))`; waits for the device.

    Args:
        optimizer: what `accelerator.prepare` returned for a Polyak optimizer, or that optimizer.

    Raises:
        TypeError: there is no Polyak optimizer in `optimizer`.
    """
    return {name: float(gamma) for name, gamma in step_sizes(inner(optimizer, "accelerator.backward(loss)")).items()}
