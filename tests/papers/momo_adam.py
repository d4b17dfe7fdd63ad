"""MoMo-Adam and MoMo-Adam*: Schaipp, Ohana, Eickenberg, Defazio and Gower, ICML 2024, arXiv:2305.07583."""

from collections.abc import Callable
from math import inf

import numpy as np
from numpy import ndarray


def momo_adam(
    x: ndarray,
    f: Callable[[ndarray, int], tuple[float, ndarray]],
    K: int,
    α: float | ndarray = 1e-2,
    β: tuple[float, float] = (0.9, 0.999),
    ε: float = 1e-8,
    λ: float = 0.0,
    decoupled: bool = False,
    f_star: float = 0.0,
    star: bool = False,
    r: float = inf,
) -> ndarray:
    """Return x^{K+1}; decoupled decay is the authors' divide=False, the ball of radius r is ALI-G's."""
    x = x * min(1, r / np.linalg.norm(x))
    s, floor, (d, v), f_bar, γ = 1 + (α * λ if λ else 0.0), f_star, np.zeros((2, x.size)), 0.0, 0.0
    for k in range(1, K + 1):
        f_k, g = f(x, k - 1)
        d, v = β[0] * d + (1 - β[0]) * g, β[1] * v + (1 - β[1]) * g**2
        f_bar, γ = β[0] * f_bar + (1 - β[0]) * f_k, β[0] * γ + (1 - β[0]) * (g @ x)
        ρ, D = 1 - β[0] ** k, ε + np.sqrt(v / (1 - β[1] ** k))
        h = f_bar + d @ (x / s) - γ
        if star and h < ρ * f_star:
            f_star = max(h / (2 * ρ), floor)
        τ = np.minimum(α / ρ, s * np.maximum(h - ρ * f_star, 0) / np.sum(d**2 / D))
        if star:
            f_star = max((f_bar + d @ x - γ - np.sum(τ * d**2 / D) / 2) / ρ, floor)
        x = x * (2 - s) - τ * d / D if decoupled else (x - τ * d / D) / s
        x = x * min(1, r / np.linalg.norm(x))
    return x
