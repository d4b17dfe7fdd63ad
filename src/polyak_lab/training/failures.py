"""What ends a run: a device whose memory is too small, and errors of the user's own code."""

from collections.abc import Iterator
from contextlib import contextmanager

from polyak_lab.config.run import Run, Training
from polyak_lab.errors import LabError, RowError, is_out_of_memory, typed_line
from polyak_lab.imports import own_traceback, uses_own_code
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


def _message(training: Training) -> str:
    half = training.batch_size // 2
    smaller = f"batch_size = {half} in the recipe or --batch-size {half}" if half else "a smaller model"
    bfloat16 = "" if training.precision == "bfloat16" else ', or precision = "bfloat16" or --precision bfloat16'
    return (
        f"The device {training.device} ran out of memory with batch_size = {training.batch_size}: write {smaller}"
        f"{bfloat16}; or free the memory that other programs use, and run the same command again to resume."
    )


@contextmanager
def own_errors(run: Run) -> Iterator[None]:
    """Turn what the user's own code raises into a RowError; errors of a run without such code pass.

    With several processes the one that fails prints the error, and all end.
    """
    try:
        yield
    except (LabError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # also SystemExit
        if not uses_own_code(run) or is_out_of_memory(error):
            raise
        if group.world_size() > 1 and isinstance(error, RuntimeError) and group.is_lost_connection(error):
            raise
        text = f"the run's own code raised {typed_line(error)}."
        if run.training.distributed == "fsdp2" and "DTensor" in str(error):
            text += (
                ' If the model reads weights of a part without calling the part, write training.distributed = "ddp".'
            )
        if group.world_size() == 1:
            raise RowError(text, own_traceback(error)) from error
        single = SingleRankError(text)
        single.details = own_traceback(error)
        raise single from error
