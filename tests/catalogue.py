"""What the tests cross: methods, momentum forms, and backends. A new method is one row of METHODS."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from numpy import ndarray

import papers
import polyak
from adapters import SAMSPS, ALIGPlus
from papers import alig, smooth_sps, sps
from problem import SHAPES

BACKENDS: dict[str, dict[str, Any]] = {
    "default": {},
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}

# 0.9 multiplies a step by 10, so without a cap trajectories blow up and amplify rounding; the arithmetic is the same.
MOMENTUM: dict[str, dict[str, Any]] = {
    "none": {},
    "nesterov": {"momentum": 0.4},
    "adjusted": {"momentum": 0.4, "adjusted_momentum": True},
    "heavy ball": {"momentum": 0.4},
    "averaged": {"momentum": 0.8},
}

SOME = frozenset({"momentum", "eps"})  # options that most methods have


@dataclass(frozen=True)
class Method:
    """One class of the library and what is known about it.

    `required` are the arguments it cannot do without, `momenta` the keys of MOMENTUM it supports, `paper` the
    transcription of its paper, `symbols` what the paper calls each option, `trials` settings under which 100 steps on
    `Problem.make()` do not amplify rounding, `step_sizes` the options that are step sizes, so that they become s times
    smaller when the loss becomes s times larger.
    """

    name: str
    cls: type[polyak.PolyakOptimizer]
    paper: Callable[..., ndarray]
    symbols: Mapping[str, str]
    trials: tuple[Mapping[str, Any], ...]
    momenta: tuple[str, ...] = ("none", "nesterov")
    required: Mapping[str, Any] = field(default_factory=dict)
    step_sizes: tuple[str, ...] = ("lr",)
    hard_cap: bool = True
    """Whether γ = min{ratio, lr}, not something smooth below."""
    factor: bool = False
    """Whether lr multiplies γ instead of capping it."""
    uncapped_steps: int = 40
    """How many steps without a cap do not amplify rounding."""
    has_kernel: bool = True
    """Whether fused=True makes the whole move by a kernel; the other moves are made as without it."""
    own_cap: bool = False
    """Whether a cap of the method's own falls below lr."""
    scale_free: bool = True
    """Whether s times the loss gives the same points at lr / s."""
    overflows: bool = True
    """Whether a loss of 1e30 makes a step that is no float32 number, where nothing caps it."""
    kernel_steps: int = 100
    """How many steps at lr = 0.1 do not amplify the rounding of a kernel."""
    makes_direction: bool = False
    """Whether it moves along a direction of its own, made for a piece of the parameters at a time."""
    rounds_alike: bool = True
    """Whether processes that sum in another order end within the rounding of float32; else in that of float64."""
    evaluations: int = 1
    """How often a step evaluates a batch; a closure that computes gradients is in no graph of a compiled step."""

    def build(self, params: Iterable[Any], form: str = "none", **options: Any) -> polyak.PolyakOptimizer:
        """Return the optimizer with one of the MOMENTUM forms, without an eps or a momentum that it does not have."""
        given = {**self.required, "momentum": 0.0, **MOMENTUM[form], **options}
        known = inspect.signature(self.cls).parameters
        return self.cls(params, **{name: value for name, value in given.items() if name in known or name not in SOME})

    def transcribed(self, x: ndarray, f: Callable[..., Any], steps: int, **options: Any) -> ndarray:
        """Run the paper's pseudo-code with the library's names for the options."""
        given = {**self.required, **({"momentum": 0.0} if "momentum" in self.symbols else {}), **options}
        return self.paper(x, f, steps, **{self.symbols.get(name, name): value for name, value in given.items()})

    @property
    def largest_lr(self) -> float:
        """No cap; a factor is finite."""
        return 1e38 if self.factor else math.inf

    @property
    def defaults(self) -> dict[str, Any]:
        """The default of every option."""
        return dict(self.build([torch.nn.Parameter(torch.zeros(1))]).defaults)


_SPS_SYMBOLS = {"lr": "γ_b", "c": "c", "lower_bound": "f_star", "eps": "ε", "momentum": "μ", "radius": "r"}

_MOMO_SYMBOLS = {
    "lr": "α",
    "weight_decay": "λ",
    "learn_lower_bound": "star",
    "lower_bound": "f_star",
    "radius": "r",
}


_SCHEDULE_FREE = {"lr": "γ_b", "momentum": "β", "floor": "M", "lower_bound": "f_star", "radius": "r"}


def _muon_momo(
    x: ndarray,
    f: Callable[..., Any],
    T: int,
    momentum: float = 0.95,
    beta2: float = 0.95,
    norm: str | None = None,
    polar: str = "polar-express",
    steps: int = 5,
    **options: Any,
) -> ndarray:
    """Run the transcription with the polar factor that has this name, on the shapes of `Problem.make()`."""
    found = {"polar-express": papers.polar.polar_express, "newton-schulz": papers.polar.newton_schulz}[polar]
    shapes = ((x.size,),) if norm == "adam" else SHAPES
    return papers.muon_momo(x, f, T, β=(momentum, beta2), shapes=shapes, polar=lambda G: found(G, steps), **options)


METHODS: tuple[Method, ...] = (
    Method(
        "ALIG",
        polyak.ALIG,
        alig,
        symbols={"lr": "η", "eps": "δ", "momentum": "μ", "adjusted_momentum": "adjusted", "radius": "r"},
        trials=({}, {"lr": 2.0}, {"lr": math.inf, "eps": 0.01}),
        momenta=("none", "nesterov", "adjusted"),
    ),
    Method(
        "SPS",
        polyak.SPS,
        sps,
        symbols=_SPS_SYMBOLS,
        trials=({"c": 1.0}, {"lr": 2.0, "c": 1.2}, {"lr": 2.5, "c": 1.2, "eps": 1e-3, "lower_bound": -1e-3}),
    ),
    Method(
        "SmoothSPS",
        polyak.SmoothSPS,
        smooth_sps,
        symbols=_SPS_SYMBOLS | {"steps_per_epoch": "n_over_b", "gamma": "τ", "init_step_size": "γ_0"},
        trials=(
            {"c": 1.2, "init_step_size": 0.1},
            {"c": 1.2, "lr": 2.0, "steps_per_epoch": 5, "gamma": 1.5},
            {"c": 1.0, "lr": 3.0, "gamma": 4.0, "eps": 1e-3, "lower_bound": -1e-3},
        ),
        required={"steps_per_epoch": 3},
        step_sizes=("lr", "init_step_size"),
    ),
    Method(
        "MoMo",
        polyak.MoMo,
        papers.momo,
        symbols=_MOMO_SYMBOLS | {"momentum": "β", "bias_correction": "bias_correction"},
        trials=(
            {"momentum": 0.5},
            {"lr": 0.5, "weight_decay": 0.01, "lower_bound": -1e-3, "learn_lower_bound": True},
            {"lr": 2.0, "momentum": 0.8, "bias_correction": True, "learn_lower_bound": True},
        ),
        momenta=("none",),
    ),
    Method(
        "MoMoAdam",
        polyak.MoMoAdam,
        papers.momo_adam,
        symbols=_MOMO_SYMBOLS | {"betas": "β", "eps": "ε", "decoupled_weight_decay": "decoupled"},
        trials=(
            {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-4},
            {"lr": 0.3, "weight_decay": 0.01, "learn_lower_bound": True, "eps": 1e-3},
            {"lr": 0.1, "weight_decay": 0.01, "decoupled_weight_decay": True, "lower_bound": -1e-3},
        ),
        momenta=("none",),
        scale_free=False,
    ),
    Method(
        "NGN",
        polyak.NGN,
        papers.ngn,
        symbols={"lr": "c", "momentum": "β", "lower_bound": "f_star", "radius": "r"},
        trials=({}, {"lr": 3.0, "lower_bound": -1e-3}, {"lr": math.inf}),
        momenta=("none", "heavy ball"),
        hard_cap=False,
    ),
    Method(
        "NGNMD",
        polyak.NGNMD,
        papers.ngn_md,
        symbols={
            "lr": "c",
            "betas": "β",
            "eps": "ε",
            "weight_decay": "λ",
            "lower_bound": "f_star",
            "radius": "r",
        },
        trials=(
            {},
            {"lr": 0.5, "betas": (0.5, 0.9), "weight_decay": 0.01},
            {"lr": 1.0, "eps": 1e-3, "lower_bound": -1e-3},
        ),
        momenta=("none",),
        hard_cap=False,
        scale_free=False,
    ),
    Method(
        "MomSPS",
        polyak.MomSPS,
        papers.mom_sps,
        symbols={"lr": "γ_b", "c": "c", "momentum": "β", "lower_bound": "f_star", "radius": "r"},
        trials=({"lr": 1.0}, {"c": 1.2, "lr": 2.0}, {"c": 1.2, "lr": 2.5, "lower_bound": -1e-3}),
        momenta=("none", "heavy ball"),
    ),
    Method(
        "SmoothMomSPS",
        polyak.SmoothMomSPS,
        papers.smooth_mom_sps,
        symbols={
            "lr": "γ_b",
            "steps_per_epoch": "n",
            "c": "c",
            "momentum": "β",
            "gamma": "τ",
            "init_step_size": "γ_0",
            "lower_bound": "f_star",
            "radius": "r",
        },
        trials=(
            {"c": 1.2, "init_step_size": 0.1},
            {"c": 1.2, "lr": 2.0, "steps_per_epoch": 5, "gamma": 1.5},
            {"c": 1.0, "lr": 3.0, "gamma": 4.0, "lower_bound": -1e-3},
        ),
        momenta=("none", "heavy ball"),
        required={"steps_per_epoch": 3},
        step_sizes=("lr", "init_step_size"),
    ),
    Method(
        "SafeSPS",
        polyak.SafeSPS,
        papers.safe_sps,
        symbols={
            "lr": "γ_b",
            "floor": "M",
            "momentum": "β",
            "weight_decay": "λ_wd",
            "lower_bound": "f_star",
            "radius": "r",
        },
        trials=(
            {"lr": 0.5},
            {"lr": 2.0, "floor": 0.01},
            {"lr": 1.0, "floor": 0.1, "weight_decay": 0.01, "lower_bound": -1e-3},
        ),
        momenta=("none", "heavy ball"),
        scale_free=False,
    ),
    Method(
        "DecSPS",
        polyak.DecSPS,
        papers.dec_sps,
        symbols={"lr": "γ_b", "c0": "c_0", "lower_bound": "f_star", "radius": "r"},
        trials=({"lr": 1.0}, {"lr": 2.0, "c0": 1.5}, {"lr": 0.5, "lower_bound": -1e-3}),
        momenta=("none",),
        own_cap=True,
    ),
    Method(
        "AdaSPS",
        polyak.AdaSPS,
        papers.ada_sps,
        symbols={"lr": "η_max", "c": "c_p", "lower_bound": "f_star", "radius": "r"},
        trials=({"lr": 1.0}, {"lr": 2.0, "c": 0.7}, {"lr": 0.5, "lower_bound": -1e-3}),
        momenta=("none",),
        own_cap=True,
        scale_free=False,
        overflows=False,  # its step is √(loss) times shorter
    ),
    Method(
        "IAM",
        polyak.IAM,
        papers.iam,
        symbols={"lr": "η_max", "momentum": "β", "lower_bound": "f_star", "radius": "r"},
        trials=({}, {"lr": 0.5, "momentum": None}, {"lr": 2.0, "lower_bound": -1e-3}),
        momenta=("none", "heavy ball"),
    ),
    Method(
        "IAMAdam",
        polyak.IAMAdam,
        papers.iam_adam,
        symbols={
            "lr": "η_max",
            "momentum": "β",
            "beta2": "β2",
            "eps": "ε",
            "lower_bound": "f_star",
            "radius": "r",
        },
        trials=(
            {},
            {"lr": 0.1, "momentum": None, "beta2": 0.9},
            {"lr": 0.3, "eps": 1e-3, "lower_bound": -1e-3},
        ),
        momenta=("none", "heavy ball"),
        scale_free=False,
        rounds_alike=False,  # D⁻¹ enlarges rounding
    ),
    Method(
        "ScheduleFreeSPS",
        polyak.ScheduleFreeSPS,
        papers.schedule_free_sps,
        symbols=_SCHEDULE_FREE,
        trials=({"lr": 1.0}, {"lr": 2.0, "floor": 0.1}, {"lr": 0.5, "lower_bound": -1e-3}),
        momenta=("none", "averaged"),
        has_kernel=False,
        scale_free=False,
    ),
    Method(
        "ScheduleFreeAdamSPS",
        polyak.ScheduleFreeAdamSPS,
        papers.schedule_free_adam_sps,
        symbols=_SCHEDULE_FREE | {"beta2": "β2", "eps": "ε"},
        trials=(
            {"lr": 0.1, "eps": 1e-4},
            {"lr": 0.3, "beta2": 0.9, "eps": 1e-3, "floor": 0.1},
            {"lr": 0.5, "eps": 1e-3, "lower_bound": -1e-3},
        ),
        momenta=("none", "averaged"),
        has_kernel=False,
        scale_free=False,
        rounds_alike=False,  # D⁻¹ enlarges rounding
    ),
    Method(
        "ScheduleFreePlus",
        polyak.ScheduleFreePlus,
        papers.schedule_free_plus,
        symbols={
            "lr": "lr",
            "betas": "β",
            "eps": "ε",
            "weight_decay": "λ",
            "momentum": "β_sf",
            "final_momentum": "β_sf_max",
            "anneal_steps": "anneal_steps",
            "norm_beta": "β_p",
            "r": "r",
            "weight_lr_power": "p",
            "averaging_warmup": "c_warmup",
            "lower_bound": "f_star",
            "radius": "ball",
        },
        trials=(
            {"lr": 0.5},
            {"lr": 1.0, "betas": (0.5, 0.9), "weight_decay": 0.1, "anneal_steps": 30, "final_momentum": 0.95},
            {"lr": 0.3, "norm_beta": 0.5, "r": 1.0, "weight_lr_power": 1.0, "averaging_warmup": 5, "eps": 1e-3}
            | {"lower_bound": -1e-3},
        ),
        momenta=("none", "averaged"),
        hard_cap=False,
        factor=True,
        has_kernel=False,
        scale_free=False,
    ),
    Method(
        "ALIGPlus",
        ALIGPlus,
        papers.alig_plus,
        symbols={
            "lr": "η",
            "samples": "N",
            "steps_per_epoch": "n",
            "epochs": "E",
            "stages": "K",
            "momentum": "μ",
            "weight_decay": "λ",
            "eps": "δ",
            "radius": "r",
        },
        trials=(
            {"epochs": 20},
            {"lr": 0.5, "weight_decay": 0.01, "stages": 2, "samples": 33, "steps_per_epoch": 33},
            {"lr": 1.0, "eps": 1e-3},
        ),
        momenta=("none", "nesterov"),
        required={"samples": 9, "steps_per_epoch": 9, "epochs": 10},
    ),
    Method(
        "SAMSPS",
        SAMSPS,
        papers.sam_sps,
        symbols={
            "lr": "γ_b",
            "rho": "ρ",
            "normalized": "λ",
            "weight_decay": "λ_wd",
            "lower_bound": "f_star",
            "radius": "r",
        },
        trials=(
            {"lr": 0.5, "rho": 0.02},
            {"lr": 0.5, "rho": 0.05, "weight_decay": 0.01},
            {"lr": 2.0, "rho": 0.02, "normalized": False, "lower_bound": -1e-3},
        ),
        momenta=("none",),
        evaluations=2,
        uncapped_steps=10,
        scale_free=False,
    ),
    Method(
        "SlackSPS",
        polyak.SlackSPS,
        papers.slack_sps,
        symbols={"lr": "γ_b", "slack": "λ", "delta": "δ", "lower_bound": "f_star", "radius": "r"},
        trials=(
            {"lr": 0.5, "slack": 0.9},
            {"lr": 2.0, "slack": 0.95, "lower_bound": -1e-3},
            {"lr": 1.0, "slack": 0.5, "delta": 0.1},
        ),
        momenta=("none",),
        scale_free=False,
    ),
    Method(
        "SignSPS",
        polyak.SignSPS,
        papers.sign_sps,
        symbols={"lr": "η", "momentum": "β", "weight_decay": "λ", "lower_bound": "f_star", "radius": "r"},
        trials=(
            {"lr": 0.03, "momentum": 0.3},
            {"lr": 0.04, "momentum": 0.5, "weight_decay": 0.05},
            {"lr": 0.2, "momentum": 0.9, "lower_bound": -1e-3},
        ),
        momenta=("none",),
        has_kernel=False,
        scale_free=False,
        kernel_steps=20,  # near a sign's jump, rounding is amplified
        makes_direction=True,
    ),
    Method(
        "MuonMoMo",
        polyak.MuonMoMo,
        _muon_momo,
        symbols={
            "lr": "η",
            "momentum": "momentum",
            "beta2": "beta2",
            "eps": "ε",
            "weight_decay": "λ",
            "norm": "norm",
            "polar": "polar",
            "polar_steps": "steps",
            "stale": "stale",
            "lower_bound": "f_star",
            "radius": "r",
        },
        trials=(
            {"lr": 0.03, "momentum": 0.3, "beta2": 0.5, "eps": 1.0},
            {"lr": 0.05, "momentum": 0.5, "weight_decay": 0.05, "stale": True, "polar": "newton-schulz", "eps": 0.9},
            {"lr": 3.0, "momentum": 0.9, "polar_steps": 9, "norm": "adam", "lower_bound": -1e-3, "eps": 1.0},
        ),
        momenta=("none",),
        uncapped_steps=5,
        has_kernel=False,
        scale_free=False,
        kernel_steps=5,
        rounds_alike=False,  # the polar factor enlarges rounding
    ),
)

CLASSIC = METHODS[:3]  # γ = min{gap / (c‖g‖² + ε), lr} along −g, with Nesterov's momentum if any

BUFFERED = tuple(method for method in METHODS if "float32_momentum" in method.defaults)
UNCAPPED = tuple(method for method in METHODS if not method.factor)
CAPPED = tuple(method for method in METHODS if not (method.own_cap or method.factor))
SCALE_FREE = tuple(method for method in METHODS if method.scale_free)
IN_ONE_GRAPH = tuple(method for method in METHODS if method.evaluations == 1)
UNDECAYED = tuple(method for method in METHODS if "weight_decay" not in method.defaults)


NAMES = [method.name for method in METHODS]


def _each(methods: Iterable[Method]) -> Any:
    return pytest.mark.parametrize("method", methods, ids=lambda method: method.name)


def _each_form(methods: Iterable[Method], quick: Container[str] = frozenset(NAMES)) -> Any:
    """Cross methods and their forms; those of methods that are not `quick` are slow tests."""
    rows = [
        pytest.param(method, form, id=f"{method.name}-{form}", marks=() if method.name in quick else pytest.mark.slow)
        for method in methods
        for form in method.momenta
    ]
    return pytest.mark.parametrize(("method", "form"), rows)


each_classic, each_classic_form = _each(CLASSIC), _each_form(CLASSIC)
each_kernel_form = _each_form(method for method in METHODS if method.has_kernel)
each_buffered, each_buffered_form = _each(BUFFERED), _each_form(BUFFERED)
each_capped, each_capped_form = _each(CAPPED), _each_form(CAPPED)
each_uncapped = _each(UNCAPPED)
each_in_one_graph, each_form_in_one_graph = _each(IN_ONE_GRAPH), _each_form(IN_ONE_GRAPH)
each_undecayed, each_scale_free_form = _each(UNDECAYED), _each_form(SCALE_FREE)
KINDS_OF_MOVE = {"ALIG", "MomSPS", "MoMo", "MoMoAdam"}  # for tests that take seconds
each_kind_of_move = _each_form(METHODS, KINDS_OF_MOVE)
each_kind_of_kernel = _each_form([method for method in METHODS if method.has_kernel], KINDS_OF_MOVE)
each_method_of_a_kind = _each([method for method in METHODS if method.name in KINDS_OF_MOVE])
each_method, each_form = _each(METHODS), _each_form(METHODS)
each_backend = pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS.keys())
