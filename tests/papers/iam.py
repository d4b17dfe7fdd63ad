"""IAM: Gower et al., 2025, arXiv:2504.01898."""

from collections.abc import Callable
from math import inf

import numpy as np
from numpy import ndarray


def iam(
    x: ndarray,
    f: Callable[[ndarray, int], tuple[float, ndarray]],
    T: int,
    η_max: float | ndarray = 1.0,
    β: float | None = 0.9,
    f_star: float = 0.0,
    r: float = inf,
) -> ndarray:
    """Return x_{T+1}; β = λ / (1 + λ), None is λ_t = t. The ball is ours and moves z as much as x."""
    x = x * min(1, r / np.linalg.norm(x))
    z = x
    for t in range(1, T + 1):
        f_t, g_t = f(x, t - 1)
        λ = t if β is None else β / (1 - β)
        η = np.minimum(max(f_t - f_star + g_t @ (z - x), 0) / (g_t @ g_t), η_max)
        z = z - η * g_t
        x = (λ * x + z) / (1 + λ)
        inside = x * min(1, r / np.linalg.norm(x))
        x, z = inside, z + (inside - x)
    return x
