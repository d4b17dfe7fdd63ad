"""Polyak steps in a loop that Lightning Fabric drives."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ._wrapped import inner


def backward(fabric: Any, optimizer: Any, loss: Tensor, **kwargs: Any) -> None:
    """Do `fabric.backward(loss)`, and let the optimizer see the loss that Fabric scales in float16.

    Under gradient accumulation, write `backward(fabric, optimizer, loss / n)` for each of n micro-batches, as you would
    write `fabric.backward(loss / n)`.

    Args:
        fabric: the lightning.fabric.Fabric.
        optimizer: what `fabric.setup` returned for a Polyak optimizer, or that optimizer.
        loss: what `fabric.backward` is to be given.
        kwargs: passed on to `fabric.backward`.

    Raises:
        TypeError: there is no Polyak optimizer in `optimizer`.
    """
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    fabric.backward(inner(optimizer, "fabric.backward(loss)").watch(loss, scaler), **kwargs)
