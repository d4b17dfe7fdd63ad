"""Step sizes from the loss (Polyak step sizes) for PyTorch: ALI-G, SPS and their family."""

from . import _import_torch  # noqa: F401 (first)
from ._step.decision import LastStep, Line
from ._step.optimizer import PolyakOptimizer
from ._step.options import Common, CommonAndMomentum
from .constraints import (
    Affine,
    Box,
    Constraint,
    Halfspace,
    L1Ball,
    L2Ball,
    LInfBall,
    NonNegative,
    Simplex,
)
from .methods.alig import ALIG
from .methods.smooth_sps import SmoothSPS
from .methods.sps import SPS

__version__ = "0.1.0"

__all__ = [
    "ALIG",
    "SPS",
    "Affine",
    "Box",
    "Common",
    "CommonAndMomentum",
    "Constraint",
    "Halfspace",
    "L1Ball",
    "L2Ball",
    "LInfBall",
    "LastStep",
    "Line",
    "NonNegative",
    "PolyakOptimizer",
    "Simplex",
    "SmoothSPS",
]
