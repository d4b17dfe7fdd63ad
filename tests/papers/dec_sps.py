"""DecSPS: Orvieto, Lacoste-Julien and Loizou, NeurIPS 2022, arXiv:2205.04583."""

from collections.abc import Callable
from math import inf, sqrt

import numpy as np
from numpy import ndarray


def dec_sps(
    x: ndarray,
    f: Callable[[ndarray, int], tuple[float, ndarray]],
    K: int,
    γ_b: float | ndarray = 10.0,
    c_0: float = 1.0,
    f_star: float = 0.0,
    r: float = inf,
) -> ndarray:
    """Return x^K; the positive part and the ball of radius r are ours."""
    x = x * min(1, r / np.linalg.norm(x))
    cγ = c_0 * γ_b
    for k in range(K):
        f_S, g = f(x, k)
        c_k = c_0 * sqrt(k + 1)
        γ_k = np.minimum(max(f_S - f_star, 0) / (g @ g), cγ) / c_k
        x, cγ = x - γ_k * g, c_k * γ_k
        x = x * min(1, r / np.linalg.norm(x))
    return x
