"""The table of models."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from polyak_lab import imports
from polyak_lab.config.run import Model
from polyak_lab.config.strict import check_known
from polyak_lab.errors import LabError
from polyak_lab.models import imported
from polyak_lab.models.cnn import cnn
from polyak_lab.models.dense import deep_linear, linear, logistic, mlp
from polyak_lab.models.densenet import densenet121, densenet_40_40
from polyak_lab.models.resnet import resnet34, small_resnet
from polyak_lab.models.transformer import gpt_small
from polyak_lab.models.wide_resnet import wrn_16_4, wrn_40_4

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Architecture:
    """How to build a model, the axes of its input (None: any), and whether it reads tokens."""

    build: Callable[[Shape, int], nn.Module]
    axes: int | None = None
    text: bool = False


def _convolutional(build: Callable[[int, int], nn.Module]) -> Architecture:
    return Architecture(lambda shape, outputs: build(shape[0], outputs), axes=3)


def _factorisation(rank: int) -> Architecture:
    return Architecture(partial(deep_linear, rank=rank), axes=1)


ARCHITECTURES = {
    "mlp": Architecture(mlp),
    "logistic": Architecture(logistic),
    "linear": Architecture(linear),
    "cnn": Architecture(cnn, axes=3),
    "resnet8": _convolutional(partial(small_resnet, blocks=1)),
    "resnet20": _convolutional(partial(small_resnet, blocks=3)),
    "resnet34": _convolutional(resnet34),
    "densenet121": _convolutional(densenet121),
    "densenet-40-40": _convolutional(densenet_40_40),
    "wrn-40-4": _convolutional(wrn_40_4),
    "wrn-16-4": _convolutional(wrn_16_4),
    "deep-linear": _factorisation(rank=10),
    "deep-linear-4": _factorisation(rank=4),
    "deep-linear-1": _factorisation(rank=1),
    "gpt-small": Architecture(gpt_small, axes=1, text=True),
}

NAMES = tuple(ARCHITECTURES)
_INPUTS = {1: "vectors", 3: "images (channels, height, width)"}


def resolve(chosen: Model) -> Model:
    """Check the name; record the import path of the user's own model, and the version of its package."""
    path = imports.expand(chosen.name, "model", NAMES)
    if imports.is_path(path):
        imports.load(path, "model")
        return replace(chosen, name=path, version=imports.version(path, chosen.version))
    if chosen.options or chosen.version:
        raise LabError(f"model {path!r} takes no options and no version: leave them out.")
    return chosen


def build(
    name: str, shape: Shape, outputs: int | None, *, text: bool = False, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """Build a model with weights drawn from torch's global generator.

    Args:
        name: One of `NAMES`, or an import path.
        shape: Shape of one input: (C, H, W) of an image, (d,) of a vector or (context,) of a text.
        outputs: Number of outputs, at least 1: classes, or tokens of a vocabulary.
        text: Whether the inputs are tokens.
        options: Keyword arguments of what an import path names.

    Raises:
        LabError: The name is unknown, or the model does not take such inputs.
    """
    if imports.is_path(name):
        return imported.build(name, shape, outputs, options or {})
    check_known(name, NAMES, "model")
    if outputs is None:
        raise LabError(f"Model {name!r} needs the number of outputs, which the data does not tell: write data.outputs.")
    if ARCHITECTURES[name].text is not text:
        fitting = [known for known in NAMES if ARCHITECTURES[known].text is text]
        given, wanted = ("text", "images or vectors") if text else ("images or vectors", "text")
        raise LabError(f"Model {name!r} takes {wanted}, not {given}; try {fitting[0]!r}.")
    axes = ARCHITECTURES[name].axes
    if axes is not None and len(shape) != axes:
        raise LabError(f"Model {name!r} takes {_INPUTS[axes]}, not inputs of shape {shape}; try 'mlp' or 'logistic'.")
    if outputs < 1 or min(shape, default=0) < 1:
        raise LabError(f"Model {name!r} cannot be built for inputs of shape {shape} and {outputs} outputs.")
    return ARCHITECTURES[name].build(shape, outputs)
