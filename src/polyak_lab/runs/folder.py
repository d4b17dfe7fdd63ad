"""The folder of a run.

    config.json        what ran, spelled out, with its content hash and its place in a table
    environment.json   where it ran, once for every time it was started
    metrics.jsonl      one line per epoch: the same bytes whenever the run is repeated or resumed
    timings.jsonl      one line per epoch: what the clock said
    checkpoint.pt      the state after the last epoch
    summary.json       written last: a folder that has it is finished

The first process alone reads and writes; what it finds, all processes know.

The lines of an epoch are appended, and every other file is replaced as a whole. The checkpoint is written after the
lines, so that a killed run leaves at most one line, or a part of one, more than its checkpoint has epochs; resuming
drops it. The checkpoint and the summary hold the SHA-256 of metrics.jsonl: a line that changed since is noticed.
"""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from polyak_lab.config.run import Run, as_json, content_hash, first_difference, plain
from polyak_lab.errors import LabError
from polyak_lab.files import append_line, exists, remove_unfinished, said_clearly, write_atomic
from polyak_lab.processes import group
from polyak_lab.runs import checkpoint, environment
from polyak_lab.runs import files as run_files
from polyak_lab.runs.checkpoint import Stateful
from polyak_lab.runs.lock import locked
from polyak_lab.runs.stored import Label, as_lines, pretty

FILES = ("config.json", "environment.json", "metrics.jsonl", "timings.jsonl", "checkpoint.pt", "summary.json")


class RunFolder:
    """One run on the disk: what it has done so far, and how it goes on."""

    def __init__(self, path: Path, run: Run, label: Label) -> None:
        self.path = path
        self.label = label
        self.training = run.training
        self.config = as_json(run)
        self.records: list[dict[str, Any]] = []
        self.timings: list[dict[str, Any]] = []

    @cached_property
    def hash(self) -> str:
        """The content hash of the configuration."""
        return content_hash(self.config)

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return exists(self.path / "summary.json")

    @property
    def seconds(self) -> float:
        """How long the epochs took, over all starts."""
        return float(sum(timing["seconds"] + timing["evaluation_seconds"] for timing in self.timings))

    @property
    def threads(self) -> int | None:
        """The threads asked for, else those of the first start: sums on a CPU depend on them."""
        if self.training.threads or self.finished:
            return self.training.threads
        path = self.path / "environment.json"
        try:
            starts = run_files.read_starts(path) if exists(path) else []
        except LabError as error:
            raise LabError(f"{error} Or delete this file alone, to go on with the threads of this machine.") from error
        return int(starts[0]["threads"]) if starts else None

    @contextmanager
    def opened(self) -> Iterator[tuple[bool, int | None]]:
        """Claim and prepare the folder; yield whether its run is finished, and the threads it takes."""
        with ExitStack() as claim:
            yield group.on_rank_zero(lambda: self._open(claim))

    def _open(self, claim: ExitStack) -> tuple[bool, int | None]:
        self.check()
        claim.enter_context(locked(self.path))
        self.prepare()
        return self.finished, self.threads

    def check(self) -> None:
        """Refuse a folder that holds something else than this very run."""
        stored = self.path / "config.json"
        if exists(self.path) and not self.path.is_dir():
            raise LabError(f"{self.path} is a file: name a folder with --out.")
        if exists(stored):
            self._refuse_other(run_files.read_config(stored))
            return
        with said_clearly("read", self.path):
            if self.path.exists() and any(not entry.name.startswith(".") for entry in self.path.iterdir()):
                raise LabError(f"{self.path} is not empty and not a run folder: name a new one with --out.")

    def prepare(self) -> None:
        """Store the configuration, unless it is there."""
        self.check()
        stored = self.path / "config.json"
        remove_unfinished(self.path)
        text = self._document({"hash": self.hash, "label": vars(self.label), "run": self.config})
        if not exists(stored) or run_files.read_bytes(stored) != text.encode():
            write_atomic(stored, text)

    def resume(self, this: Stateful) -> None:
        """Bring a session to where the checkpoint was taken, with the lines of its epochs."""
        group.on_rank_zero(self._note_start)
        epochs, digest = checkpoint.load(self.path / "checkpoint.pt", this, self.hash, self.training)
        self.records, self.timings = group.on_rank_zero(lambda: self._lines(epochs))
        self._digest = hashlib.sha256(as_lines(self.records).encode())
        if digest not in (None, self._digest.hexdigest()):
            raise LabError(
                f"{self.path / 'metrics.jsonl'} was changed after its checkpoint was stored: "
                "put the file back as it was, or delete the folder to start this run over."
            )
        group.on_rank_zero(self._drop_other_lines)

    def commit(self, this: Stateful, record: dict[str, Any], timing: dict[str, Any]) -> None:
        """Store an epoch: its lines first, the checkpoint that makes them count last."""
        self.records.append(plain(record))
        self.timings.append(plain(timing))
        group.on_rank_zero(lambda: self._store(this))

    def _store(self, this: Stateful) -> None:
        line = as_lines(self.records[-1:])
        self._digest.update(line.encode())
        append_line(self.path / "metrics.jsonl", line)
        append_line(self.path / "timings.jsonl", as_lines(self.timings[-1:]))
        checkpoint.save(self.path / "checkpoint.pt", this, len(self.records), self.hash, self._digest.hexdigest())

    def finish(self) -> None:
        """Write the file that says the run is finished."""
        digest = hashlib.sha256(as_lines(self.records).encode()).hexdigest()
        summary = {"hash": self.hash, "seconds": self.seconds, "final": self.records[-1], "metrics": digest}
        group.on_rank_zero(lambda: write_atomic(self.path / "summary.json", self._document(summary)))

    def _note_start(self) -> None:
        start = environment.describe(self.training.device) | {"processes": group.world_size()}
        write_atomic(self.path / "environment.json", self._document({"starts": [*self._starts(), start]}))

    def _document(self, content: dict[str, Any]) -> str:
        return pretty(run_files.with_checksum(plain(content)))

    def _refuse_other(self, stored: Any) -> None:
        difference = first_difference(stored["run"], self.config)
        if difference is None:
            return
        key, here, asked = difference
        raise LabError(
            f"{self.path} holds another run: {key} is {here!r} there and {asked!r} here. "
            "Choose another folder with --out, or delete this one."
        )

    def _lines(self, epochs: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Read the lines of the checkpoint's epochs; without a checkpoint the run starts over, whatever is there."""
        if not epochs:
            return [], []
        path = self.path / "metrics.jsonl"
        records = run_files.read_metrics(path, epochs)
        if len(records) < epochs:
            raise LabError(
                f"{path} has {len(records)} lines, but the checkpoint has {epochs} epochs: "
                "delete the folder to start this run over."
            )
        return [plain(line) for line in records], self._earlier_timings(epochs)

    def _earlier_timings(self, epochs: int) -> list[dict[str, Any]]:
        """Read what the clock said; epochs of which nothing is known any more count no time."""
        try:
            timings = run_files.read_timings(self.path / "timings.jsonl", epochs)
        except LabError:
            timings = []
        unknown = {"seconds": 0.0, "evaluation_seconds": 0.0, "images_per_second": 0.0}
        return timings + [{"epoch": epoch + 1, **unknown} for epoch in range(len(timings), epochs)]

    def _drop_other_lines(self) -> None:
        """Cut the files of lines to those that the checkpoint counts."""
        for name, lines in (("metrics.jsonl", self.records), ("timings.jsonl", self.timings)):
            path, text = self.path / name, as_lines(lines)
            found = run_files.read_bytes(path) if exists(path) else b""
            if found != text.encode():
                write_atomic(path, text)

    def _starts(self) -> list[dict[str, Any]]:
        """Read the earlier starts; a log that is damaged is begun anew."""
        try:
            return run_files.read_starts(self.path / "environment.json")
        except LabError:
            return []
