"""The exceptions that the runner shows without a traceback of its own."""

LONGEST_LINE = 150
"""Characters of another package's message that are shown."""


class LabError(RuntimeError):
    """One clear sentence for the person at the terminal."""

    details = ""
    """Lines that are printed below it, such as the traceback of the user's own code."""


class RowError(LabError):
    """An error in the user's own code or files: it belongs to one row of a recipe, and the others are trained."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message, details)
        self.details = details

    def __str__(self) -> str:
        return str(self.args[0])


def first_line(error: BaseException) -> str:
    """Return the start of an error's message, without its full stop; the name of its type if there is none."""
    return _message(error) or type(error).__name__


def typed_line(error: BaseException) -> str:
    """Return the type of an error and the start of its message, without its full stop."""
    message = _message(error)
    return f"{type(error).__name__}{': ' if message else ''}{message}"


def _message(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:LONGEST_LINE].rstrip(" .")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an allocator, or the loader of a library, found no memory; torch need not be imported."""
    if isinstance(error, ImportError):
        return "failed to map segment" in str(error)
    is_torch = isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)  # the CPU's has no class
    )
    return is_torch or isinstance(error, MemoryError)


def missing_package(error: ModuleNotFoundError) -> LabError:
    """Name the package to install for a failed import; a missing module of our own is a bug."""
    name = (error.name or "").partition(".")[0]
    if name in ("", "polyak", "polyak_lab"):
        raise error
    return LabError(f"The command needs the package {name}, which is not installed: pip install 'polyak[lab]'.")
