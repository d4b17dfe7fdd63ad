"""Which loop called step() without a loss, and the line to write there."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

THREE_WAYS = (
    "write optimizer.step(loss=loss), pass a closure that returns the loss, "
    "or watch it before backward with loss = optimizer.watch(loss)"
)

_TRAINER = (
    "the Lightning Trainer hands none over, so write Trainer(callbacks=[PolyakCallback()]) "
    "with the callback of polyak.integrations.lightning"
)
_FABRIC = "Fabric hands none over, so write loss = optimizer.watch(loss) before fabric.backward(loss)"

# By the module that is on the call stack, the outermost loop first: the HF Trainer drives Accelerate, and so on.
LINES = {
    "transformers.trainer": "the HF Trainer hands none over, so write class PolyakTrainer(PolyakTrainerMixin, Trainer) "
    "with the mixin of polyak.integrations.transformers",
    "lightning.pytorch": _TRAINER,
    "pytorch_lightning": _TRAINER,
    "lightning.fabric": _FABRIC,
    "lightning_fabric": _FABRIC,
    "accelerate.optimizer": "Accelerate hands none over, so write backward(accelerator, optimizer, loss) "
    "from polyak.integrations.accelerate instead of accelerator.backward(loss)",
    "torch.amp.grad_scaler": "the GradScaler hands over what it is given, so write scaler.step(optimizer, loss=loss) "
    "with the unscaled loss, or watch it before backward with loss = optimizer.watch(loss, scaler)",
}


def refuse_without_loss(owner: str, groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise RuntimeError if there is a gradient to follow; distributed checkpointing calls so with every lr at 0."""
    has_gradient = any(p.grad is not None for group in groups for p in group["params"])
    if has_gradient and any(group["lr"] != 0 for group in groups):
        raise RuntimeError(f"{owner}.step() needs the loss: {line_to_write()}.")


def line_to_write() -> str:
    """Return what to write where the loss is missing, for the loop that is on the call stack."""
    modules = {str(frame.f_globals.get("__name__", "")) for frame, _ in traceback.walk_stack(None)}
    for loop, line in LINES.items():
        if any(module == loop or module.startswith(f"{loop}.") for module in modules):
            return line
    return THREE_WAYS
