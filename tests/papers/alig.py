"""ALI-G: Berrada, Zisserman and Kumar, ICML 2020, arXiv:1906.05661, Algorithm 1 and the momentum of its appendix."""

from collections.abc import Callable
from math import inf

import numpy as np
from numpy import ndarray


def alig(
    w: ndarray,
    f: Callable[[ndarray, int], tuple[float, ndarray]],
    T: int,
    η: float | ndarray = 0.1,
    δ: float = 1e-5,
    μ: float = 0.0,
    adjusted: bool = False,
    r: float = inf,
) -> ndarray:
    """Return w_T, the point after T steps; Ω is the ball of radius r."""
    w = w * min(1, r / np.linalg.norm(w))
    v = np.zeros_like(w)
    for t in range(T):
        ℓ_t, g = f(w, t)
        γ = np.minimum(ℓ_t / (g @ g + δ), η)
        if adjusted:
            v = μ * v - g
            w = w - γ * g + μ * γ * v
        else:
            v = μ * v - γ * g
            w = w - γ * g + μ * v
        w = w * min(1, r / np.linalg.norm(w))
    return w
