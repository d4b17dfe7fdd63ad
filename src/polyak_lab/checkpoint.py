"""A run's state in one file, written atomically and read without unpickling arbitrary objects."""

import io
import zipfile
from pathlib import Path

import torch

from polyak_lab import processes
from polyak_lab.errors import LabError
from polyak_lab.files import said_clearly, write_atomic
from polyak_lab.session import Session

FORMAT = 1


def save(path: Path, this: Session, epochs: int, config_hash: str) -> None:
    """Store the state after so many epochs."""
    content = {"format": FORMAT, "config": config_hash, "epochs": epochs, "state": this.state_dict()}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomic(path, buffer.getvalue())


def load(path: Path, this: Session, config_hash: str) -> int:
    """Put a session into the stored state, if there is one, and return the number of epochs it has done."""
    stored = processes.from_first(lambda: _read(path))
    if stored is None:
        return 0
    try:
        _check_sums(stored)
        content = torch.load(io.BytesIO(stored), map_location=this.run.training.device, weights_only=True)
        if content["format"] != FORMAT or content["config"] != config_hash:
            raise LabError(_refusal(path, "belongs to another run"))
        this.load_state_dict(content["state"])
        return int(content["epochs"])
    except LabError:
        raise
    except Exception as error:  # zip, pickle, key, shape and type errors: all say that this is not what we wrote
        raise LabError(_refusal(path, f"is damaged ({type(error).__name__})")) from error


def _read(path: Path) -> bytes | None:
    with said_clearly("read", path):
        return path.read_bytes() if path.exists() else None


def _check_sums(stored: bytes) -> None:
    """Compare every record with its CRC-32, which torch writes but does not check when it reads."""
    with zipfile.ZipFile(io.BytesIO(stored)) as archive:
        if (record := archive.testzip()) is not None:
            raise zipfile.BadZipFile(record)


def _refusal(path: Path, what: str) -> str:
    return f"The checkpoint {path} {what}: delete it to start this run over, or put a good copy back."
