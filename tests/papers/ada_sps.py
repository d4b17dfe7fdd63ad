"""AdaSPS: Jiang and Stich, NeurIPS 2023, arXiv:2308.06058."""

from collections.abc import Callable
from math import inf, sqrt

import numpy as np
from numpy import ndarray


def ada_sps(
    x: ndarray,
    f: Callable[[ndarray, int], tuple[float, ndarray]],
    T: int,
    η_max: float | ndarray = inf,
    c_p: float = 1.0,
    f_star: float = 0.0,
    r: float = inf,
) -> ndarray:
    """Return x_T; the cap η_{-1} = η_max, the positive part and the ball of radius r are ours."""
    x = x * min(1, r / np.linalg.norm(x))
    total, η = 0.0, η_max
    for t in range(T):
        f_i, g_i = f(x, t)
        gap = max(f_i - f_star, 0)
        total += gap
        η = np.minimum(gap / (c_p * (g_i @ g_i) * sqrt(total)), η)
        x = x - η * g_i
        x = x * min(1, r / np.linalg.norm(x))
    return x
