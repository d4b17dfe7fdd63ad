"""Muon-MoMo: Crawshaw et al., ICML 2026, arXiv:2510.09827, in LMO form with the ℓ∞ product of the layers' norms."""

from collections.abc import Callable
from math import inf

import numpy as np
from numpy import ndarray

from .polar import exact


def _direction(
    m: ndarray, v: ndarray, ε: float, shape: tuple[int, ...], rest: str, polar: Callable[..., ndarray]
) -> ndarray:
    """Return the steepest direction u of one block; ⟨m, u⟩ is the dual norm of m."""
    if len(shape) == 2 and m.size:
        return polar(m.reshape(shape)).reshape(-1)
    return m / (ε + np.sqrt(v)) if rest == "adam" else np.sign(m)


def muon_momo(
    x: ndarray,
    f: Callable[[ndarray, int], tuple[float, ndarray]],
    T: int,
    η: float | ndarray = 0.01,
    β: tuple[float, float] = (0.95, 0.95),
    ε: float = 1e-8,
    λ: float = 0.0,
    f_star: float = 0.0,
    shapes: tuple[tuple[int, ...], ...] | None = None,
    rest: str = "adam",
    polar: Callable[[ndarray], ndarray] = exact,
    stale: bool = False,
    r: float = inf,
) -> ndarray:
    """Return x_T; blocks with two dimensions have the spectral norm. The positive part and the ball are ours."""
    x, shapes, norms = x * min(1, r / np.linalg.norm(x)), shapes or (x.shape,), []
    cuts, (m, v), h = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1], np.zeros((2, x.size)), 0.0
    for t in range(T):
        f_t, g = f(x, t)
        b, b2 = β if t else (0.0, 0.0)
        m, v, h = b * m + (1 - b) * g, b2 * v + (1 - b2) * g**2, b * h + (1 - b) * (f_t - g @ x)
        blocks = zip(np.split(m, cuts), np.split(v, cuts), shapes, strict=True)
        u = np.concatenate([_direction(m_l, v_l, ε, shape, rest, polar) for m_l, v_l, shape in blocks])
        last, norms = norms, [np.sum(product) for product in np.split(m * u, cuts)]
        dual = sum(last[i] if stale and t and len(shapes[i]) == 2 else norm for i, norm in enumerate(norms))
        η_t = np.minimum(max(h - f_star + m @ x, 0) / dual, η)
        x = (1 - η * λ if λ else 1.0) * x - η_t * u
        x = x * min(1, r / np.linalg.norm(x))
    return x
