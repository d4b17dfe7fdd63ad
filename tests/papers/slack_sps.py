"""SPSL1 and SPSdam: Gower, Blondel, Gazagnadou and Pedregosa, 2022, arXiv:2202.12328, Lemmas 3.2 and 3.4.

No recorded trajectory of the authors' code.
"""

from collections.abc import Callable
from math import inf

import numpy as np
from numpy import ndarray


def slack_sps(
    w: ndarray,
    f: Callable[[ndarray, int], tuple[float, ndarray]],
    T: int,
    λ: float,
    δ: float | None = None,
    γ_b: float | ndarray = inf,
    f_star: float = 0.0,
    r: float = inf,
) -> ndarray:
    """Return w^T; SPSL1 with δ, SPSdam without. The cap does not enter the slack; it and the ball are ours."""
    w = w * min(1, r / np.linalg.norm(w))
    s = 0.0
    for t in range(T):
        f_i, g = f(w, t)
        f_i = max(f_i - f_star, 0)
        if δ is None:
            γ = max(f_i - (1 - λ) * s, 0) / (g @ g + 1 - λ)
            s = (1 - λ) * (s + γ)
        else:
            γ_1 = max(f_i - s + δ * λ, 0) / (δ + g @ g)
            s, γ = max(s - λ * δ + δ * γ_1, 0), min(γ_1, f_i / (g @ g))
        w = w - np.minimum(γ, γ_b) * g
        w = w * min(1, r / np.linalg.norm(w))
    return w
