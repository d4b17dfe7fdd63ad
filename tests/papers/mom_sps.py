"""MomSPS_max: Oikonomou and Loizou, ICLR 2025, arXiv:2406.04142."""

from collections.abc import Callable
from math import inf

import numpy as np
from numpy import ndarray


def mom_sps(
    x: ndarray,
    f: Callable[[ndarray, int], tuple[float, ndarray]],
    T: int,
    γ_b: float | ndarray = 10.0,
    c: float = 1.0,
    β: float = 0.9,
    f_star: float = 0.0,
    r: float = inf,
) -> ndarray:
    """Return x^T; v is x^t - x^{t-1}, the positive part and the ball of radius r are ours."""
    x = x * min(1, r / np.linalg.norm(x))
    v = np.zeros_like(x)
    for t in range(T):
        f_i, g_i = f(x, t)
        γ_t = (1 - β) * np.minimum(max(f_i - f_star, 0) / (c * (g_i @ g_i)), γ_b)
        v = β * v - γ_t * g_i
        x = x + v
        x = x * min(1, r / np.linalg.norm(x))
    return x
