"""Convex sets for the parameters, each with its projection, in place and without waiting for the device.

A constraint acts on the parameters it is given as on one vector. Unlike weight decay in the loss, it leaves the
smallest value of the loss where it is, at the lower bound.
"""

from ._base import Constraint
from .balls import L1Ball, L2Ball, Simplex
from .boxes import Box, LInfBall, NonNegative
from .linear import Affine, Halfspace

__all__ = ["Affine", "Box", "Constraint", "Halfspace", "L1Ball", "L2Ball", "LInfBall", "NonNegative", "Simplex"]
