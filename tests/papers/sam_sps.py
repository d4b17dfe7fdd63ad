"""SAM-SPS and USAM-SPS: Oikonomou and Loizou, ICML 2026, arXiv:2606.01827."""

from collections.abc import Callable
from math import inf

import numpy as np
from numpy import ndarray


def sam_sps(
    x: ndarray,
    f: Callable[[ndarray, int], tuple[float, ndarray]],
    T: int,
    γ_b: float | ndarray = 1.0,
    ρ: float = 0.1,
    λ: float = 1.0,
    λ_wd: float = 0.0,
    f_star: float = 0.0,
    r: float = inf,
) -> ndarray:
    """Return x^T; λ = 1 normalises the ascent, λ = 0 (USAM) does not. The ball of radius r is ours."""
    x = x * min(1, r / np.linalg.norm(x))
    for t in range(T):
        _, g = f(x, t)
        e = x + ρ * (1 - λ + λ / np.linalg.norm(g)) * g
        f_e, g_e = f(e, t)
        γ = np.minimum(max(f_e - f_star - g_e @ (e - x), 0) / (g_e @ g_e), γ_b)
        x = x - γ * (g_e + λ_wd * x)
        x = x * min(1, r / np.linalg.norm(x))
    return x
