"""The theorems of the methods beyond ALI-G and SPS, and losses that are not smooth; all inequalities are path-wise."""

import math

import numpy as np
import pytest
import torch

import polyak
from convex import (
    INTERPOLATING,
    LONG,
    SHORT,
    SLACK,
    check_bound,
    descend,
    hubers,
    mean,
    minimiser,
    quadratics,
    sq_distance,
    steepest,
)

each_family = pytest.mark.parametrize("family", INTERPOLATING.values(), ids=INTERPOLATING.keys())


def interpolating(family, seed, d=4):
    """Draw losses that are 0 at a point with positive coordinates; return also that point, and a start."""
    rng = np.random.default_rng(seed)
    star = torch.tensor(np.abs(rng.normal(size=d)) + 0.1)
    x = torch.nn.Parameter(torch.tensor(3 * rng.normal(size=d)))
    return rng, star, x, [family(rng, star) for _ in range(3)]


SHARP = [INTERPOLATING[name] for name in ("absolute", "largest", "norm")]
STEPS = {INTERPOLATING["fourth power"]: 200}
diverging = pytest.mark.filterwarnings("ignore:.*the loss has stayed above")  # of steps that are too long


def steep(family):
    """Return interpolating losses, and a start at distance 1 of their minimum from which they fall fast."""
    rng, star, x, losses = interpolating(family, 0)
    mean(losses, x).backward()
    return rng, star, torch.nn.Parameter(star + x.grad / x.grad.norm()), losses


def too_short_and_long(family):
    """Return the factors for which a bound fails; steps three times as long diverge on sharp losses alone."""
    return (SHORT, LONG) if family in SHARP else (SHORT,)


def noisy(seed=0, spread=0.5):
    """Draw strongly convex losses without a common minimiser; return also that of their mean, and a start."""
    losses, rng = quadratics(seed, spread=spread)
    return losses, rng, minimiser(losses), torch.nn.Parameter(torch.tensor(3 * rng.normal(size=3)))


# Losses with kinks: ALI-G and SPS


def mean_losses(losses, rng, x, optimizer, steps):
    """Yield the number of random steps made, the mean of the losses in them, and the largest ‖g‖² so far."""
    total, squared = 0.0, 0.0
    for T, i in enumerate(rng.integers(len(losses), size=steps), 1):
        total += descend(optimizer, x, losses[i])[0]
        squared = max(squared, optimizer.last_step().grad_sq_norm.item())
        yield T, total / T, squared


@each_family
@diverging
@pytest.mark.parametrize("lr", [0.3, math.inf])
@pytest.mark.parametrize("delta", [0.0, 0.1])
def test_the_mean_loss_of_alig_falls_as_the_root_of_the_steps(family, delta, lr):
    """Mean of f_t(x_t) ≤ D²/(ηT) + D√((C²+δ)/T) for C-Lipschitz losses with interpolation (convergence theorem)."""

    def holds():
        rng, star, x, losses = steep(family)
        optimizer, start = polyak.ALIG([x], lr=lr, eps=delta), sq_distance(x, star)
        paths = mean_losses(losses, rng, x, optimizer, STEPS.get(family, 60))
        return all(seen <= start / (lr * T) + math.sqrt(start * (C2 + delta) / T) + SLACK for T, seen, C2 in paths)

    check_bound(polyak.ALIG, holds, *too_short_and_long(family))


@diverging
@pytest.mark.parametrize("delta", [0.1, 0.3])
def test_alig_with_a_tolerance_reaches_a_neighbourhood_of_it(delta):
    """Mean of f_t(x_t) ≤ ε₀ + D√((C²+δ)/T) + ε₀√(1+C²/δ) where every loss is at most ε₀ at x* (η = ∞)."""
    losses, _ = hubers(0, n=3, spread=0.02)
    star = minimiser(losses)
    positive = [lambda x, f=f: f(x) - f.lowest for f in losses]
    tolerance = max(f(star).item() for f in positive)
    assert tolerance > 0

    def holds():
        x = torch.nn.Parameter(star + 6 * steepest(losses))
        optimizer, start = polyak.ALIG([x], lr=math.inf, eps=delta), sq_distance(x, star)
        return all(
            seen <= tolerance + math.sqrt(start * (C2 + delta) / T) + tolerance * math.sqrt(1 + C2 / delta)
            for T, seen, C2 in mean_losses(positive, np.random.default_rng(0), x, optimizer, 60)
        )

    check_bound(polyak.ALIG, holds, SHORT, LONG)


@pytest.mark.parametrize("lr", [0.05, math.inf])
def test_alig_on_strongly_convex_losses_converges_linearly(lr):
    """‖x⁺ − x*‖² ≤ (1 − ½μ_i·min{1/(2β), η})‖x − x*‖² with interpolation and δ = 0."""
    losses, rng = quadratics(1)
    x, star = torch.nn.Parameter(torch.tensor(3 * rng.normal(size=3))), losses[0].a
    optimizer, least = polyak.ALIG([x], lr=lr, eps=0.0), min(1 / (2 * max(f.L for f in losses)), lr)
    for i in rng.integers(3, size=20):
        before = sq_distance(x, star)
        descend(optimizer, x, losses[i])
        assert sq_distance(x, star) <= (1 - losses[i].mu * least / 2) * before + SLACK


@each_family
@diverging
def test_the_mean_loss_of_sps_falls_as_the_root_of_the_steps(family):
    """Mean of f_k(x_k) ≤ GD/√K for G-Lipschitz losses with interpolation, c = 1."""

    def holds():
        rng, star, x, losses = steep(family)
        optimizer, start = polyak.SPS([x], c=1.0, eps=0.0), sq_distance(x, star)
        paths = mean_losses(losses, rng, x, optimizer, STEPS.get(family, 60))
        return all(seen <= math.sqrt(G2 * start / K) * (1 + SLACK) for K, seen, G2 in paths)

    check_bound(polyak.SPS, holds, *too_short_and_long(family))


class Waves:
    """w(x² + 3 sin² x), which is not convex, but satisfies the Polyak-Łojasiewicz inequality with μ = w/32; L = 8w."""

    def __init__(self, w, lowest):
        self.w, self.lowest, self.a, self.L = w, lowest, torch.zeros(1, dtype=torch.float64), 8 * w

    def __call__(self, x):
        return (self.w * (x.square() + 3 * x.sin().square())).sum() + self.lowest


def with_growth(kind):
    """Return losses, the μ of ½‖∇f‖² ≥ μ(f − f*) for their mean f, its minimiser, and where it falls most slowly."""
    if kind == "not convex":
        losses = [Waves(w, lowest) for w, lowest in zip((0.5, 1.0, 1.5), (0.3, -0.2, 0.1), strict=True)]
        return losses, 1 / 32, losses[0].a, torch.ones(1, dtype=torch.float64)
    losses, _ = quadratics(3, spread=0.5 if kind == "without interpolation" else 0.0)
    found = torch.linalg.eigh(sum(f.H for f in losses) / len(losses))
    return losses, found.eigenvalues[0].item(), minimiser(losses), found.eigenvectors[:, 0]


@pytest.mark.parametrize("kind", ["not convex", "interpolation", "without interpolation"])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_sps_on_losses_with_growth_contracts_in_expectation(kind, share):
    """E f(x⁺) − f* ≤ ν(f(x) − f*) + γ_b·L·σ²/2c with ν = γ_b(1/α − 2μ + L/2c) < 1 for c > L/4μ: the PL theorem."""
    losses, mu, star, slowest = with_growth(kind)
    L = max(f.L for f in losses)
    c = 20 * L / (4 * mu)  # with which the bound is nearly that of gradient descent, 1 − 2μγ_b
    cap = share / (2 * c * L)
    nu = cap * (1 / min(1 / (2 * c * L), cap) - 2 * mu + L / (2 * c))
    best = mean(losses, star).item()
    noise = best - np.mean([f.lowest for f in losses])
    assert nu < 1
    for distance in np.linspace(-3, 3, 24):
        point = star + distance * slowest
        after = []
        for f in losses:
            x = torch.nn.Parameter(point.clone())
            descend(polyak.SPS([x], lr=cap, c=c, eps=0.0), x, f, lower_bound=f.lowest)
            after.append(mean(losses, x.detach()).item())
        gap = mean(losses, point).item() - best
        assert np.mean(after) - best <= nu * gap + cap * L * noise / (2 * c) + SLACK


@pytest.mark.parametrize(("c", "share"), [(0.5, 1.0), (1.0, 0.75)])
def test_the_deterministic_polyak_step_contracts_by_the_condition_number(c, share):
    """‖x⁺ − x*‖² ≤ (1 − 1/κ)‖x − x*‖² for c = ½ and (1 − 3/(4κ))‖x − x*‖² for c = 1, with f* exact."""
    for seed in range(5):
        (f, *_), rng = quadratics(seed, spread=1.0)
        x = torch.nn.Parameter(torch.tensor(3 * rng.normal(size=3)))
        optimizer = polyak.SPS([x], c=c, eps=0.0, lower_bound=f.lowest)
        for _ in range(10):
            before = sq_distance(x, f.a)
            descend(optimizer, x, f)
            assert sq_distance(x, f.a) <= (1 - share * f.mu / f.L) * before + SLACK


# NGN: Orvieto and Xiao, 2024


@each_family
@pytest.mark.parametrize("c", [0.1, 1.0, 100.0])
def test_ngn_comes_nearer_to_every_interpolating_point(family, c):
    """‖x⁺ − x*‖² ≤ ‖x − x*‖² − (2/c)γ²f(x), and ½min{c, 2f/‖g‖²} ≤ γ ≤ min{c, 2f/‖g‖²}."""
    rng, star, x, losses = interpolating(family, 3)
    optimizer = polyak.NGN([x], lr=c)
    for i in rng.integers(3, size=10):
        before = sq_distance(x, star)
        loss, gamma = descend(optimizer, x, losses[i])
        assert sq_distance(x, star) <= before - 2 / c * gamma**2 * loss + SLACK * max(1.0, before)
        if loss > 0:
            hard = min(c, 2 * loss / optimizer.last_step().grad_sq_norm.item())
            assert hard / 2 * (1 - SLACK) <= gamma <= hard * (1 + SLACK)


def test_the_step_of_ngn_lies_between_the_bounds_of_the_curvature():
    """c/(1 + cL) ≤ γ ≤ c on L-smooth losses with minimum 0."""
    losses, rng = quadratics(4)
    x = torch.nn.Parameter(torch.tensor(3 * rng.normal(size=3)))
    for c in (0.1, 1.0, 10.0):
        optimizer = polyak.NGN([x], lr=c)
        for i in rng.integers(3, size=5):
            _, gamma = descend(optimizer, x, losses[i])
            assert c / (1 + c * losses[i].L) * (1 - 1e-9) <= gamma <= c


# SPS* and IAM: Gower et al., 2025


def test_sps_with_the_solutions_losses_comes_nearer_to_it_without_interpolation():
    """‖x⁺ − x*‖² ≤ ‖x − x*‖² − (f_i(x) − f_i(x*))₊²/‖∇f_i(x)‖²."""
    losses, rng, star, x = noisy()
    optimizer = polyak.SPS([x], c=1.0, eps=0.0)
    for i in rng.integers(3, size=30):
        before, bound = sq_distance(x, star), losses[i](star).item()
        loss, _ = descend(optimizer, x, losses[i], lower_bound=bound)
        gain = max(loss - bound, 0.0) ** 2 / optimizer.last_step().grad_sq_norm.item()
        assert sq_distance(x, star) <= before - gain + SLACK


def test_the_iterates_that_iam_averages_come_nearer_to_the_solution_without_interpolation():
    """‖z⁺ − x*‖² ≤ ‖z − x*‖² − (f_i(x) − f_i(x*) + ⟨∇f_i(x), z − x⟩)₊²/‖∇f_i(x)‖², where z = x⁺ + t(x⁺ − x)."""
    losses, rng, star, x = noisy()
    optimizer, z = polyak.IAM([x], lr=math.inf, momentum=None), x.detach().clone()
    for t, i in enumerate(rng.integers(3, size=30), 1):
        before, old = sq_distance(z, star), x.detach().clone()
        descend(optimizer, x, losses[i], lower_bound=losses[i](star).item())
        z, last = x.detach() + t * (x.detach() - old), optimizer.last_step()
        gain = last.ratio.item() ** 2 * last.grad_sq_norm.item()
        assert sq_distance(z, star) <= before - gain + 1e-9


@each_family
def test_the_last_iterate_of_iam_falls_as_the_root_of_the_steps(family):
    """f(x_T) ≤ GD/√T for the last iterate of λ_t = t, on one loss with minimum 0."""
    _, star, x, (f, *_) = interpolating(family, 5)
    optimizer, start, G2 = polyak.IAM([x], lr=math.inf, momentum=None), sq_distance(x, star), 0.0
    for T in range(1, 16):
        loss, _ = descend(optimizer, x, f)
        G2 = max(G2, optimizer.last_step().grad_sq_norm.item())
        assert loss <= math.sqrt(G2 * start / T) * (1 + SLACK)


# MoMo: Schaipp et al., ICML 2024


@each_family
@pytest.mark.parametrize("options", [{}, {"momentum": 0.5}, {"bias_correction": True}])
def test_momo_comes_nearer_to_every_interpolating_point(family, options):
    """‖x⁺ − x*‖² ≤ ‖x − x*‖² − τ(h − f*)₊, where h is the averaged model at x; γ = τ and h − f* = ratio · ‖d‖²."""
    rng, star, x, losses = interpolating(family, 6)
    optimizer = polyak.MoMo([x], lr=1.0, **options)
    for i in rng.integers(3, size=10):
        before = sq_distance(x, star)
        _, gamma = descend(optimizer, x, losses[i])
        last = optimizer.last_step()
        gap = last.ratio.item() * last.grad_sq_norm.item() if gamma else 0.0
        assert sq_distance(x, star) <= before - gamma * gap + 1e-9 * max(1.0, before)


# DecSPS: Orvieto, Lacoste-Julien and Loizou, 2022; AdaSPS: Jiang and Stich, 2023


def gaps(cls, at, **options):
    """Return how far the mean of the iterates lies above the minimum after some numbers of steps."""
    losses, rng, star, x = noisy(seed=4, spread=1.0)
    lowest = min(f.lowest for f in losses) - 1.0
    optimizer, total, found = cls([x], lower_bound=lowest, **options), torch.zeros(3), []
    for t, i in enumerate(rng.integers(3, size=max(at)), 1):
        total = total + x.detach()
        descend(optimizer, x, losses[i])
        if t in at:
            found.append((mean(losses, total / t) - mean(losses, star)).item())
    return found


def test_dec_sps_and_ada_sps_converge_without_interpolation_where_sps_stalls():
    """The mean of the iterates comes nearer as 1/√K at least, under any lower bound; that of SPS stays away."""
    early, late = gaps(polyak.DecSPS, (100, 800))
    assert late < early / math.sqrt(800 / 100)
    early, late_ada = gaps(polyak.AdaSPS, (100, 800))
    assert late_ada < early / math.sqrt(800 / 100)
    (stalled,) = gaps(polyak.SPS, (800,), lr=0.5, c=1.0)
    assert max(late, late_ada) < stalled / 4
