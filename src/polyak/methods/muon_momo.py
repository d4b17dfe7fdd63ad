"""Muon-MoMo (Crawshaw et al., ICML 2026)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import chain
from typing import Any, Unpack, cast, final

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .._backend.chunks import Vector
from .._backend.distributed import piece_of, whole_of
from .._backend.moves import divided
from .._backend.scalars import Scalar, where
from .._backend.vector import AVERAGE, SQUARES, add_up, dots, sum_squares
from .._step.decision import Line
from .._step.lines import adam, after_first, mean_model
from .._step.optimizer import PolyakOptimizer
from .._step.options import Cap, CommonAndBuffers, Flag, Fraction, NonNegative, Norm, Polar, Rounds, is_matrix
from .._step.parts import Group, Part

# Amsel, Persson, Musco and Gower, 2025, arXiv:2505.16932, for singular values from 0.001 on; all but the last triple
# are divided by 1.01, 1.01³ and 1.01⁵, so that rounding does not push a singular value out of their range.
EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
SAFE = [(a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in EXPRESS]
LAST = (1.875, -1.25, 0.375)
MUON = (3.4445, -4.7750, 2.0315)  # Jordan et al., 2024


@final
class MuonMoMo(PolyakOptimizer):
    r"""Muon with a Polyak step: the spectral norm for matrices, Adam's norm for all other parameters.

    .. code-block:: text

        m ← βm + (1 − β)∇f(x)      v ← β₂v + (1 − β₂)∇f(x)²      h ← βh + (1 − β)(f(x) − ⟨∇f(x), x⟩)
        u = UVᵀ for a matrix m = UΣVᵀ, else m / (ε + √v)      all averages are from the first batch
        γ = min{ (h + ⟨m, x⟩ − f*)₊ / ⟨m, u⟩, η }      x ← Π((1 − ηλ)x − γu)

    Pass the mean loss of the mini-batch, the very value whose gradient was computed, without weight decay in it; give
    the floor of a language model's loss as `lower_bound`. Hidden matrices belong in one group and, as for Muon,
    embeddings and the last layer in a group with `norm="adam"`.

    Args:
        params: parameters or parameter groups, as for every torch optimizer.
        lr: the cap η on the step size, ≥ 0. Default 0.01, of the values from 1e-5 to 0.1 that the authors try.
        momentum: β in [0, 1), how slowly the averages forget. Default 0.95, the authors' value.
        beta2: β₂ in [0, 1). Default 0.95, the authors' value.
        eps: ε ≥ 0, added to the root. Default 1e-8, as in Adam.
        weight_decay: λ ≥ 0, decoupled as in AdamW. Default 0.
        norm: "spectral" for a group of matrices alone, "adam" for one that has none of the spectral norm. Default None:
            spectral for every real matrix, Adam's for the others.
        polar: how UVᵀ is found, "polar-express" (default) or "newton-schulz", Muon's own iteration.
        polar_steps: the iterations of that, ≥ 1. Default 5, the authors' value.
        stale: divide by the last step's ⟨m, u⟩ of the matrices instead of this one's. Default False.

    Raises:
        ValueError: a group with `norm="spectral"` holds something else than a real matrix, or an option is outside its
            range, or a group misspells it.

    Example:
        >>> import torch, polyak
        >>> layer = torch.nn.Linear(4, 3)
        >>> x, y = torch.randn(32, 4), torch.randn(32, 3)
        >>> optimizer = polyak.MuonMoMo(layer.parameters(), lr=0.1)
        >>> before = torch.nn.functional.mse_loss(layer(x), y).item()
        >>> for _ in range(50):
        ...     optimizer.zero_grad()
        ...     loss = torch.nn.functional.mse_loss(layer(x), y)
        ...     loss.backward()
        ...     _ = optimizer.step(loss=loss)
        >>> loss.item() < before
        True

    Differences from the authors' code: what is no matrix moves in Adam's norm, the MuonAdam-MoMo of the paper's Figure
    1, where their `muon-momo` takes the sign; Polar Express works in float32 at least, not in bfloat16, and does not
    divide its coefficients by 1.01 again in every iteration; the step is never negative; the averages are part of the
    state and shared by all groups; a batch whose loss or gradient is not finite leaves them as they were; v is float32
    at least; the constraint is ours.

    Reference:
        M. Crawshaw, C. Modi, M. Liu, R. M. Gower, An Exploration of Non-Euclidean Gradient Descent: Muon and its Many
        Variants, ICML 2026, arXiv:2510.09827, in the LMO form, with the ℓ∞ product of the layers' norms.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: Cap = 0.01,
        *,
        momentum: Fraction = 0.95,
        beta2: Fraction = 0.95,
        eps: NonNegative = 1e-8,
        weight_decay: NonNegative = 0.0,
        norm: Norm = None,
        polar: Polar = "polar-express",
        polar_steps: Rounds = 5,
        stale: Flag = False,
        **common: Unpack[CommonAndBuffers],
    ) -> None:
        own = {"norm": norm, "polar": polar, "polar_steps": polar_steps, "stale": stale, "weight_decay": weight_decay}
        super().__init__(params, lr, momentum=momentum, beta2=beta2, eps=eps, **own, **common)

    takes_numbers = True
    shared = ("momentum", "beta2")
    takes_norm = False
    slope_is_squared = False

    def buffers(self, group: Group) -> Sequence[str]:
        """Return the names of m and v."""
        return (AVERAGE, SQUARES)

    def averages(self) -> dict[str, float]:
        """k, h, the average of the bounds of calls, and the ⟨m, u⟩ of the last step's matrices that are stale."""
        return {"steps": 0, "model_average": 0.0, "bound_average": 0.0, "nuclear_norm": 0.0}

    def linearize(self, line: Line, parts: list[Part], averages: dict[str, Any]) -> Line:
        """Return the averaged model along u, whose slope is ⟨m, u⟩."""
        k = averages["steps"] = averages["steps"] + 1
        group, last, like = parts[0].group, averages["nuclear_norm"], parts[0].group["step_size"]
        for part in parts:
            part.preconditioner = adam(part.group, 1.0)
        line = mean_model(line, parts, averages, after_first(group["momentum"], k), after_first(group["beta2"], k))
        turned = {i: turn(part) for i, part in enumerate(parts) if has_matrices(part)}
        both = [parts[i] for _ in range(2) for i in turned]
        products = dots(both, [*chain(*zip(*turned.values(), strict=True))], [part.u for part in both])
        nuclear, others = [*zip(turned, products, strict=False)], products[len(turned) :]
        others += [part.squares for i, part in enumerate(parts) if i not in turned]
        others += [norm for i, norm in nuclear if not parts[i].group["stale"]]
        now = averages["nuclear_norm"] = add_up([norm for i, norm in nuclear if parts[i].group["stale"]], like)
        return line._replace(slope=where(last > 0, last, now) + add_up(others, like))

    def step_size(self, line: Line, group: Group) -> tuple[Scalar, Scalar]:
        """γ = min{ (h + ⟨m, x⟩ − f*)₊ / ⟨m, u⟩, η }."""
        return line.gap / line.slope, group["lr"]


def has_matrices(part: Any) -> bool:
    """Return whether a part has a matrix; the move of one that has none divides, a piece at a time."""
    return any([is_matrix(p, part.group["norm"]) for p in part.owners])


def turn(part: Any) -> tuple[Vector, Vector]:
    """Set the direction u of a part with matrices; return its m with zeros for all but them, and for them."""
    group, m, s = part.group, part.buffers[AVERAGE], part.buffers[SQUARES]
    adam, part.preconditioner = part.preconditioner, None
    u: list[Tensor] = []
    nuclear, others = [*m], [*m]
    for i, (p, average, squares) in enumerate(zip(part.owners, m, s, strict=True)):
        matrix = is_matrix(p, group["norm"])
        u.append(_polar(average, p, group) if matrix else divided([average], [squares], adam)[0].to(average.dtype))
        (others if matrix else nuclear)[i] = torch.zeros_like(average)
    part.u = u
    return nuclear, others


def _polar(m: Tensor, owner: Tensor, group: Group) -> Tensor:
    whole, kind = whole_of(m, owner), m.device.type
    whole = whole if whole.dtype.itemsize > 2 else whole.float()
    # autocast would multiply the matrices in its own type
    with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
        factor = polar(whole, group["polar"], group["polar_steps"])
    return piece_of(factor.to(m.dtype), owner)


def polar(m: Tensor, name: str, steps: int) -> Tensor:
    """Return about UVᵀ for a matrix UΣVᵀ, by iterations of odd polynomials."""
    if m.shape[0] > m.shape[1]:
        return polar(m.T, name, steps).T
    express = name == "polar-express"
    norm = cast(Tensor, sum_squares([m])).sqrt()
    x: Tensor = m / (norm * (1.01 if express else 1.0) + 1e-7)
    for a, b, c in [*SAFE, *[LAST] * steps][:steps] if express else [MUON] * steps:
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x
