"""ALI-G+: Paren, Poudel and Kumar, TMLR 2022, "Faking Interpolation Until You Make It"."""

from collections.abc import Callable
from math import inf

import numpy as np
from numpy import ndarray


def _revised(A: ndarray, Δ: ndarray, best: ndarray) -> tuple[ndarray, ndarray]:
    """Lower the targets that were reached by half of their last increase, and raise the others half way."""
    reached = best <= A
    Δ = np.where(reached, Δ, np.maximum(best - A, 0) / 2)
    return np.where(reached, np.maximum(A - Δ / 2, 0), (A + best) / 2), Δ


def alig_plus(
    w: ndarray,
    f: Callable[[ndarray, int], tuple[float | ndarray, ndarray]],
    T: int,
    N: int,
    n: int,
    E: int,
    K: int = 5,
    η: float | ndarray = 0.1,
    μ: float = 0.9,
    λ: float = 0.0,
    δ: float = 1e-9,
    z: Callable[[int], ndarray | int] | None = None,
    r: float = inf,
) -> ndarray:
    """Return w_T; f gives the losses of the samples z(t), of N; n steps make one of E epochs. The ball is ALI-G's."""
    w = w * min(1, r / np.linalg.norm(w))
    v, (A, Δ), best, last = np.zeros_like(w), np.zeros((2, N)), np.full(N, 1e6), np.full(N, 1e6)
    for t in range(T):
        ℓ_z, g = f(w, t)
        i = t % N if z is None else z(t)
        last[i] = ℓ_z
        γ = np.minimum(max(np.mean(ℓ_z - A[i]) / (g @ g + δ), 0), η)
        v = μ * v - γ * g
        w = w - γ * (g + λ * w) + μ * v
        w = w * min(1, r / np.linalg.norm(w))
        best = last.copy() if (t + 1) % n == 0 and last.mean() < best.mean() else best
        if (t + 1) % (n * (E // K)) == 0:
            A, Δ = _revised(A, Δ, best)
    return w
