"""SPS_safe and IMA-SPS_safe: Oikonomou and Loizou, ICML 2026, arXiv:2512.02342."""

from collections.abc import Callable
from math import inf

import numpy as np
from numpy import ndarray


def safe_sps(
    x: ndarray,
    f: Callable[[ndarray, int], tuple[float, ndarray]],
    T: int,
    γ_b: float | ndarray = inf,
    M: float = 1.0,
    β: float = 0.0,
    λ_wd: float = 0.0,
    f_star: float = 0.0,
    r: float = inf,
) -> ndarray:
    """Return x^T; β = λ / (1 + λ). The cap and the ball are ours; whatever shrinks x moves z by as much."""
    x = x * min(1, r / np.linalg.norm(x))
    z, λ = x, β / (1 - β)
    for t in range(T):
        f_i, g_i = f(x, t)
        η = np.minimum(max(f_i - f_star + g_i @ (z - x), 0) / max(g_i @ g_i, M), γ_b)
        decayed = (1 - λ_wd * η) * x if λ_wd else x
        z = z - η * g_i + (decayed - x)
        x = (λ * decayed + z) / (1 + λ)
        inside = x * min(1, r / np.linalg.norm(x))
        x, z = inside, z + (inside - x)
    return x
