"""The exceptions that the runner shows without a traceback of its own."""


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
