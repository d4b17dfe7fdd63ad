"""What a run is: frozen dataclasses, read strictly from tables and stored as JSON.

Importing this module does not import torch, so that `polyak --help` and `polyak table` answer at once.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field
from typing import Any

from polyak_lab.config.strict import (
    check_known,
    is_int64,
    read_fields,
    require_at_least_one,
    require_int64,
    require_positive,
    shown,
)
from polyak_lab.errors import LabError

AUGMENTED_VALIDATION = "sps-augmented-validation"
EVAL_PROTOCOLS = ("clean", AUGMENTED_VALIDATION)
PRECISIONS = ("float32", "bfloat16")
LARGEST_WIDTH = 1e18
"""The square of a kernel's width must be a float32 number."""
MOST_THREADS = 1024
LATER_KEYS = (  # not in the first configurations, whose hashes must stay
    ("data", "root"),
    ("data", "context"),
    ("data", "sha256"),
    ("schedule", "warmup_steps"),
    ("training", "cuda_graph"),
    ("training", "clip_norm"),
)


@dataclass(frozen=True)
class Data:
    """A data set by name, and what is made of it.

    `augment` crops and flips the training images at random. `holdout` keeps so many training samples for validation,
    `train_size` trains on so many of the others; which ones does not depend on the seed. `kernel_width` replaces
    vectors x by the values k(x, xᵢ) = exp(−‖x − xᵢ‖²/(2·width²)) of a Gaussian kernel at the training vectors xᵢ.
    `root` is the file of the data set "text", `context` the number of characters in a sequence of text; `sha256`, the
    checksum of the file, is spelled out when the run starts, so that a run never goes on with another text.
    """

    name: str
    augment: bool = False
    holdout: int | None = None
    train_size: int | None = None
    kernel_width: float | None = None
    root: str | None = None
    context: int | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        require_at_least_one(self, "data", ("holdout", "train_size", "context"))
        require_positive(self, "data", ("kernel_width",), largest=LARGEST_WIDTH)


@dataclass(frozen=True)
class Model:
    """A network by name."""

    name: str


@dataclass(frozen=True)
class Optimizer:
    """An optimizer by name; `options` are the keyword arguments of its class."""

    name: str
    l2_ball: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_table(cls, table: Mapping[str, Any], where: str) -> "Optimizer":
        """Make one from a row's table: what is neither name nor ball is an option of the class."""
        known = {key: table[key] for key in ("name", "l2_ball") if key in table}
        options = {key: value for key, value in table.items() if key not in known}
        return read_fields(cls, {**known, "options": options}, where)


@dataclass(frozen=True)
class Schedule:
    """How `lr` moves: constant, cosine (to zero), or step (times `factor` at every milestone, in epochs).

    Over the first `warmup_steps` steps it also rises from `lr / warmup_steps`, by as much at every step.
    """

    name: str = "constant"
    milestones: tuple[int, ...] = ()
    factor: float = 0.1
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        require_int64(self, "schedule", ("warmup_steps",))
        require_positive(self, "schedule", ("factor",))
        if self.warmup_steps < 0:
            raise LabError(f"schedule.warmup_steps is {self.warmup_steps}, but must be 0 or more.")
        if not all(milestone >= 0 and is_int64(milestone) for milestone in self.milestones):
            raise LabError(f"schedule.milestones is {shown(self.milestones)}, but must hold epochs: 0 or more.")

    @property
    def is_constant(self) -> bool:
        """Whether `lr` stays as it is."""
        return self.name == "constant" and self.warmup_steps < 2


@dataclass(frozen=True)
class Training:
    """How long, in which batches, from which seeds, on what, and how the score is taken.

    `precision`, `channels_last`, `compile` and `cuda_graph` change the speed and, within rounding, nothing else:
    autocast to bfloat16, images with their channels innermost, `torch.compile`, and the whole step as one CUDA graph.
    `clip_norm` clips the norm of the gradient; methods that read the loss are given the norm from before.
    """

    epochs: int
    batch_size: int = 128
    seed: int = 0
    shuffle_seed: int | None = None
    device: str = "auto"
    eval_protocol: str = "clean"
    max_batches: int | None = None
    threads: int | None = None
    precision: str = "float32"
    channels_last: bool = False
    compile: bool = False
    cuda_graph: bool = False
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        require_at_least_one(self, "training", ("epochs", "batch_size", "max_batches", "threads"))
        require_int64(self, "training", ("seed", "shuffle_seed"))
        require_positive(self, "training", ("clip_norm",))
        if self.threads is not None and self.threads > MOST_THREADS:
            raise LabError(f"training.threads is {self.threads}, but must be {MOST_THREADS} or less.")
        check_known(self.precision, PRECISIONS, "training.precision")
        check_known(self.eval_protocol, EVAL_PROTOCOLS, "training.eval_protocol")


@dataclass(frozen=True)
class Run:
    """One training run: everything that decides its numbers, and nothing else."""

    data: Data
    model: Model
    optimizer: Optimizer
    training: Training
    schedule: Schedule = field(default_factory=Schedule)


def as_json(run: Run) -> dict[str, Any]:
    """Turn a run into what config.json holds; a key that came later stands there if it is used."""
    table = asdict(run)
    for section, key in LATER_KEYS:
        if not table[section][key]:
            del table[section][key]
    return plain(table)


def plain(value: Any) -> Any:
    """Make a value fit for strict JSON: infinities and NaN become the strings 'inf', '-inf' and 'nan'."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def content_hash(config: Mapping[str, Any]) -> str:
    """Name a stored configuration by its content."""
    canonical = json.dumps(config, sort_keys=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def first_difference(here: Mapping[str, Any], asked: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """Find the first key, in dotted form, whose values differ."""
    flat_here, flat_asked = dict(_flatten(here)), dict(_flatten(asked))
    for key in dict.fromkeys([*flat_asked, *flat_here]):
        if flat_here.get(key, MISSING) != flat_asked.get(key, MISSING):
            return key, flat_here.get(key, "not set"), flat_asked.get(key, "not set")
    return None


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
