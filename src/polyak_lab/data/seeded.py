"""The seeds of random numbers that the user's own data may draw."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators of Python, NumPy and torch on the CPU, and restore them at the end."""
    before = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            seed_python(seed)
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def seed_python(seed: int) -> None:
    """Seed the generators of Python and NumPy."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
