"""NGN-MDv1: Islamov et al., NeurIPS 2025, arXiv:2508.15071."""

from collections.abc import Callable
from math import inf

import numpy as np
from numpy import ndarray


def ngn_md(
    x: ndarray,
    f: Callable[[ndarray, int], tuple[float, ndarray]],
    K: int,
    c: float | ndarray = 0.1,
    β: tuple[float, float] = (0.9, 0.999),
    ε: float = 1e-8,
    λ: float = 0.0,
    f_star: float = 0.0,
    r: float = inf,
) -> ndarray:
    """Return x^K; the decay x <- (1 - cλ) x is AdamW's, outside the heavy ball u; the ball of radius r is ALI-G's."""
    x = x * min(1, r / np.linalg.norm(x))
    u, v = np.zeros((2, x.size))
    for k in range(1, K + 1):
        f_k, g = f(x, k - 1)
        f_k = max(f_k - f_star, 0)
        v = β[1] * v + (1 - β[1]) * g**2
        D = ε + np.sqrt(v / (1 - β[1] ** k))
        γ_k = 2 * f_k / (2 * f_k / c + np.sum(g**2 / D))
        u = β[0] * u - (1 - β[0]) * γ_k * g / D
        x = (1 - c * λ if λ else 1.0) * x + u
        x = x * min(1, r / np.linalg.norm(x))
    return x
