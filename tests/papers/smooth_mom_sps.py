"""Smooth MomSPS: Oikonomou and Loizou, ICLR 2025, arXiv:2406.04142, and its package, MomSPS 1.0.0."""

from collections.abc import Callable
from math import inf

import numpy as np
from numpy import ndarray


def smooth_mom_sps(
    x: ndarray,
    f: Callable[[ndarray, int], tuple[float, ndarray]],
    T: int,
    n: float,
    γ_b: float | ndarray = inf,
    c: float = 1.0,
    β: float = 0.9,
    τ: float = 2.0,
    γ_0: float = 1.0,
    f_star: float = 0.0,
    r: float = inf,
) -> ndarray:
    """Return x^T; n steps make an epoch, v is x^t - x^{t-1}; the cap, as in MomSPS_max, and the ball are ours."""
    x = x * min(1, r / np.linalg.norm(x))
    v, γ = np.zeros_like(x), γ_0
    for t in range(T):
        f_i, g_i = f(x, t)
        polyak = np.minimum(max(f_i - f_star, 0) / (c * (g_i @ g_i)), γ_b)
        γ = np.minimum((1 - β) * polyak, τ ** (1 / n) * γ)
        v = β * v - γ * g_i
        x = x + v
        x = x * min(1, r / np.linalg.norm(x))
    return x
