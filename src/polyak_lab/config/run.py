"""What a run is: frozen dataclasses, read strictly from tables, from flags by tyro, and stored as JSON.

A field's docstring is the help of its flag. This module does not import torch, so that `polyak
--help` starts fast.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field
from typing import Annotated, Any, Final, Literal, get_args

from tyro.conf import arg

from polyak_lab.config.names import method_names
from polyak_lab.config.options import data_options, model_options, objective_options, options_from_flags
from polyak_lab.config.strict import (
    check_known,
    is_int64,
    read_fields,
    require_at_least_one,
    require_int64,
    require_positive,
    require_storable,
    shown,
)
from polyak_lab.errors import LabError

AUGMENTED_VALIDATION: Final = "sps-augmented-validation"
EvalProtocol = Literal["clean", "sps-augmented-validation"]
Precision = Literal["float32", "bfloat16"]
Distributed = Literal["ddp", "fsdp2"]
ScheduleName = Literal["constant", "cosine", "step"]
BALLS: Final = ("l2_ball", "l2_ball_relative")
"""The keys of an optimizer that become its constraint."""
NONE: Final = "none"
"""How a recipe writes None, for which TOML has no value."""
Options = Mapping[str, Any]
LARGEST_WIDTH = 1e18
"""The square of a kernel's width must be a float32 number."""
MOST_THREADS = 1024
LATER_KEYS = (  # not in the first configurations, whose hashes must stay
    ("data", "root"),
    ("data", "context"),
    ("data", "sha256"),
    *(("data", key) for key in ("outputs", "workers", "options", "version")),
    *((section, key) for section in ("model", "objective") for key in ("options", "version")),
    ("objective", "name"),
    ("optimizer", "version"),
    ("optimizer", "l2_ball_relative"),
    ("schedule", "warmup_steps"),
    ("training", "cuda_graph"),
    ("training", "clip_norm"),
    ("training", "distributed"),
)
DDP = ("training", "distributed", "ddp")


_OPTIMIZERS: Final = (
    f"sgd, adam, adamw or a method that reads the loss: {', '.join(method_names())}. Any class: package.module:Class."
)


@dataclass(frozen=True)
class Data:
    """What to train on."""

    name: Annotated[str, arg(name="data")]
    """Data set; `polyak data list` prints the names. Your own: package.module:function."""
    augment: bool = False
    """Crop (padding 4) and flip the training images at random."""
    holdout: int | None = None
    """Training samples to keep for validation; which ones does not depend on the seed."""
    train_size: int | None = None
    """Train on so many of the remaining samples; which ones does not depend on the seed."""
    kernel_width: float | None = None
    """Replace vectors x by exp(-|x - x_i|^2 / (2 width^2)) for every training vector x_i."""
    root: str | None = None
    """The file of --data text, or the folder of --data folder."""
    context: int | None = None
    """Characters in a sequence of text; 128 unless given."""
    sha256: str | None = None
    """SHA-256 checksum of its content; filled in when the run starts, so that it never resumes with other data."""
    outputs: int | None = None
    """Number of classes of your own data, where it cannot be told from the data."""
    workers: int | None = None
    """Worker processes that read your own Datasets. Default: none."""
    options: Annotated[Options, arg(name="", constructor=data_options)] = field(default_factory=dict, hash=False)
    """Keyword arguments of your own function."""
    version: Annotated[str | None, arg(name="data-version")] = None
    """The version of its package, as a pin; filled in when the run starts."""

    def __post_init__(self) -> None:
        require_at_least_one(self, "data", ("holdout", "train_size", "context", "outputs", "workers"))
        require_positive(self, "data", ("kernel_width",), largest=LARGEST_WIDTH)
        require_storable(self.options, "data.options")


@dataclass(frozen=True)
class Model:
    """The network."""

    name: Annotated[str, arg(name="model")]
    """Network: mlp, logistic, cnn, resnet8, resnet34, gpt-small, ... Your own: package.module:function."""
    options: Annotated[Options, arg(name="", constructor=model_options)] = field(default_factory=dict, hash=False)
    """Keyword arguments of your own function or class."""
    version: Annotated[str | None, arg(name="model-version")] = None
    """The version of its package, as a pin; filled in when the run starts."""

    def __post_init__(self) -> None:
        require_storable(self.options, "model.options")


@dataclass(frozen=True)
class Objective:
    """The loss; that of the data unless given."""

    name: Annotated[str | None, arg(name="objective")] = None
    """Loss: cross_entropy, logistic, squared or next_token. Your own: package.module:function."""
    options: Annotated[Options, arg(name="", constructor=objective_options)] = field(default_factory=dict, hash=False)
    """Keyword arguments of your own function or class."""
    version: Annotated[str | None, arg(name="objective-version")] = None
    """The version of its package, as a pin; filled in when the run starts."""

    def __post_init__(self) -> None:
        require_storable(self.options, "objective.options")


@dataclass(frozen=True)
class Optimizer:
    """The optimizer; what is not given is the default of its class."""

    name: Annotated[str, arg(name="optimizer", help=_OPTIMIZERS)]
    l2_ball: Annotated[float | None, arg(aliases=["--radius"])] = None
    """Radius of the l2 ball that the weights stay in."""
    options: Annotated[Mapping[str, Any], arg(name="", constructor=options_from_flags)] = field(default_factory=dict)
    """The keyword arguments of the optimizer's class."""
    l2_ball_relative: float | None = None
    """The radius of the l2 ball as a multiple of the norm of the initial weights, such as 1.5."""
    version: Annotated[str | None, arg(name="optimizer-version")] = None
    """The version of the class's package, as a pin; filled in when the run starts."""

    @classmethod
    def from_table(cls, table: Mapping[str, Any], where: str) -> "Optimizer":
        """Make an optimizer from a row's table: keys that are no fields are options of its class."""
        known = {key: table[key] for key in ("name", *BALLS) if key in table}
        options = {key: value for key, value in table.items() if key not in known}
        given = {key: value for key, value in known.items() if key not in BALLS or value != NONE}
        return read_fields(cls, {**given, "options": options}, where)


@dataclass(frozen=True)
class Schedule:
    """How lr changes while a run trains."""

    name: Annotated[ScheduleName, arg(name="schedule")] = "constant"
    """Constant, cosine to zero, or in steps."""
    milestones: tuple[int, ...] = ()
    """Epochs after which the step schedule changes lr."""
    factor: float | None = None
    """What the step schedule multiplies lr by. Default: 0.1."""
    warmup_steps: int = 0
    """Steps over which lr rises linearly at the start, with any schedule."""

    def __post_init__(self) -> None:
        require_int64(self, "schedule", ("warmup_steps",))
        require_positive(self, "schedule", ("factor",))
        if self.warmup_steps < 0:
            raise LabError(f"schedule.warmup_steps is {self.warmup_steps}, but must be 0 or more.")
        if not all(milestone >= 0 and is_int64(milestone) for milestone in self.milestones):
            raise LabError(f"schedule.milestones is {shown(self.milestones)}, but must hold epochs: 0 or more.")

    @property
    def multiplier(self) -> float:
        """What the step schedule multiplies `lr` by, spelled out."""
        return 0.1 if self.factor is None else self.factor

    @property
    def is_constant(self) -> bool:
        """Whether `lr` stays as it is."""
        return self.name == "constant" and self.warmup_steps < 2


@dataclass(frozen=True)
class Training:
    """How to train and to evaluate."""

    epochs: int
    """Passes over the training data."""
    batch_size: int = 128
    """Samples per step; the last batch of an epoch may be smaller."""
    seed: int = 0
    """Seed of the weights and of the order of the batches."""
    shuffle_seed: int | None = None
    """Another seed for the order of the batches and the augmentation."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    eval_protocol: EvalProtocol = "clean"
    """sps-augmented-validation also evaluates on cropped and flipped test images, as the SPS authors' runner does."""
    max_batches: int | None = None
    """Stop every epoch and every evaluation after so many batches."""
    threads: int | None = None
    """CPU threads; torch's choice unless given. 1 is faster for small models on a busy machine."""
    precision: Precision = "float32"
    """bfloat16: autocast the network; weights, losses and steps stay in float32."""
    channels_last: bool = False
    """Store images with their channels last: faster convolutions."""
    compile: bool = False
    """Compile the network with torch.compile."""
    cuda_graph: bool = False
    """Replay the whole step as one CUDA graph: faster for small networks."""
    clip_norm: float | None = None
    """Clip the norm of the gradient; methods that read the loss are given the norm before clipping."""
    distributed: Distributed = "ddp"
    """What several processes hold: ddp, the whole model each; fsdp2, a part of the model each."""

    def __post_init__(self) -> None:
        require_at_least_one(self, "training", ("epochs", "batch_size", "max_batches", "threads"))
        require_int64(self, "training", ("seed", "shuffle_seed"))
        require_positive(self, "training", ("clip_norm",))
        if self.threads is not None and self.threads > MOST_THREADS:
            raise LabError(f"training.threads is {self.threads}, but must be {MOST_THREADS} or less.")
        check_known(self.precision, get_args(Precision), "training.precision")
        check_known(self.distributed, get_args(Distributed), "training.distributed")
        check_known(self.eval_protocol, get_args(EvalProtocol), "training.eval_protocol")

    @property
    def order_seed(self) -> int:
        """The seed of the order of the batches and of the augmentation."""
        return self.seed if self.shuffle_seed is None else self.shuffle_seed


@dataclass(frozen=True)
class Run:
    """One training run: everything that decides its numbers, and nothing else."""

    data: Data
    model: Model
    optimizer: Optimizer
    training: Training
    schedule: Schedule = field(default_factory=Schedule)
    objective: Objective = field(default_factory=Objective)


def as_json(run: Run) -> dict[str, Any]:
    """Return the content of config.json; keys of later versions only if they are used."""
    table = asdict(run)
    table["schedule"]["factor"] = run.schedule.multiplier
    for section, key in LATER_KEYS:
        if not table[section][key] or (section, key, table[section][key]) == DDP:
            del table[section][key]
    return {section: plain(values) for section, values in table.items() if values}


def plain(value: Any) -> Any:
    """Make a value valid in strict JSON: inf, -inf and NaN become 'inf', '-inf' and 'nan'."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def content_hash(config: Mapping[str, Any]) -> str:
    """Return the hash of a stored configuration."""
    canonical = json.dumps(config, sort_keys=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def first_difference(
    stored: Mapping[str, Any],
    requested: Mapping[str, Any],
) -> tuple[str, Any, Any] | None:
    """Return the first key, in dotted form, whose values differ, and both values."""
    old, new = dict(flatten(stored)), dict(flatten(requested))
    for key in dict.fromkeys([*new, *old]):
        if old.get(key, MISSING) != new.get(key, MISSING):
            return key, old.get(key, "not set"), new.get(key, "not set")
    return None


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the keys of nested tables in dotted form, with their values."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
