"""Checkpoints, written atomically and loaded with weights_only=True."""

import io
import zipfile
from pathlib import Path
from typing import Any, Protocol

import torch

from polyak_lab.config.run import Training
from polyak_lab.errors import LabError, RowError, typed_line
from polyak_lab.files import exists, write_atomic
from polyak_lab.processes import group
from polyak_lab.runs.documents import read_bytes

FORMAT = 1
LATER_KEYS = {"polyak_method", "last_momentum"}
"""Keys of parameter groups that the checkpoints of older versions lack."""


class Stateful(Protocol):
    """Any object whose state can be stored in a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state."""
        ...


def save(path: Path, session: Stateful, epochs: int, config_hash: str, metrics: str) -> None:
    """Store the state after a number of epochs, with the SHA-256 of their metrics."""
    content = {"format": FORMAT, "config": config_hash, "epochs": epochs, "metrics": metrics}
    buffer = io.BytesIO()
    try:
        content["state"] = session.state_dict()
        torch.save(content, buffer)
        if epochs == 1:
            torch.load(io.BytesIO(buffer.getbuffer()), map_location="meta", weights_only=True)
    except (LabError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # pickle has no class for them all
        raise RowError(
            f"The state of the model or the optimizer cannot be restored from a checkpoint ({typed_line(error)}): "
            "keep tensors, numbers, text, and lists and dicts of them."
        ) from error
    write_atomic(path, buffer.getvalue())


def load(
    path: Path,
    session: Stateful,
    config_hash: str,
    training: Training,
    *,
    check_slots: bool = True,
) -> tuple[int, str | None]:
    """Load the checkpoint into a session, if there is one.

    Args:
        path: The file.
        session: What it is loaded into.
        config_hash: The hash of the run that it must belong to.
        training: How the run trains.
        check_slots: Whether to check the optimizer's state; that of other packages may hold
            anything.

    Returns:
        The number of its epochs, and the SHA-256 of their lines, which is None in checkpoints of
        older versions.

    Raises:
        LabError: The checkpoint is damaged or belongs to another run.
    """
    stored = group.on_rank_zero(lambda: _read(path))
    if stored is None:
        return 0, None
    try:
        _check_crc(stored)
        content = torch.load(io.BytesIO(stored), map_location=training.device, weights_only=True)
        if content["format"] != FORMAT or content["config"] != config_hash:
            raise LabError(_message(path, "belongs to another run"))
        epochs = content["epochs"]
        if type(epochs) is not int or not 1 <= epochs <= training.epochs:
            raise ValueError(epochs)
        _check_state(session.state_dict(), content["state"], check_slots)
        session.load_state_dict(content["state"])
        return epochs, content.get("metrics")
    except Exception as error:  # zip, pickle, key, shape and type errors: the file is damaged
        if isinstance(error, LabError) or (isinstance(error, RuntimeError) and group.is_lost_connection(error)):
            raise
        raise LabError(_message(path, f"is damaged ({type(error).__name__})")) from error


def _read(path: Path) -> bytes | None:
    return read_bytes(path) if exists(path) else None


def _check_crc(stored: bytes) -> None:
    """Compare each record with its CRC-32, which torch.load does not check."""
    with zipfile.ZipFile(io.BytesIO(stored)) as archive:
        if (record := archive.testzip()) is not None:
            raise zipfile.BadZipFile(record)


def _check_state(expected: Any, stored: Any, check_slots: bool) -> None:
    """Check that a stored state has the keys and types of a new session's state.

    A new session has no optimizer state per parameter yet, so its tensors are compared with the
    shapes of the model.
    """
    shapes = [value.shape for value in expected["model"].values() if isinstance(value, torch.Tensor)]
    if not isinstance(stored, dict) or stored.keys() != expected.keys():
        raise KeyError("state")
    _check_same_type(expected["schedule"], stored["schedule"])
    if not check_slots:
        return
    _check_same_type(expected["optimizer"]["param_groups"], stored["optimizer"]["param_groups"])
    for slots in stored["optimizer"]["state"].values():
        for value in slots.values():
            if isinstance(value, torch.Tensor) and value.numel() != 1 and value.shape not in shapes:
                raise ValueError("shape")
            if value is not None and not isinstance(value, (torch.Tensor, int, float)):
                raise TypeError("state")


def _check_same_type(expected: Any, stored: Any) -> None:
    if isinstance(expected, dict):
        if not isinstance(stored, dict) or expected.keys() - LATER_KEYS != stored.keys() - LATER_KEYS:
            raise KeyError("state")
        for key in expected.keys() & stored.keys():
            _check_same_type(expected[key], stored[key])
    elif isinstance(expected, (list, tuple)):  # betas are a tuple by default, and a list in a recipe
        if not isinstance(stored, (list, tuple)) or len(expected) != len(stored):
            raise ValueError("state")
        for one, other in zip(expected, stored, strict=True):
            _check_same_type(one, other)
    elif expected is not None and type(expected) is not type(stored) and not _are_numbers(expected, stored):
        raise TypeError("state")


def _are_numbers(one: Any, other: Any) -> bool:
    kinds = (int, float, torch.Tensor)
    return isinstance(one, kinds) and isinstance(other, kinds)


def _message(path: Path, what: str) -> str:
    return f"The checkpoint {path} {what}: delete it to train the run again, or restore a good copy."
