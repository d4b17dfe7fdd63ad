"""The folder of a run.

    config.json        the resolved configuration, its hash, and its place in a table
    environment.json   versions and hardware of each start of the run
    metrics.jsonl      one line per epoch; bit for bit the same if the run is repeated or resumed
    timings.jsonl      one line per epoch with its time
    checkpoint.pt      the state after the last epoch
    checkpoint-3/      its tensors, if distributed = "fsdp2"
    summary.json       written last: the run is finished if it exists

Only rank 0 reads and writes these files, and broadcasts what it read; the tensors of a sharded run
are read and written by all ranks.

The lines of an epoch are appended; all other files are replaced atomically. The checkpoint is
written after the lines, so that a killed run may have more lines than its checkpoint has epochs,
which resuming removes and trains again: one line, or some if the checkpoint is large and epochs are
short, since large ones take at most a twentieth of the time. The checkpoint and the summary store
the SHA-256 of metrics.jsonl, so that a changed line is detected.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

from polyak_lab import imports
from polyak_lab.config.run import Run, as_json, content_hash, first_difference, flatten, plain
from polyak_lab.config.strict import shown
from polyak_lab.console import is_encodable, warn
from polyak_lab.errors import LabError
from polyak_lab.files import append_line, exists, explain_os_errors, remove_unfinished, write_atomic
from polyak_lab.processes import group
from polyak_lab.runs import checkpoint, documents, environment
from polyak_lab.runs.checkpoint import Stateful
from polyak_lab.runs.documents import dump, dump_lines
from polyak_lab.runs.lock import locked
from polyak_lab.runs.sharded import ShardedState, Trained
from polyak_lab.runs.stored import Label, load_run

LARGE = 1 << 26  # bytes of a checkpoint that is not written after every epoch
SHARE = 0.05  # of a run's time that large checkpoints may take
FILES = ("config.json", "environment.json", "metrics.jsonl", "timings.jsonl", "checkpoint.pt", "summary.json")


class RunFolder:
    """The folder of one run: checks, locks, resumes and extends it."""

    def __init__(self, path: Path, run: Run, label: Label) -> None:
        self.path = path
        self.label = label
        self.training = run.training
        self.config = as_json(run)
        self._own_optimizer = imports.is_path(run.optimizer.name)
        self._own_paths = imports.own_paths(run)
        self.records: list[dict[str, Any]] = []
        self.timings: list[dict[str, Any]] = []
        self._next_checkpoint = -math.inf

    @cached_property
    def hash(self) -> str:
        """The hash of the configuration."""
        return content_hash(self.config)

    @property
    def finished(self) -> bool:
        """Whether the run is finished."""
        return exists(self.path / "summary.json")

    @property
    def is_damaged(self) -> bool:
        """Whether the run is finished, but cannot be read."""
        try:
            if self.finished:
                load_run(self.path)
        except LabError:
            return True
        return False

    @property
    def seconds(self) -> float:
        """The time of all epochs, over all starts."""
        return float(sum(timing["seconds"] + timing["evaluation_seconds"] for timing in self.timings))

    @property
    def threads(self) -> int | None:
        """The requested threads, else those of the first start, on which sums depend."""
        if self.training.threads or self.finished:
            return self.training.threads
        path = self.path / "environment.json"
        try:
            starts = documents.read_starts(path) if exists(path) else []
        except LabError as error:
            raise LabError(f"{error} Or delete only this file, to resume with the threads of this machine.") from error
        return int(starts[0]["threads"]) if starts else None

    @contextmanager
    def opened(self) -> Iterator[tuple[bool, int | None]]:
        """Lock and prepare the folder; yield whether its run is finished, and its threads."""
        with ExitStack() as claim:
            yield group.on_rank_zero(lambda: self._lock_and_prepare(claim))

    def _lock_and_prepare(self, claim: ExitStack) -> tuple[bool, int | None]:
        self.check()
        claim.enter_context(locked(self.path))
        self.prepare()
        return self.finished, self.threads

    def check(self) -> None:
        """Refuse a folder that holds anything other than this run."""
        stored = self.path / "config.json"
        for key, value in flatten(self.config):
            if not is_encodable(str(value)):
                raise LabError(f"{key} is {shown(value)}, whose bytes are not UTF-8: rename that file or folder.")
        if exists(self.path) and not self.path.is_dir():
            raise LabError(f"{self.path} is a file: choose a folder with --out.")
        if exists(stored):
            self._refuse_other(documents.read_config(stored))
            return
        with explain_os_errors("read", self.path):
            if self.path.exists() and any(not entry.name.startswith(".") for entry in self.path.iterdir()):
                raise LabError(f"{self.path} is not empty and not a run folder: choose a new one with --out.")

    def changed_packages(self) -> list[str]:
        """Return the packages of the user's own whose source is not that of the last start of this run."""
        starts = self._read_starts() if any(map(imports.is_path, self._own_paths)) else []
        before = starts[-1].get("sources") if starts else None
        now = imports.sources(self._own_paths) if isinstance(before, dict) else {}
        return [package for package, digest in now.items() if before and before.get(package, digest) != digest]

    def prepare(self) -> None:
        """Store the configuration, and remove what a killed process left."""
        self.check()
        remove_unfinished(self.path)
        if not self._is_label_stored():
            write_atomic(self.path / "config.json", self._config_document())

    def store_label(self) -> None:
        """Store the place in a table of a finished run, if it has changed since it was trained."""
        self.check()
        if not self._is_label_stored():
            with self.opened():
                pass

    def _is_label_stored(self) -> bool:
        stored = self.path / "config.json"
        return exists(stored) and documents.read_bytes(stored) == self._config_document().encode()

    def _config_document(self) -> str:
        return self._document({"hash": self.hash, "label": vars(self.label), "run": self.config})

    def resume(self, session: Trained) -> None:
        """Load the checkpoint into a session, and the metrics of its epochs."""
        group.on_rank_zero(self._record_start)
        state, path = self._stateful(session), self.path / "checkpoint.pt"
        epochs, digest = checkpoint.load(path, state, self.hash, self.training, check_slots=not self._own_optimizer)
        self.records, self.timings = group.on_rank_zero(lambda: self._read_lines(epochs))
        self._digest = hashlib.sha256(dump_lines(self.records).encode())
        if digest not in (None, self._digest.hexdigest()):
            raise LabError(
                f"{self.path / 'metrics.jsonl'} was changed after its checkpoint was stored: "
                "restore the file, or delete the folder to train the run again."
            )
        group.on_rank_zero(self._truncate_lines)

    def commit(self, session: Trained, record: dict[str, Any], timing: dict[str, Any]) -> None:
        """Store an epoch: first its lines, then the checkpoint that makes them count."""
        self.records.append(plain(record))
        self.timings.append(plain(timing))
        state = self._stateful(session)
        if isinstance(state, ShardedState):
            state.write(len(self.records))
        group.on_rank_zero(lambda: self._write_epoch(state))

    def _stateful(self, session: Trained) -> Stateful:
        """Return what checkpoint.pt stores: the session, without its tensors if they are sharded."""
        return ShardedState(session, self.path) if self.training.distributed == "fsdp2" else session

    def _write_epoch(self, state: Stateful) -> None:
        line = dump_lines(self.records[-1:])
        self._digest.update(line.encode())
        append_line(self.path / "metrics.jsonl", line)
        append_line(self.path / "timings.jsonl", dump_lines(self.timings[-1:]))
        is_sharded = isinstance(state, ShardedState)  # whose tensors are written after every epoch
        if is_sharded or perf_counter() >= self._next_checkpoint or len(self.records) == self.training.epochs:
            self._write_checkpoint(state)
        if isinstance(state, ShardedState):
            state.remove_others()

    def _write_checkpoint(self, state: Stateful) -> None:
        start, path = perf_counter(), self.path / "checkpoint.pt"
        checkpoint.save(path, state, len(self.records), self.hash, self._digest.hexdigest())
        end = perf_counter()
        is_large = exists(path) and path.stat().st_size >= LARGE
        self._next_checkpoint = end + (end - start) / SHARE if is_large else end

    def finish(self) -> None:
        """Mark the run as finished."""
        digest = hashlib.sha256(dump_lines(self.records).encode()).hexdigest()
        summary = {"hash": self.hash, "seconds": self.seconds, "final": self.records[-1], "metrics": digest}
        group.on_rank_zero(lambda: write_atomic(self.path / "summary.json", self._document(summary)))

    def _record_start(self) -> None:
        start = environment.describe(self.training.device) | {"processes": group.world_size()}
        start |= {"sources": own} if (own := imports.sources(self._own_paths)) else {}
        write_atomic(self.path / "environment.json", self._document({"starts": [*self._read_starts(), start]}))

    def _document(self, content: dict[str, Any]) -> str:
        return dump(documents.with_checksum(plain(content)))

    def _refuse_other(self, stored: Any) -> None:
        difference = first_difference(stored["run"], self.config)
        if difference is None:
            return
        key, stored_value, requested = difference
        raise LabError(
            f"{self.path} holds another run: its {key} is {stored_value!r}, but {requested!r} was requested. "
            "Choose another folder with --out, or delete this one."
        )

    def _read_lines(self, epochs: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Read the lines of the checkpoint's epochs; without a checkpoint there are none."""
        if not epochs:
            return [], []
        path = self.path / "metrics.jsonl"
        records = documents.read_metrics(path, epochs)
        if len(records) < epochs:
            raise LabError(
                f"{path} has {len(records)} lines, but the checkpoint has {epochs} epochs: "
                "delete the folder to train the run again."
            )
        return [plain(line) for line in records], self._read_timings(epochs)

    def _read_timings(self, epochs: int) -> list[dict[str, Any]]:
        """Read the times of the epochs; those of missing or damaged lines are 0, which is said."""
        path = self.path / "timings.jsonl"
        try:
            timings = documents.read_known_timings(path, epochs)
        except LabError:
            timings = []
        timings += [None] * (epochs - len(timings))
        if lost := timings.count(None):
            warn(LabError(f"{path} has no times of {lost} of {epochs} epochs: the time of this run is not known."))
        unknown = {"seconds": 0.0, "evaluation_seconds": 0.0, "images_per_second": 0.0}
        return [timing or {"epoch": epoch, **unknown} for epoch, timing in enumerate(timings, 1)]

    def _truncate_lines(self) -> None:
        """Remove the lines of epochs that the checkpoint does not include."""
        for name, lines in (("metrics.jsonl", self.records), ("timings.jsonl", self.timings)):
            path, text = self.path / name, dump_lines(lines)
            content = documents.read_bytes(path) if exists(path) else b""
            if content != text.encode():
                write_atomic(path, text)

    def _read_starts(self) -> list[dict[str, Any]]:
        """Read the earlier starts; a missing or damaged file has none."""
        try:
            return documents.read_starts(self.path / "environment.json")
        except LabError:
            return []
