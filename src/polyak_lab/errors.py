"""The one exception that the runner shows without a traceback."""


class LabError(RuntimeError):
    """One clear sentence for the person at the terminal."""
