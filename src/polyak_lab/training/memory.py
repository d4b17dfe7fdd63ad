"""Errors of a device whose memory is too small for a run."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from polyak_lab.config.run import Training
from polyak_lab.errors import LabError
from polyak_lab.processes import group
from polyak_lab.processes.torchrun import SingleRankError


@contextmanager
def explain_oom(training: Training) -> Iterator[None]:
    """Turn an out-of-memory error into a LabError that names the options to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        cls = LabError if group.world_size() == 1 else SingleRankError
        raise cls(_message(training)) from error


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether this is an error of an allocator; that of the CPU has no class of its own."""
    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or (isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))


def _message(training: Training) -> str:
    half = training.batch_size // 2
    smaller = f"batch_size = {half} in the recipe or --batch-size {half}" if half else "a smaller model"
    bfloat16 = "" if training.precision == "bfloat16" else ', or precision = "bfloat16" or --precision bfloat16'
    return (
        f"The device {training.device} ran out of memory with batch_size = {training.batch_size}: write {smaller}"
        f"{bfloat16}; or free the memory that other programs use, and run the same command again to resume."
    )
