"""IAM-Adam: Gower et al., 2025, arXiv:2504.01898, IAM in the norm of Adam's preconditioner."""

from collections.abc import Callable
from math import inf

import numpy as np
from numpy import ndarray


def iam_adam(
    x: ndarray,
    f: Callable[[ndarray, int], tuple[float, ndarray]],
    T: int,
    η_max: float | ndarray = 1e-2,
    β: float | None = 0.9,
    β2: float = 0.999,
    ε: float = 1e-8,
    f_star: float = 0.0,
    r: float = inf,
) -> ndarray:
    """Return x_{T+1}; β = λ / (1 + λ), None is λ_t = t. The ball is ours and moves z as much as x."""
    x = x * min(1, r / np.linalg.norm(x))
    z, v = x, np.zeros_like(x)
    for t in range(1, T + 1):
        f_t, g_t = f(x, t - 1)
        λ = t if β is None else β / (1 - β)
        v = β2 * v + (1 - β2) * g_t**2
        D = ε + np.sqrt(v / (1 - β2**t))
        η = np.minimum(max(f_t - f_star + g_t @ (z - x), 0) / np.sum(g_t**2 / D), η_max)
        z = z - η * g_t / D
        x = (λ * x + z) / (1 + λ)
        inside = x * min(1, r / np.linalg.norm(x))
        x, z = inside, z + (inside - x)
    return x
