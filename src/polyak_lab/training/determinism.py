"""Torch, made to repeat itself bit by bit."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.utils.deterministic


@contextmanager
def settled(device: str, threads: int | None) -> Iterator[None]:
    """Make torch repeat itself bit by bit while a run trains, and leave it afterwards as it was."""
    if device.startswith("cuda"):  # cuBLAS reads this when it starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    deterministic: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory
    threads_before = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = False  # a write per temporary, and it decides nothing
    torch.set_num_threads(threads or threads_before)
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)
        torch.use_deterministic_algorithms(before[0])
        deterministic.fill_uninitialized_memory = before[1]
