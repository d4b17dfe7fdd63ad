"""Schedule-free Adam with a Polyak step size: arXiv:2511.07767.

No recorded trajectory of the authors' code.
"""

from collections.abc import Callable
from math import inf

import numpy as np
from numpy import ndarray


def schedule_free_adam_sps(
    x: ndarray,
    f: Callable[[ndarray, int], tuple[float, ndarray]],
    T: int,
    γ_b: float | ndarray = inf,
    β: float = 0.9,
    β2: float = 0.999,
    ε: float = 1e-8,
    M: float = 0.0,
    f_star: float = 0.0,
    averaged: bool = False,
    r: float = inf,
) -> ndarray:
    """Return y_{T+1}, where the next gradient would be taken, or the average x_{T+1}; the cap and the ball are ours."""
    z = x = y = x * min(1, r / np.linalg.norm(x))
    v = np.zeros_like(x)
    for t in range(1, T + 1):
        f_t, g = f(y, t - 1)
        v = β2 * v + (1 - β2) * g**2
        D = ε + np.sqrt(v / (1 - β2**t))
        γ = np.minimum(max(f_t - f_star + β * (g @ (z - x)), 0) / max(np.sum(g**2 / D), M), γ_b)
        z = z - γ * g / D
        z = z * min(1, r / np.linalg.norm(z))
        x = (1 - 1 / (t + 1)) * x + z / (t + 1)
        y = (1 - β) * z + β * x
    return x if averaged else y
