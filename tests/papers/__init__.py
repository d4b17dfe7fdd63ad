"""Each paper's pseudo-code in NumPy, written from the paper and not from the library, in the paper's own symbols.

`f(w, t)` returns the loss and the gradient of the mini-batch of step t. A cap may be an array with one entry per
coordinate, for groups of parameters that have caps of their own.
"""

from .alig import alig
from .smooth_sps import smooth_sps
from .sps import sps

__all__ = ["alig", "smooth_sps", "sps"]
