"""Checkpoints of sharded runs, which all processes write and read together with torch.distributed.checkpoint.

The tensors of the model and of the optimizer are stored in a folder of their own, checkpoint-EPOCHS;
checkpoint.pt stores everything else, and a meta tensor in the place of each of them. Because it is
written last and replaced atomically, a checkpoint is either complete or the previous one.

Loading executes no code. torch.distributed.checkpoint itself loads tensors with weights_only=True but
its .metadata with pickle, so that file is read here, and may name nothing but the classes of a table of tensors.
"""

import hashlib
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, final

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from polyak_lab.errors import LabError, RowError
from polyak_lab.files import explain_os_errors
from polyak_lab.processes import group
from polyak_lab.processes.sharding import is_sharded

FOLDER = re.compile(r"checkpoint-\d+")
FOLDERS = "checkpoint-*"
Visit = Callable[[tuple[str, ...], Tensor], Tensor]


class Trained(Protocol):
    """What trains a model by an optimizer."""

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...  # noqa: D102
    def state_dict(self) -> dict[str, Any]: ...  # noqa: D102
    def load_state_dict(self, state: dict[str, Any]) -> None: ...  # noqa: D102


@final
class ShardedState:
    """The state of a session whose tensors are stored in a folder beside its checkpoint."""

    def __init__(self, session: Trained, path: Path) -> None:
        self._session = session
        self._path = path
        self._stored: dict[str, Any] = {"folder": "", "files": {}}

    def write(self, epochs: int) -> None:
        """Write the tensors; all processes must call this.

        Raises:
            LabError: They cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        _replace(self._session.state_dict(), lambda where, value: self._take(where, value, tensors))
        folder = self._path / f"checkpoint-{epochs}"
        group.on_rank_zero(lambda: _make_empty(folder))
        with _explained(f"Cannot write {folder}"):
            state_dict_saver.save(tensors, storage_writer=FileSystemWriter(folder))
        own = group.on_all_ranks(lambda: _digests(folder, sorted(path.name for path in folder.iterdir())))
        group.on_rank_zero(lambda: _sync(folder))
        files = {name: digest for part in group.gather(own) for name, digest in part.items()}
        self._stored = {"folder": folder.name, "files": files}

    def remove_others(self) -> None:
        """Remove the folders of other checkpoints; only one process calls this, after checkpoint.pt is written."""
        for folder in self._path.glob(FOLDERS):
            if FOLDER.fullmatch(folder.name) and folder.name != self._stored["folder"]:
                shutil.rmtree(folder, ignore_errors=True)

    def state_dict(self) -> dict[str, Any]:
        """Return what checkpoint.pt stores."""
        rest = _replace(self._session.state_dict(), lambda where, value: self._take(where, value, {}))
        return {**rest, "tensors": self._stored}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what checkpoint.pt stores, and the tensors; all processes must call this.

        Raises:
            LabError: A file is missing or damaged.
        """
        stored, targets, model = state["tensors"], {}, self._session.state_dict()["model"]
        if not isinstance(stored["folder"], str) or not FOLDER.fullmatch(stored["folder"]):
            raise ValueError("folder")

        def place(where: tuple[str, ...], value: Tensor) -> Tensor:
            if not value.is_meta:
                return value
            like = model[where[1]] if where[0] == "model" else self._parameters()[int(where[2])]
            if like.shape != value.shape:
                raise ValueError("shape")
            targets["/".join(where)] = target = torch.empty_like(like, dtype=value.dtype, requires_grad=False)
            return target

        filled = _replace({key: value for key, value in state.items() if key != "tensors"}, place)
        self._read(self._path / stored["folder"], stored["files"], targets)
        self._session.load_state_dict(filled)

    def _read(self, folder: Path, files: Mapping[str, str], targets: dict[str, Tensor]) -> None:
        damaged = f"The checkpoint {folder} is damaged: delete {folder.parent / 'checkpoint.pt'} to train the run again"
        table = group.on_all_ranks(lambda: _checked_table(folder, files, damaged))
        with _explained(damaged):
            state_dict_loader.load(targets, storage_reader=_Reader(folder, table))

    def _parameters(self) -> list[Tensor]:
        return [parameter for part in self._session.optimizer.param_groups for parameter in part["params"]]

    def _take(self, where: tuple[str, ...], value: Tensor, tensors: dict[str, Tensor]) -> Tensor:
        """Collect a tensor of the model, or one with the shape of its parameter; leave the others where they are."""
        is_slot = where[:2] == ("optimizer", "state") and where[2].isdecimal() and value.dim() > 0
        if where[0] == "model" or (is_slot and value.shape == self._parameters()[int(where[2])].shape):
            tensors["/".join(where)] = value
            return torch.empty(value.shape, dtype=value.dtype, device="meta")
        if is_sharded(value):
            raise RowError(
                f"The optimizer's state {where[-1]!r} is sharded in another shape than its parameter, which no "
                'checkpoint can store: write training.distributed = "ddp".'
            )
        return value


@final
class _Reader(FileSystemReader):
    """Reads tensors by a table that was read and checked before."""

    def __init__(self, folder: Path, table: Metadata) -> None:
        super().__init__(folder)
        self._table = table

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._table


@final
class _TableUnpickler(pickle.Unpickler):
    """Unpickles the classes of a table of tensors, and refuses everything else."""

    ALLOWED = {  # noqa: RUF012
        "torch": ("Size",),
        "torch.serialization": ("_get_layout",),
        "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
        "torch.distributed.checkpoint.metadata": (
            *("ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties"),
            *("TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
        ),
    }

    def find_class(self, module: str, name: str) -> Any:
        if module in ("pathlib", "pathlib._local"):  # the path that it was written to, of any system and Python
            return PurePosixPath
        if name in self.ALLOWED.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _replace(value: Any, visit: Visit, where: tuple[str, ...] = ()) -> Any:
    """Return nested containers with every tensor replaced by what `visit` returns for it and its keys."""
    if isinstance(value, Tensor):
        return visit(where, value)
    if isinstance(value, Mapping):
        return {key: _replace(item, visit, (*where, str(key))) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_replace(item, visit, (*where, str(i))) for i, item in enumerate(value))
    return value


def _make_empty(folder: Path) -> None:
    with explain_os_errors("write", folder):
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)


def _digests(folder: Path, names: list[str]) -> dict[str, str]:
    """Return the SHA-256 of this rank's part of the files."""
    digests = {}
    for name in names[group.rank() :: group.world_size()]:
        with explain_os_errors("read", folder / name), (folder / name).open("rb") as file:
            digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _checked_table(folder: Path, files: Mapping[str, str], damaged: str) -> Metadata:
    """Compare this rank's part of the files with their digests, and read the table of the tensors in them."""
    try:
        for name, digest in _digests(folder, sorted(files)).items():
            if files[name] != digest:
                raise LabError(f"the content of {name} has changed.")
        with (folder / ".metadata").open("rb") as file:
            table: Metadata = _TableUnpickler(file).load()
        if not all(isinstance(entry, TensorStorageMetadata) for entry in table.state_dict_metadata.values()):
            raise pickle.UnpicklingError("it holds something that is not a tensor")
        if not all(part.relative_path in files for part in table.storage_data.values()):
            raise pickle.UnpicklingError("it names other files")
    except Exception as error:  # a damaged pickle fails in every way there is
        reason = (
            str(error).rstrip(".") if isinstance(error, (LabError, pickle.UnpicklingError)) else type(error).__name__
        )
        raise LabError(f"{damaged}, or restore a good copy ({reason}).") from error
    return table


def _sync(folder: Path) -> None:
    """Flush the names of a folder's files to the disk, and its own name."""
    for path in (folder, folder.parent) if os.name == "posix" else ():
        with explain_os_errors("write", path):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn an error of torch.distributed.checkpoint, on any rank, into a LabError."""
    try:
        with warnings.catch_warnings():
            # One process needs no process group, of which torch warns.
            warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
            yield
    except CheckpointException as failure:
        error, _ = next(iter(failure.failures.values()))
        reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
        raise LabError(f"{what} ({reason}).") from error
