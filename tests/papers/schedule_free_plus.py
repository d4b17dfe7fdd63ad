"""ScheduleFree+: Defazio, 2026, arXiv:2605.19095 (AdamC, schedule-free averaging and a Polyak multiplier)."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, pi, sqrt

import numpy as np
from numpy import ndarray


@dataclass(frozen=True)
class Averaging:
    """How x averages z: the weights (k + 1)^r η_max^p, none in the first c_warmup steps, and the annealing of β_sf."""

    r: float = 0.0
    p: float = 2.0
    c_warmup: int = 0
    β_sf: float = 0.9
    β_sf_max: float = 0.965
    anneal_steps: int = 0

    def β(self, k: int) -> float:
        progress = min(k / self.anneal_steps, 1.0) if self.anneal_steps else 0.0
        return 1 - (1 - self.β_sf) ** (1 - progress) * (1 - self.β_sf_max) ** progress


def schedule_free_plus(
    x: ndarray,
    f: Callable[[ndarray, int], tuple[float, ndarray]],
    T: int,
    lr: float | ndarray = 1.0,
    β: tuple[float, float] = (0.9, 0.95),
    β_p: float = 0.0,
    ε: float = 1e-8,
    λ: float = 0.0,
    f_star: float = 0.0,
    averaged: bool = False,
    ball: float = inf,
    **averaging: float,
) -> ndarray:
    """Return y, where the next gradient would be taken, or the average x; the ball is ours. **averaging: see above."""
    average, (m, v), l1, total, top = Averaging(**averaging), np.zeros((2, x.size)), 0.0, 0.0, ε
    z = x = y = x * min(1, ball / np.linalg.norm(x))
    for k in range(T):
        f_k, g = f(y, k)
        l1 = β_p * l1 + (1 - β_p) * np.sum(np.abs(g)) * sqrt(pi / 2)
        η = lr * max(f_k - f_star + average.β(k) * (g @ (z - x)), 0) / (l1 / (1 - β_p ** (k + 1)))
        m, v = β[0] * m + (1 - β[0]) * g, β[1] * v + (1 - β[1]) * g**2
        adam = m / (1 - β[0] ** (k + 1)) / (np.sqrt(v / (1 - β[1] ** (k + 1))) + ε)
        z = z - η**2 * λ * y - η * adam
        z, top = z * min(1, ball / np.linalg.norm(z)), np.maximum(top, η)
        weight = (k + 1) ** average.r * top**average.p if k >= average.c_warmup else 0.0
        total = total + weight
        x = x + (weight / total if k >= average.c_warmup else 1.0) * (z - x)
        y = average.β(k) * x + (1 - average.β(k)) * z
    return x if averaged else y
