"""MoMo and MoMo*: Schaipp, Ohana, Eickenberg, Defazio and Gower, ICML 2024, arXiv:2305.07583."""

from collections.abc import Callable
from math import inf

import numpy as np
from numpy import ndarray


def momo(
    x: ndarray,
    f: Callable[[ndarray, int], tuple[float, ndarray]],
    K: int,
    α: float | ndarray = 1.0,
    β: float = 0.9,
    λ: float = 0.0,
    f_star: float = 0.0,
    bias_correction: bool = False,
    star: bool = False,
    r: float = inf,
) -> ndarray:
    """Return x^{K+1}; f_star is the first estimate and the floor of MoMo*, the ball of radius r is ALI-G's."""
    x = x * min(1, r / np.linalg.norm(x))
    s, floor, d, f_bar, γ = 1 + (α * λ if λ else 0.0), f_star, np.zeros_like(x), 0.0, 0.0
    for k in range(1, K + 1):
        f_k, g = f(x, k - 1)
        if k == 1 and not bias_correction:
            d, f_bar, γ = g, f_k, g @ x
        ρ = 1 - β**k if bias_correction else 1.0
        d, f_bar, γ = β * d + (1 - β) * g, β * f_bar + (1 - β) * f_k, β * γ + (1 - β) * (g @ x)
        h = f_bar + d @ (x / s) - γ
        if star and h < ρ * f_star:
            f_star = max(h / (2 * ρ), floor)
        τ = np.minimum(α / ρ, s * np.maximum(h - ρ * f_star, 0) / (d @ d))
        if star:
            f_star = max((f_bar + d @ x - γ - np.sum(τ * d**2) / 2) / ρ, floor)
        x = (x - τ * d) / s
        x = x * min(1, r / np.linalg.norm(x))
    return x
