"""SPS_max: Loizou, Vaswani, Laradji and Lacoste-Julien, AISTATS 2021, arXiv:2002.10542, equation (3)."""

from collections.abc import Callable
from math import inf

import numpy as np
from numpy import ndarray


def sps(
    x: ndarray,
    f: Callable[[ndarray, int], tuple[float, ndarray]],
    K: int,
    γ_b: float | ndarray = inf,
    c: float = 0.5,
    f_star: float = 0.0,
    ε: float = 1e-8,
    μ: float = 0.0,
    r: float = inf,
) -> ndarray:
    """Return x^K; ε is the authors' code's, momentum μ and the ball of radius r are ALI-G's."""
    x = x * min(1, r / np.linalg.norm(x))
    v = np.zeros_like(x)
    for k in range(K):
        f_i, g_i = f(x, k)
        γ_k = np.minimum((f_i - f_star) / (c * np.sum(g_i**2) + ε), γ_b)
        v = μ * v - γ_k * g_i
        x = x - γ_k * g_i + μ * v
        x = x * min(1, r / np.linalg.norm(x))
    return x
