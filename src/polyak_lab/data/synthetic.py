"""The synthetic problems of Loizou et al. (2021), "Stochastic Polyak step-size for SGD", arXiv:2002.10542, section 4.

Both can be interpolated: the loss of every single sample goes to zero at once (for the
factorisation, when the rank of the model is not below that of A, which is 6). They are drawn from
`numpy.random.RandomState`, whose stream never changes, so that everyone has the same problem.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from polyak_lab.data.dataset import Dataset, Split
from polyak_lab.data.source import Source

TRAIN_SHARE = 0.8


def separable_logistic(n: int = 1250, d: int = 20, margin: float = 0.1, seed: int = 0) -> Dataset:
    """Draw points of the unit sphere that a hyperplane through the origin separates.

    Args:
        n: Number of points, the first 80 % for training.
        d: Dimension.
        margin: Least distance of a point to the hyperplane, in [0, 1).
        seed: Seed of everything drawn.

    Returns:
        Vectors with targets ±1, the side of the hyperplane.
    """
    random = np.random.RandomState(seed)
    normal = _on_sphere(random, 1, d)[0]
    kept = np.empty((0, d))
    while len(kept) < n:
        points = _on_sphere(random, n, d)
        kept = np.concatenate([kept, points[np.abs(points @ normal) >= margin]])
    inputs = kept[:n]
    return _dataset("separable-logistic", inputs, np.sign(inputs @ normal), 1, "logistic")


def _on_sphere(random: np.random.RandomState, n: int, d: int) -> np.ndarray:
    points: np.ndarray = random.standard_normal((n, d))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points


def matrix_factorisation(
    n: int = 1000, d: int = 6, outputs: int = 10, condition_number: float = 1e10, seed: int = 0
) -> Dataset:
    """Draw x ~ N(0, I) and y = Ax, to be fitted by W₂W₁x with the model `deep-linear`.

    As in the authors' code, which credits B. Recht: A has uniform entries in rows that are scaled,
    evenly, from 1 down to 1/condition_number; the n vectors are fixed.

    Args:
        n: Number of vectors, the first 80 % for training.
        d: Columns of A, the length of x.
        outputs: Rows of A, the length of y.
        condition_number: Ratio of the scales of the first and the last row.
        seed: Seed of everything drawn.
    """
    random = np.random.RandomState(seed)
    scales = np.linspace(1, 1 / condition_number, outputs)[:, None]
    A = scales * random.uniform(size=(outputs, d))
    X = random.standard_normal((n, d))
    return _dataset("matrix-factorisation", X, X @ A.T, outputs, "squared")


def _dataset(
    name: str,
    inputs: np.ndarray,
    targets: np.ndarray,
    outputs: int,
    loss: str,
) -> Dataset:
    x, y = (torch.from_numpy(array).float() for array in (inputs, targets))
    first = int(TRAIN_SHARE * len(x))
    return Dataset(name, Split(x[:first], y[:first]), Split(x[first:], y[first:]), outputs, loss)


def _source(make: Callable[[], Dataset], name: str, kind: str) -> Source:
    return Source(
        name=name,
        kind=kind,
        how="drawn on the spot",
        find=lambda root: Path(__file__),
        open=lambda place: {},
        parse=lambda contents, place: make(),
    )


SEPARABLE_LOGISTIC = _source(separable_logistic, "separable-logistic", "1,250 vectors, 2 classes, separable")
MATRIX_FACTORISATION = _source(matrix_factorisation, "matrix-factorisation", "1,000 vectors, 10 outputs, y = Ax")
