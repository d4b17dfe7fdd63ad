"""The entry point of `polyak` and of `python -m polyak_lab`."""

import signal
import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line; name missing packages, and exit quietly at Ctrl-C."""
    interrupt = signal.getsignal(signal.SIGINT)
    if interrupt is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        from polyak_lab.cli.app import main as run
    except ModuleNotFoundError as error:
        from polyak_lab.errors import missing_package

        sys.exit(f"polyak: {missing_package(error)}")
    signal.signal(signal.SIGINT, interrupt)
    run()


if __name__ == "__main__":
    main()
