"""Where data sets are kept."""

import os
from pathlib import Path

from polyak_lab.errors import LabError


def default_root() -> Path:
    """Return $POLYAK_DATA, or ~/.cache/polyak/data."""
    if named := os.environ.get("POLYAK_DATA"):
        return Path(named)
    try:
        return Path.home() / ".cache" / "polyak" / "data"
    except RuntimeError as error:
        raise LabError("There is no home directory: set POLYAK_DATA to the folder of the data sets.") from error
