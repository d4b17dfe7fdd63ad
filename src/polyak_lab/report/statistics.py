"""Means, standard deviations and paired differences of finite numbers of any size."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Difference(NamedTuple):
    """A mean difference over n seeds and its 95 % confidence interval, which one seed does not have."""

    mean: float
    interval: tuple[float, float] | None
    n: int


def mean(values: Sequence[float]) -> float:
    """Average finite numbers; a sum of large ones does not overflow."""
    scale = max(map(abs, values)) or 1.0
    return scale * statistics.fmean([value / scale for value in values])


def deviation(values: Sequence[float]) -> float:
    """Compute the standard deviation of two or more finite numbers; a square of large ones does not overflow."""
    scale = max(map(abs, values)) or 1.0
    return scale * statistics.stdev([value / scale for value in values])


def paired_difference(ours: Mapping[Any, float], theirs: Mapping[Any, float]) -> Difference | None:
    """Compare two rows on the seeds that both have; None without any, or where a value is not finite."""
    values = [value - theirs[seed] for seed, value in ours.items() if seed in theirs]
    if not values or not all(map(math.isfinite, values)):
        return None
    center, n = mean(values), len(values)
    if n == 1:
        return Difference(center, None, n)
    half = t_quantile(n - 1) * deviation(values) / math.sqrt(n)
    return Difference(center, (center - half, center + half), n)


def t_quantile(degrees: int) -> float:
    """Return the quantile 0.975 of Student's t."""
    from scipy.special import stdtrit  # takes a while to import, and most tables need none

    return float(stdtrit(degrees, 0.975))
