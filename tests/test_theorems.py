"""What the papers prove, checked on random convex problems in float64.

Most checks are path-wise: the inequality of the proof holds at every single step, to 1e-12. Where a theorem is about
an expectation over the drawn mini-batches, the expectation is exact: every sequence of mini-batches is run.
"""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import polyak
from observe import SMALL_BALLS

pytestmark = pytest.mark.filterwarnings(SMALL_BALLS)

SLACK = 1e-12
seeds = st.integers(0, 10_000)
caps = st.sampled_from([0.01, 0.3, 2.0, math.inf])


# Problems


class Quadratic:
    """½(x − a)ᵀH(x − a) + lowest, which is μ-strongly convex and L-smooth."""

    def __init__(self, H, a, lowest=0.0):
        self.H, self.a, self.lowest = torch.tensor(H), torch.tensor(a), lowest
        eigenvalues = np.linalg.eigvalsh(H)
        self.mu, self.L = max(eigenvalues[0], 0.0), eigenvalues[-1]

    def __call__(self, x):
        return (x - self.a) @ self.H @ (x - self.a) / 2 + self.lowest


def quadratics(seed, n=3, d=3, spread=0.0, floor=0.2):
    """Draw n quadratics; with spread 0 they have one minimiser, with floor 0 they need not be strongly convex."""
    rng = np.random.default_rng(seed)
    star, losses = rng.normal(size=d), []
    for _ in range(n):
        B = rng.normal(size=(d, d if floor else d - 1)) / math.sqrt(d)
        H = B @ B.T + floor * np.eye(d)
        losses.append(Quadratic(H, star + spread * rng.normal(size=d), spread * rng.normal()))
    return losses, rng


def minimiser(losses):
    """Return the minimiser of the mean of quadratics."""
    H = sum(f.H for f in losses)
    return torch.linalg.solve(H, sum(f.H @ f.a for f in losses))


def mean(losses, x):
    return sum(f(x) for f in losses) / len(losses)


def _residuals(rng, star):
    A = torch.tensor(rng.normal(size=(4, len(star))))
    return lambda x: A @ (x - star)


def _hinge(rng, star):
    A = torch.tensor(rng.normal(size=(4, len(star))))
    margins = A @ star
    A = A / margins[:, None] * (1 + margins.abs())[:, None]  # ⟨row, x*⟩ ≥ 1
    return lambda x: (1 - A @ x).clamp(min=0).mean()


# Convex losses that are exactly 0 at star, several of them not smooth
INTERPOLATING = {
    "least squares": lambda rng, star: (lambda r: lambda x: r(x).square().mean() / 2)(_residuals(rng, star)),
    "absolute": lambda rng, star: (lambda r: lambda x: r(x).abs().mean())(_residuals(rng, star)),
    "largest": lambda rng, star: (lambda r: lambda x: r(x).abs().amax())(_residuals(rng, star)),
    "fourth power": lambda rng, star: (lambda r: lambda x: r(x).pow(4).mean())(_residuals(rng, star)),
    "norm": lambda rng, star: (lambda r: lambda x: r(x).norm())(_residuals(rng, star)),
    "hinge": _hinge,
}

# Convex sets that contain a given point with positive coordinates
CONTAINING = {
    "everything": lambda star: None,
    "L2Ball": lambda star: polyak.L2Ball(star.norm().item() * 1.01),
    "L1Ball": lambda star: polyak.L1Ball(star.abs().sum().item() * 1.01),
    "LInfBall": lambda star: polyak.LInfBall(star.abs().max().item() * 1.01),
    "Box": lambda star: polyak.Box(star.min().item() / 2, star.max().item() * 2),
    "NonNegative": lambda star: polyak.NonNegative(),
    "Simplex": lambda star: polyak.Simplex(star.sum().item()),
    "Halfspace": lambda star: polyak.Halfspace(torch.ones_like(star), star.sum().item() * 1.01),
    "Affine": lambda star: polyak.Affine(torch.ones(1, len(star)).double(), star.sum().reshape(1)),
}


def descend(optimizer, x, f, **given):
    """Make one step on a mini-batch and return its loss and the step size."""
    optimizer.zero_grad()
    loss = f(x)
    loss.backward()
    optimizer.step(loss=loss, **given)
    return loss.item(), optimizer.param_groups[0]["step_size"].item()


def sq_distance(x, star):
    return (x.detach() - star).square().sum().item()


def every_path(losses, start, build, steps):
    """Run every sequence of mini-batches, with the exact minimum of each as its bound; yield the iterates."""
    for order in product(losses, repeat=steps):
        x = torch.nn.Parameter(start.clone())
        optimizer, iterates = build([x]), [start]
        for f in order:
            descend(optimizer, x, f, lower_bound=f.lowest)
            iterates.append(x.detach().clone())
        yield torch.stack(iterates)


def random_path(losses, rng, build, steps=15):
    """Run a random sequence of mini-batches; yield before, after, the mini-batch, its loss and the step size."""
    x = torch.nn.Parameter(torch.tensor(rng.normal(size=len(losses[0].a))) * 3)
    optimizer = build([x])
    for i in rng.integers(len(losses), size=steps):
        before = x.detach().clone()
        loss, gamma = descend(optimizer, x, losses[i], lower_bound=losses[i].lowest)
        yield before, x.detach().clone(), losses[i], loss, gamma, optimizer.last_step()


# ALI-G: Berrada, Zisserman and Kumar, ICML 2020


@pytest.mark.parametrize("family", INTERPOLATING.values(), ids=INTERPOLATING.keys())
@pytest.mark.parametrize("containing", CONTAINING.values(), ids=CONTAINING.keys())
def test_alig_comes_nearer_to_every_interpolating_point(family, containing):
    """‖x⁺ − x*‖² ≤ ‖x − x*‖² − γf(x), for every cap, every δ ≥ 0 and every convex set that holds x*."""
    for seed, (lr, eps) in enumerate(product([0.05, 1.0, math.inf], [0.0, 1.0])):
        rng = np.random.default_rng(seed)
        star = torch.tensor(np.abs(rng.normal(size=4)) + 0.1)
        losses = [family(rng, star) for _ in range(3)]
        x = torch.nn.Parameter(torch.tensor(3 * rng.normal(size=4)))
        optimizer = polyak.ALIG([x], lr=lr, eps=eps, constraint=containing(star))
        for i in rng.integers(3, size=10):
            before = sq_distance(x, star)
            loss, gamma = descend(optimizer, x, losses[i])
            assert sq_distance(x, star) <= before - gamma * loss + SLACK * max(1.0, before)


@given(seeds, st.sampled_from([0.05, 0.5, 5.0, math.inf]))
def test_alig_on_smooth_losses_keeps_the_sum_of_the_losses_below_its_bound(seed, lr):
    """Σ_{t<T} f_t(x_t) ≤ max{2β, 1/η}·‖x_0 − x*‖² for every T, the path-wise form of the theorem (δ = 0)."""
    losses, rng = quadratics(seed, floor=0.0)
    beta, total, start = max(f.L for f in losses), 0.0, None
    for before, _, _, loss, *_ in random_path(losses, rng, lambda x: polyak.ALIG(x, lr=lr, eps=0.0)):
        start = sq_distance(before, losses[0].a) if start is None else start
        total += loss
        assert total <= max(2 * beta, 1 / lr) * start * (1 + SLACK)


@pytest.mark.parametrize("lr", [0.3, math.inf])
@pytest.mark.parametrize("seed", range(2))
def test_alig_on_smooth_losses_converges_in_expectation(seed, lr):
    """E f(x̄_T) ≤ max{2β, 1/η}·‖x_0 − x*‖²/T (δ = 0), with x̄_T the mean of x_0 … x_{T−1}; all 2⁶ paths."""
    losses, rng = quadratics(seed, n=2, floor=0.0)
    start, beta, T = torch.tensor(rng.normal(size=3)), max(f.L for f in losses), 6
    paths = every_path(losses, start, lambda x: polyak.ALIG(x, lr=lr, eps=0.0), T)
    expected = np.mean([mean(losses, path[:-1].mean(0)).item() for path in paths])
    assert 0 < expected <= max(2 * beta, 1 / lr) * sq_distance(start, losses[0].a) / T


# SPS: Loizou, Vaswani, Laradji and Lacoste-Julien, AISTATS 2021


@given(seeds, caps, st.sampled_from([0.5, 0.8, 1.0, 2.0]))
def test_sps_on_strongly_convex_losses_contracts_at_every_step(seed, lr, c):
    """Theorem 3.1 with interpolation, path-wise: ‖x⁺ − x*‖² ≤ (1 − μ_iα)‖x − x*‖², α = min{1/(2cL), γ_b}, c ≥ ½."""
    losses, rng = quadratics(seed)
    alpha = min(1 / (2 * c * max(f.L for f in losses)), lr)
    for before, after, f, *_ in random_path(losses, rng, lambda x: polyak.SPS(x, lr=lr, c=c, eps=0.0)):
        distance = sq_distance(before, f.a)
        assert sq_distance(after, f.a) <= (1 - f.mu * alpha) * distance + SLACK * max(1.0, distance)


@given(seeds, caps, st.sampled_from([0.5, 0.8, 1.0, 2.0]))
def test_sps_without_a_common_minimiser_goes_astray_by_no_more_than_the_noise(seed, lr, c):
    """The step of theorem 3.1, c ≥ ½: ‖x⁺ − x*‖² ≤ (1 − μ_iγ)‖x − x*‖² + 2γ(f_i(x*) − f_i*), and γ ≥ α."""
    losses, rng = quadratics(seed, spread=0.5)
    star, alpha = minimiser(losses), min(1 / (2 * c * max(f.L for f in losses)), lr)
    for before, after, f, _, gamma, _ in random_path(losses, rng, lambda x: polyak.SPS(x, lr=lr, c=c, eps=0.0)):
        distance, noise = sq_distance(before, star), f(star).item() - f.lowest
        assert sq_distance(after, star) <= (1 - f.mu * gamma) * distance + 2 * gamma * noise + SLACK * max(1, distance)
        assert gamma >= alpha * (1 - 1e-9)


@pytest.mark.parametrize("lr", [0.2, 1.0])
@pytest.mark.parametrize("seed", range(2))
def test_sps_on_strongly_convex_losses_reaches_a_neighbourhood_in_expectation(seed, lr):
    """Theorem 3.1: E‖x_k − x*‖² ≤ (1 − μ̄α)^k ‖x_0 − x*‖² + 2γ_bσ²/(μ̄α); all 2⁶ paths, c = ½."""
    losses, rng = quadratics(seed, n=2, spread=0.5)
    star, start, k = minimiser(losses), torch.tensor(rng.normal(size=3)), 6
    mu, alpha = np.mean([f.mu for f in losses]), min(1 / max(f.L for f in losses), lr)
    sigma2 = (mean(losses, star) - np.mean([f.lowest for f in losses])).item()
    paths = every_path(losses, start, lambda x: polyak.SPS(x, lr=lr, c=0.5, eps=0.0), k)
    distances = np.mean([(path - star).square().sum(1).numpy() for path in paths], axis=0)
    bounds = (1 - mu * alpha) ** np.arange(k + 1) * distances[0] + 2 * lr * sigma2 / (mu * alpha)
    assert (distances <= bounds).all()


@pytest.mark.parametrize("seed", range(2))
def test_sps_on_strongly_convex_losses_converges_linearly_in_expectation(seed):
    """Corollary of theorem 3.1: E‖x_k − x*‖² ≤ (1 − μ̄/L_max)^k ‖x_0 − x*‖² (c = ½, γ_b = ∞); all 2⁶ paths."""
    losses, rng = quadratics(seed, n=2)
    star, start, k = losses[0].a, torch.tensor(rng.normal(size=3)), 6
    rate = 1 - np.mean([f.mu for f in losses]) / max(f.L for f in losses)
    paths = every_path(losses, start, lambda x: polyak.SPS(x, c=0.5, eps=0.0), k)
    distances = np.mean([(path - star).square().sum(1).numpy() for path in paths], axis=0)
    assert (distances <= rate ** np.arange(k + 1) * distances[0]).all()


@given(seeds, caps, st.sampled_from([0.6, 1.0, 2.0]))
def test_sps_on_convex_losses_keeps_the_sum_of_the_losses_below_its_bound(seed, lr, c):
    """Theorem 3.4 under interpolation, path-wise: Σ f_k(x_k) ≤ c/((2c − 1)α)·‖x_0 − x*‖² for every K, c > ½."""
    losses, rng = quadratics(seed, floor=0.0)
    alpha, total, start = min(1 / (2 * c * max(f.L for f in losses)), lr), 0.0, None
    for before, _, f, loss, *_ in random_path(losses, rng, lambda x: polyak.SPS(x, lr=lr, c=c, eps=0.0)):
        start = sq_distance(before, f.a) if start is None else start
        total += loss
        assert total <= c / ((2 * c - 1) * alpha) * start * (1 + SLACK)


@pytest.mark.parametrize("lr", [0.2, 1.0])
@pytest.mark.parametrize("seed", range(2))
def test_sps_on_convex_losses_reaches_a_neighbourhood_in_expectation(seed, lr):
    """Theorem 3.4: E f(x̄_K) − f* ≤ ‖x_0 − x*‖²/(αK) + 2σ²γ_b/α, c = 1; all 2⁶ paths."""
    losses, rng = quadratics(seed, n=2, spread=0.5, floor=0.0)
    star, start, K = minimiser(losses), torch.tensor(rng.normal(size=3)), 6
    alpha = min(1 / (2 * max(f.L for f in losses)), lr)
    sigma2 = (mean(losses, star) - np.mean([f.lowest for f in losses])).item()
    paths = every_path(losses, start, lambda x: polyak.SPS(x, lr=lr, c=1.0, eps=0.0), K)
    expected = np.mean([mean(losses, path[:-1].mean(0)).item() for path in paths]) - mean(losses, star).item()
    assert 0 < expected <= sq_distance(start, star) / (alpha * K) + 2 * sigma2 * lr / alpha


@given(seeds, st.sampled_from([0.2, 0.5, 1.0, 3.0]))
def test_the_ratio_lies_between_the_bounds_of_the_curvature(seed, c):
    """1/(2cL_i) ≤ (f_i − f_i*)/(c‖∇f_i‖²) ≤ 1/(2cμ_i) (lemma 1 of the paper) for the ratio the optimizer reports."""
    losses, rng = quadratics(seed, spread=0.5)
    for *_, f, loss, gamma, last in random_path(losses, rng, lambda x: polyak.SPS(x, lr=0.7, c=c, eps=0.0), steps=10):
        ratio, slack = last.ratio.item(), SLACK * max(1.0, abs(loss) / (loss - f.lowest))  # the gap cancels digits
        assert (1 - slack) / (2 * c * f.L) <= ratio <= (1 + slack) / (2 * c * f.mu)
        assert gamma == min(ratio, 0.7)
