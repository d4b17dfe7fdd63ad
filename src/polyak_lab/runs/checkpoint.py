"""A run's state in one file, written atomically and read without unpickling arbitrary objects."""

import io
import zipfile
from pathlib import Path
from typing import Any, Protocol

import torch

from polyak_lab.config.run import Training
from polyak_lab.errors import LabError
from polyak_lab.files import exists, write_atomic
from polyak_lab.processes import group
from polyak_lab.runs.files import read_bytes

FORMAT = 1
LATER_KEYS = {"polyak_method"}
"""Keys of parameter groups that the checkpoints of older versions lack."""


class Stateful(Protocol):
    """What can be stored and put back: anything with a state."""

    def state_dict(self) -> dict[str, Any]:
        """Collect the state."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a stored state."""
        ...


def save(path: Path, this: Stateful, epochs: int, config_hash: str, metrics: str) -> None:
    """Store the state after so many epochs, with the SHA-256 of their lines in metrics.jsonl."""
    content = {"format": FORMAT, "config": config_hash, "epochs": epochs, "metrics": metrics}
    content["state"] = this.state_dict()
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomic(path, buffer.getvalue())


def load(path: Path, this: Stateful, config_hash: str, training: Training) -> tuple[int, str | None]:
    """Put a session into the stored state, if there is one.

    Returns:
        The number of epochs it has done, and the SHA-256 of their lines; None where an older version stored it.
    """
    stored = group.on_rank_zero(lambda: _read(path))
    if stored is None:
        return 0, None
    try:
        _check_sums(stored)
        content = torch.load(io.BytesIO(stored), map_location=training.device, weights_only=True)
        if content["format"] != FORMAT or content["config"] != config_hash:
            raise LabError(_refusal(path, "belongs to another run"))
        epochs = content["epochs"]
        if type(epochs) is not int or not 1 <= epochs <= training.epochs:
            raise ValueError(epochs)
        _check_kinds(this.state_dict(), content["state"])
        this.load_state_dict(content["state"])
        return epochs, content.get("metrics")
    except LabError:
        raise
    except Exception as error:  # zip, pickle, key, shape and type errors: all say that this is not what we wrote
        raise LabError(_refusal(path, f"is damaged ({type(error).__name__})")) from error


def _read(path: Path) -> bytes | None:
    return read_bytes(path) if exists(path) else None


def _check_sums(stored: bytes) -> None:
    """Compare every record with its CRC-32, which torch writes but does not check when it reads."""
    with zipfile.ZipFile(io.BytesIO(stored)) as archive:
        if (record := archive.testzip()) is not None:
            raise zipfile.BadZipFile(record)


def _check_kinds(fresh: Any, stored: Any) -> None:
    """Compare a stored state with that of a new session: the same keys, and values of the same kind.

    What an optimizer keeps per parameter is not there yet in a new session; its tensors must have the parameter's
    shape, or hold one number.
    """
    shapes = [value.shape for value in fresh["model"].values()]
    if not isinstance(stored, dict) or stored.keys() != fresh.keys():
        raise KeyError("state")
    _same_kind(fresh["schedule"], stored["schedule"])
    _same_kind(fresh["optimizer"]["param_groups"], stored["optimizer"]["param_groups"])
    for slots in stored["optimizer"]["state"].values():
        for value in slots.values():
            if isinstance(value, torch.Tensor) and value.numel() != 1 and value.shape not in shapes:
                raise ValueError("shape")
            if value is not None and not isinstance(value, (torch.Tensor, int, float)):
                raise TypeError("state")


def _same_kind(fresh: Any, stored: Any) -> None:
    if isinstance(fresh, dict):
        if not isinstance(stored, dict) or fresh.keys() - LATER_KEYS != stored.keys() - LATER_KEYS:
            raise KeyError("state")
        for key in fresh.keys() & stored.keys():
            _same_kind(fresh[key], stored[key])
    elif isinstance(fresh, list):
        if not isinstance(stored, list) or len(fresh) != len(stored):
            raise ValueError("state")
        for one, other in zip(fresh, stored, strict=True):
            _same_kind(one, other)
    elif fresh is not None and type(fresh) is not type(stored) and not _are_numbers(fresh, stored):
        raise TypeError("state")


def _are_numbers(one: Any, other: Any) -> bool:
    kinds = (int, float, torch.Tensor)
    return isinstance(one, kinds) and isinstance(other, kinds)


def _refusal(path: Path, what: str) -> str:
    return f"The checkpoint {path} {what}: delete it to start this run over, or put a good copy back."
