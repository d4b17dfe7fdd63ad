"""Step sizes from the loss (Polyak step sizes) for PyTorch: ALI-G, SPS and their family."""

from ._line import LastStep, Line
from ._optimizer import PolyakOptimizer
from .alig import ALIG
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
from .smooth_sps import SmoothSPS
from .sps import SPS

__version__ = "0.1.0"

__all__ = [
    "ALIG",
    "SPS",
    "Affine",
    "Box",
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
