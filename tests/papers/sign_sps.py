"""Sign descent with a Polyak step size: Crawshaw et al., arXiv:2510.09827, with the ℓ∞ norm everywhere."""

from collections.abc import Callable
from math import inf

import numpy as np
from numpy import ndarray


def sign_sps(
    x: ndarray,
    f: Callable[[ndarray, int], tuple[float, ndarray]],
    T: int,
    η: float | ndarray = 0.01,
    β: float = 0.95,
    λ: float = 0.0,
    f_star: float = 0.0,
    r: float = inf,
) -> ndarray:
    """Return x_T; the positive part and the ball of radius r are ours."""
    x, m, h = x * min(1, r / np.linalg.norm(x)), np.zeros_like(x), 0.0
    for t in range(T):
        f_t, g = f(x, t)
        if t == 0:
            m, h = g, f_t - g @ x
        m, h = β * m + (1 - β) * g, β * h + (1 - β) * (f_t - g @ x)
        η_t = np.minimum(max(h - f_star + m @ x, 0) / np.sum(np.abs(m)), η)
        x = (1 - η * λ if λ else 1.0) * x - η_t * np.sign(m)
        x = x * min(1, r / np.linalg.norm(x))
    return x
