"""The command line: executes the verb, and turns errors and signals into an exit status."""

import os
import signal
from collections.abc import Sequence
from typing import Any, NoReturn

import tyro
from rich.console import Console

from polyak_lab.cli import signals
from polyak_lab.cli.verbs import RunRecipe, Train, Verb
from polyak_lab.console import OutputLostError, guarded, make_console, mend_size, say_error
from polyak_lab.errors import LabError, is_out_of_memory, missing_package
from polyak_lab.processes import torchrun


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its status."""
    signals.install()
    mend_size()
    # Waiting threads should sleep: spinning, the default, slows a small model down 6 times on a
    # busy machine.

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    torchrun.exit_process(_run(argv))


def _run(argv: Sequence[str] | None) -> int:
    try:
        with guarded():
            return _call(argv)
    except OutputLostError as error:
        if error.is_pipe:  # closed by its reader, such as `head`
            return 128 + signal.SIGPIPE
        return _say_last(make_console(stderr=True), f"polyak: {error}", 1)


def _call(argv: Sequence[str] | None) -> int:
    is_rank_zero = torchrun.rank() == 0
    errors = make_console(stderr=True, quiet=not is_rank_zero)
    try:
        verb: Any = tyro.cli(
            Verb, args=argv, prog="polyak", description=DESCRIPTION, config=CONFIG, console_outputs=is_rank_zero
        )
        _check_processes(verb)
        verb.execute(make_console(quiet=not is_rank_zero))
        signals.ends(0)
    except OutputLostError:
        raise
    except ModuleNotFoundError as error:
        return _say_last(errors, f"polyak: {missing_package(error)}", 1)
    except LabError as error:
        errors.quiet &= not isinstance(error, torchrun.SingleRankError)
        return _say_last(errors, f"polyak: {error}", 1, error.details)
    except (MemoryError, RuntimeError, ImportError) as error:
        if not is_out_of_memory(error):
            raise
        return _say_last(errors, NO_MEMORY, 1)
    except KeyboardInterrupt as stop:
        return _say_last(errors, signals.STOPPED, 143 if isinstance(stop, signals.Terminated) else 130)
    except SystemExit as stop:  # after a usage error, or --help
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


def _say_last(errors: Console, text: str, status: int, details: str = "") -> int:
    """Print why this process ends, and return its status; later signals are ignored."""
    signals.ends(status)
    say_error(errors, text, details)
    return status


def _check_processes(verb: Any) -> None:
    """Refuse verbs that would do the same work in every process."""
    if torchrun.world_size() > 1 and not isinstance(verb, (Train, RunRecipe)):
        raise LabError("torchrun starts polyak train and polyak run: start everything else without it.")


NO_MEMORY = (
    "polyak: There is no memory left for this command: free what other programs use, or raise the limit of ulimit -v. "
    "Run the same command again to resume."
)
DESCRIPTION = "Train, compare and report optimizers that set their step size from the loss."
CONFIG = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)
