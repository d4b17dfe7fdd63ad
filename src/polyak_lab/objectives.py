"""Losses by name or by import path, and how each counts a right answer."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from polyak_lab import imports
from polyak_lab.config import run as config
from polyak_lab.errors import LabError, RowError


@dataclass(frozen=True)
class Objective:
    """A mean loss over a batch; `correct` counts correct predictions, None if there are none."""

    loss: Callable[[Tensor, Tensor], Tensor]
    correct: Callable[[Tensor, Tensor], Tensor] | None
    perplexity: bool = False
    """Whether exp(loss) is a score."""

    def count_correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Count right answers on the device, if this objective has any."""
        return None if self.correct is None else self.correct(outputs, targets)


def _logistic(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.softplus(-targets * outputs.squeeze(1)).mean()


def _squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, targets.view_as(outputs))


def _next_token(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def _same_class(outputs: Tensor, targets: Tensor) -> Tensor:
    # argmax of a row that holds a NaN is the NaN's class, which may be the right one
    return ((outputs.argmax(1) == targets) & outputs.amax(1).isfinite()).sum()


def _same_sign(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.squeeze(1) * targets > 0).sum()


OBJECTIVES = {
    "cross_entropy": Objective(F.cross_entropy, _same_class),
    "logistic": Objective(_logistic, _same_sign),
    "squared": Objective(_squared, None),
    "next_token": Objective(_next_token, None, perplexity=True),
}


def resolve(chosen: config.Objective) -> config.Objective:
    """Check the name; record the import path of the user's own loss, and the version of its package."""
    if chosen.name is None:
        return chosen
    path = imports.expand(chosen.name, "objective", OBJECTIVES)
    if not imports.is_path(path):
        if chosen.options or chosen.version:
            raise LabError(f"objective {path!r} takes no options and no version: leave them out.")
        return chosen
    _build_own(replace(chosen, name=path))
    return replace(chosen, name=path, version=imports.version(path, chosen.version))


def build(chosen: config.Objective, implied: str | None, data: str) -> Objective:
    """Make the objective of a run.

    Args:
        chosen: What the run asks for.
        implied: The name of the loss that the data implies, None if it implies none.
        data: The name of the data, for the error.
    """
    if chosen.name is None and implied is None:
        raise RowError(f"data {data!r} has targets of a kind that implies no loss: write an objective.")
    if not imports.is_path(chosen.name):
        return OBJECTIVES[chosen.name or implied or ""]
    return _build_own(chosen, None if implied is None else OBJECTIVES[implied].correct)


def _build_own(chosen: config.Objective, correct: Callable[[Tensor, Tensor], Tensor] | None = None) -> Objective:
    """Make an objective of a function, or of a module or its class; an Objective counts right answers itself."""
    path = str(chosen.name)
    what = f"objective {path!r}"
    found: Any = imports.load(path, "objective")
    if isinstance(found, Objective):
        return found
    imports.check_options(found, chosen.options, what)
    if isinstance(found, type):
        with imports.own_code(what):
            found = found(**chosen.options)
    elif chosen.options:
        found = partial(found, **chosen.options)
    if isinstance(found, type) or not (callable(found) or isinstance(found, nn.Module)):
        raise RowError(f"{what} is no function of outputs and targets.")
    return Objective(found, correct)
