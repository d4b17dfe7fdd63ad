"""The polar factor UVᵀ of a matrix UΣVᵀ: exact, by Newton-Schulz as in Muon, and by Polar Express."""

import numpy as np
from numpy import ndarray

# Amsel, Persson, Musco and Gower, 2025, arXiv:2505.16932; each triple but the last is divided by 1.01, 1.01³, 1.01⁵.
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)


def exact(G: ndarray) -> ndarray:
    U, _, Vh = np.linalg.svd(G, full_matrices=False)
    return U @ Vh


def _iterate(X: ndarray, coefficients: list[tuple[float, float, float]]) -> ndarray:
    if X.shape[0] > X.shape[1]:
        return _iterate(X.T, coefficients).T
    for a, b, c in coefficients:
        A = X @ X.T
        X = a * X + (b * A + c * A @ A) @ X
    return X


def newton_schulz(G: ndarray, steps: int = 5) -> ndarray:
    """Jordan et al., 2024, the quintic iteration of Muon."""
    return _iterate(G / (np.linalg.norm(G) + 1e-7), [(3.4445, -4.7750, 2.0315)] * steps)


def polar_express(G: ndarray, steps: int = 5) -> ndarray:
    safe = [(a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in POLAR_EXPRESS[:-1]] + [POLAR_EXPRESS[-1]]
    return _iterate(G / (1.01 * np.linalg.norm(G) + 1e-7), (safe + safe[-1:] * steps)[:steps])
