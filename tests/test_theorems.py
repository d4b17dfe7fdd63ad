"""What the papers prove, checked on random convex problems in float64.

Most checks are path-wise: the inequality of the proof holds at every single step, to 1e-12. Where a theorem is about
an expectation over the drawn mini-batches, the expectation is exact: every sequence of mini-batches is run. Bounds
on whole paths are tight enough to fail for steps that are much too short or three times too long (`check_bound`).
"""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import polyak
from convex import (
    CONTAINING,
    INTERPOLATING,
    LONG,
    SHORT,
    SLACK,
    check_bound,
    descend,
    every_path,
    hubers,
    mean,
    minimiser,
    quadratics,
    random_path,
    sq_distance,
    steepest,
)
from observe import SMALL_BALLS

pytestmark = pytest.mark.filterwarnings(SMALL_BALLS)

seeds = st.integers(0, 10_000)
caps = st.sampled_from([0.01, 0.3, 2.0, math.inf])


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


# The bound for a cap below 2/(3β) holds for three times the step, too.
@pytest.mark.parametrize(("lr", "others"), [(0.5, [SHORT]), (2.0, [SHORT, LONG]), (math.inf, [SHORT, LONG])])
@pytest.mark.parametrize("seed", range(2))
def test_alig_on_smooth_losses_converges_in_expectation(seed, lr, others):
    """E mean f(x_t) ≤ max{2β, 1/η}·‖x_0 − x*‖²/T (δ = 0), and with it E f(x̄_T), over t < T; all 2⁶ paths."""
    losses, _ = hubers(seed)
    star, start, beta, T = losses[0].a, losses[0].a + 2 * steepest(losses), max(f.L for f in losses), 6

    def holds():
        paths = every_path(losses, start, lambda x: polyak.ALIG(x, lr=lr, eps=0.0), T)
        expected = np.mean([[mean(losses, x).item() for x in path[:-1]] for path in paths])
        return 0 < expected <= max(2 * beta, 1 / lr) * sq_distance(start, star) / T

    check_bound(polyak.ALIG, holds, *others)


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


@pytest.mark.parametrize("cap_times_curvature", [1.0, 5.0])
@pytest.mark.parametrize("seed", range(2))
def test_sps_on_strongly_convex_losses_reaches_a_neighbourhood_in_expectation(seed, cap_times_curvature):
    """Theorem 3.1: E‖x_k − x*‖² ≤ (1 − μ̄α)^k ‖x_0 − x*‖² + 2γ_bσ²/(μ̄α); all 2⁶ paths, c = ½."""
    losses, _ = quadratics(seed, n=2, spread=0.02)
    star, k, L = minimiser(losses), 6, max(f.L for f in losses)
    start, mu, lr = star + 3 * steepest(losses), np.mean([f.mu for f in losses]), cap_times_curvature / L
    sigma2 = (mean(losses, star) - np.mean([f.lowest for f in losses])).item()

    def holds():
        paths = every_path(losses, start, lambda x: polyak.SPS(x, lr=lr, c=0.5, eps=0.0), k)
        distances = np.mean([(path - star).square().sum(1).numpy() for path in paths], axis=0)
        alpha = min(1 / L, lr)
        bounds = (1 - mu * alpha) ** np.arange(k + 1) * distances[0] + 2 * lr * sigma2 / (mu * alpha)
        return (distances <= bounds).all()

    check_bound(polyak.SPS, holds, SHORT, LONG)


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


@pytest.mark.parametrize(("lr", "others"), [(0.5, [SHORT]), (2.0, [SHORT, LONG]), (4.0, [SHORT, LONG])])
@pytest.mark.parametrize("seed", range(2))
def test_sps_on_convex_losses_reaches_a_neighbourhood_in_expectation(seed, lr, others):
    """Theorem 3.4: E mean f(x_k) − f* ≤ ‖x_0 − x*‖²/(αK) + 2σ²γ_b/α over k < K, c = 1; all 2⁶ paths."""
    losses, _ = hubers(seed, spread=0.02)
    star, K, alpha = minimiser(losses), 6, min(1 / (2 * max(f.L for f in losses)), lr)
    start, best = star + 2 * steepest(losses), mean(losses, star).item()
    sigma2 = best - np.mean([f.lowest for f in losses])
    assert sigma2 > 0

    def holds():
        paths = every_path(losses, start, lambda x: polyak.SPS(x, lr=lr, c=1.0, eps=0.0), K)
        expected = np.mean([[mean(losses, x).item() for x in path[:-1]] for path in paths]) - best
        return 0 < expected <= sq_distance(start, star) / (alpha * K) + 2 * sigma2 * lr / alpha

    check_bound(polyak.SPS, holds, *others)


@given(seeds, st.sampled_from([0.2, 0.5, 1.0, 3.0]))
def test_the_ratio_lies_between_the_bounds_of_the_curvature(seed, c):
    """1/(2cL_i) ≤ (f_i − f_i*)/(c‖∇f_i‖²) ≤ 1/(2cμ_i) (lemma 1 of the paper) for the ratio the optimizer reports."""
    losses, rng = quadratics(seed, spread=0.5)
    for *_, f, loss, gamma, last in random_path(losses, rng, lambda x: polyak.SPS(x, lr=0.7, c=c, eps=0.0), steps=10):
        ratio, slack = last.ratio.item(), SLACK * max(1.0, abs(loss) / (loss - f.lowest))  # the gap cancels digits
        assert (1 - slack) / (2 * c * f.L) <= ratio <= (1 + slack) / (2 * c * f.mu)
        assert gamma == min(ratio, 0.7)
