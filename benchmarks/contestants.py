"""Who takes part in the timing of a step: torch's optimizers, ours, and what others have published."""

import importlib.util
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

import polyak
from models import SHAPES
from timing import Step

Parameters = list[torch.nn.Parameter]


class AuthorsALIG(torch.optim.Optimizer):
    """ALI-G as its paper's pseudo-code spells it, tensor by tensor, with the loss and the norm read by the host."""

    def __init__(self, params: Parameters, lr: float, momentum: float, radius: float | None) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.radius = radius
        for p in self.param_groups[0]["params"]:
            self.state[p]["v"] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self, loss: Any) -> None:  # type: ignore[override]  # as the authors' own
        group = self.param_groups[0]
        norm = sum(p.grad.norm() ** 2 for p in group["params"])
        gamma = min(float(loss / (norm + 1e-5)), group["lr"])
        for p in group["params"]:
            v = self.state[p]["v"]
            p.add_(p.grad, alpha=-gamma)
            v.mul_(group["momentum"]).add_(p.grad, alpha=-gamma)
            p.add_(v, alpha=group["momentum"])
        if self.radius is not None:
            size = math.sqrt(sum(float(p.norm() ** 2) for p in group["params"]))
            if size > self.radius:
                for p in group["params"]:
                    p.mul_(self.radius / size)


class Contestant(NamedTuple):
    """How to make a step, how often it must at least read or write the vector of all parameters, and its rivals."""

    make: Callable[[Parameters], Step]
    passes: int
    rival_of: str = ""
    of_adam: bool = False
    """Whether the step is compared with AdamW's instead of SGD's."""


def parameters(model: str, device: str) -> Parameters:
    """Return parameters of a model's shapes, with gradients."""
    made = [torch.nn.Parameter(torch.empty(shape, device=device)) for shape in SHAPES[model]()]
    for p in made:
        p.grad = torch.empty_like(p)
    return made


@torch.no_grad()
def fill(own: Parameters) -> None:
    """Give parameters and gradients their first values."""
    draw = torch.Generator(own[0].device).manual_seed(0)
    for p in own:
        p.normal_(std=0.05, generator=draw)
        if p.grad is not None:
            p.grad.normal_(std=0.01, generator=draw)


def ours(cls: Callable[..., Any] = polyak.ALIG, **options: Any) -> Callable[[Parameters], Step]:
    def make(own: Parameters) -> Step:
        optimizer = cls(own, lr=0.1, **options)
        loss = torch.ones((), device=own[0].device)
        return lambda: optimizer.step(loss=loss)

    return make


def torchs(cls: Callable[..., torch.optim.Optimizer], **options: Any) -> Callable[[Parameters], Step]:
    return lambda own: cls(own, lr=0.1, **options).step


def literal(radius: float | None) -> Callable[[Parameters], Step]:
    def make(own: Parameters) -> Step:
        optimizer = AuthorsALIG(own, lr=0.1, momentum=0.9, radius=radius)
        loss = torch.ones((), device=own[0].device)
        return lambda: optimizer.step(loss)

    return make


def released(radius: float | None) -> Callable[[Parameters], Step]:
    def make(own: Parameters) -> Step:
        from pytorch_optimizer import AliG
        from pytorch_optimizer.optimizer.alig import l2_projection

        project = None if radius is None else lambda: l2_projection(own, radius)
        optimizer = AliG(own, max_lr=0.1, momentum=0.9, projection_fn=project)
        return lambda: optimizer.step(lambda: 1.0)

    return make


def authors_momo(name: str) -> Callable[[Parameters], Step]:
    def make(own: Parameters) -> Step:
        optimizer = getattr(importlib.import_module("momo"), name)(own, lr=0.1)
        loss = torch.ones(())
        return lambda: optimizer.step(loss=loss)

    return make


def optax_sgd(own: Parameters) -> Step:
    import jax
    import optax

    copies = [jax.numpy.asarray(p.detach().cpu().numpy()) for p in own]
    rule = optax.chain(optax.polyak_sgd(0.1), optax.trace(0.9, nesterov=True))
    update = jax.jit(lambda state, own: rule.update(own, state, own, value=1.0), donate_argnums=0)
    apply = jax.jit(optax.apply_updates, donate_argnums=0)
    held = [rule.init(copies), copies]

    def step() -> None:
        updates, held[0] = update(held[0], held[1])
        held[1] = apply(held[1], updates)
        jax.block_until_ready(held[1])

    return step


MOMENTUM: dict[str, Any] = {"momentum": 0.9}
NESTEROV: dict[str, Any] = {**MOMENTUM, "nesterov": True}
INSIDE, OUTSIDE = polyak.L2Ball(1e6), polyak.L2Ball(1.0)
YARDSTICK = Contestant(torchs(torch.optim.SGD, **NESTEROV, fused=True), 5)
ADAM = Contestant(torchs(torch.optim.AdamW, fused=True), 7)
FUSED, FUSED_BALL = "ALI-G, momentum, fused", "ALI-G, ball active, fused"
CONTESTANTS = {
    "torch SGD, loop": Contestant(torchs(torch.optim.SGD, **NESTEROV, foreach=False), 5),
    "torch SGD, foreach": Contestant(torchs(torch.optim.SGD, **NESTEROV, foreach=True), 5),
    "torch AdamW, fused": Contestant(torchs(torch.optim.AdamW, fused=True), 7),
    "ALI-G, no momentum": Contestant(ours(), 4),
    "ALI-G, no momentum, fused": Contestant(ours(fused=True), 4),
    "ALI-G, momentum": Contestant(ours(**MOMENTUM), 6),
    FUSED: Contestant(ours(**MOMENTUM, fused=True), 6),
    "ALI-G, momentum, loop": Contestant(ours(**MOMENTUM, foreach=False), 6),
    "ALI-G, momentum, foreach": Contestant(ours(**MOMENTUM, foreach=True), 6),
    "ALI-G, adjusted": Contestant(ours(**MOMENTUM, adjusted_momentum=True), 7),
    "ALI-G, adjusted, fused": Contestant(ours(**MOMENTUM, adjusted_momentum=True, fused=True), 7),
    "ALI-G, ball inactive": Contestant(ours(**MOMENTUM, constraint=INSIDE), 6),
    "ALI-G, ball inactive, fused": Contestant(ours(**MOMENTUM, constraint=INSIDE, fused=True), 6),
    "ALI-G, ball active": Contestant(ours(**MOMENTUM, constraint=OUTSIDE), 8),
    FUSED_BALL: Contestant(ours(**MOMENTUM, constraint=OUTSIDE, fused=True), 8),
    "MoMo": Contestant(ours(polyak.MoMo), 8),
    "MoMo, fused": Contestant(ours(polyak.MoMo, fused=True), 8),
    "MoMoAdam": Contestant(ours(polyak.MoMoAdam), 11, of_adam=True),
    "MoMoAdam, fused": Contestant(ours(polyak.MoMoAdam, fused=True), 11, of_adam=True),
    "NGNMD": Contestant(ours(polyak.NGNMD), 9, of_adam=True),
    "NGNMD, fused": Contestant(ours(polyak.NGNMD, fused=True), 9, of_adam=True),
    "authors' algorithm": Contestant(literal(None), 6, FUSED),
    "authors' algorithm, ball active": Contestant(literal(1.0), 9, FUSED_BALL),
}
if importlib.util.find_spec("pytorch_optimizer"):
    CONTESTANTS["pytorch_optimizer AliG"] = Contestant(released(None), 6, FUSED)
    CONTESTANTS["pytorch_optimizer AliG, ball active"] = Contestant(released(1.0), 9, FUSED_BALL)
if importlib.util.find_spec("momo"):
    CONTESTANTS["momo-opt Momo"] = Contestant(authors_momo("Momo"), 8, "MoMo, fused")
    CONTESTANTS["momo-opt MomoAdam"] = Contestant(authors_momo("MomoAdam"), 11, "MoMoAdam, fused", of_adam=True)
if importlib.util.find_spec("optax"):
    CONTESTANTS["optax polyak_sgd, trace"] = Contestant(optax_sgd, 6, FUSED)
