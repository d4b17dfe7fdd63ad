"""NGN: Orvieto and Xiao, 2024, arXiv:2407.04358; NGN-M: Islamov et al., NeurIPS 2025, arXiv:2508.15071."""

from collections.abc import Callable
from math import inf

import numpy as np
from numpy import ndarray


def ngn(
    x: ndarray,
    f: Callable[[ndarray, int], tuple[float, ndarray]],
    K: int,
    c: float | ndarray = 1.0,
    β: float = 0.0,
    f_star: float = 0.0,
    r: float = inf,
) -> ndarray:
    """Return x^K; v is x^k - x^{k-1}, f_star is subtracted from the loss, the ball of radius r is ALI-G's.

    γ_k = c / (1 + c ‖g‖² / (2 f)) is multiplied through by 2f / c, so that f = 0 and c = ∞ are no exceptions.
    """
    x = x * min(1, r / np.linalg.norm(x))
    v = np.zeros_like(x)
    for k in range(K):
        f_k, g = f(x, k)
        f_k = max(f_k - f_star, 0)
        γ_k = 2 * f_k / (2 * f_k / c + g @ g)
        v = β * v - (1 - β) * γ_k * g
        x = x + v
        x = x * min(1, r / np.linalg.norm(x))
    return x
