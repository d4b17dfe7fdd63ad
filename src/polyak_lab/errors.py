"""The exceptions that the runner shows without a traceback."""


class LabError(RuntimeError):
    """One clear sentence for the person at the terminal."""


def missing_package(error: ModuleNotFoundError) -> LabError:
    """Name the package to install for a failed import; a missing module of our own is a bug."""
    name = (error.name or "").partition(".")[0]
    if name in ("", "polyak", "polyak_lab"):
        raise error
    return LabError(f"The command needs the package {name}, which is not installed: pip install 'polyak[lab]'.")
