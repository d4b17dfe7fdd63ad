"""Convex problems with known minima for the theorems of the papers, the steps on them, and a check of their bounds."""

import math
from itertools import product

import numpy as np
import pytest
import torch

import polyak

SLACK = 1e-12
SHORT, LONG = 1e-6, 3.0  # times the right step


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


class Huber:
    """The mean of the Huber losses of some residuals, which is quadratic near its minimum and 1-Lipschitz far away."""

    def __init__(self, A, a, lowest=0.0):
        self.A, self.a, self.lowest = torch.tensor(A), torch.tensor(a), lowest
        self.H = self.A.T @ self.A / len(A)
        self.L = torch.linalg.eigvalsh(self.H)[-1].item()

    def __call__(self, x):
        residuals = (self.A @ (x - self.a)).abs()
        return torch.where(residuals < 1, residuals.square() / 2, residuals - 0.5).mean() + self.lowest


def hubers(seed, n=2, spread=0.0):
    """Draw Huber losses whose residuals have nearly one direction; with spread 0 they have one minimiser."""
    rng = np.random.default_rng(seed)
    star, angle, losses = rng.normal(size=2), rng.uniform(0, 2 * np.pi), []
    for _ in range(n):
        angles = angle + rng.uniform(-0.5, 0.5, size=3)
        A = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        losses.append(Huber(A, star + spread * rng.normal(size=2), spread * rng.normal()))
    return losses, rng


def minimiser(losses):
    """Return the minimiser of the mean of quadratics, or of Huber losses with small residuals there."""
    H = sum(f.H for f in losses)
    return torch.linalg.solve(H, sum(f.H @ f.a for f in losses))


def steepest(losses):
    """Return the direction of unit length in which the mean of the losses grows fastest from its minimiser."""
    return torch.linalg.eigh(sum(f.H for f in losses)).eigenvectors[:, -1]


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


def check_bound(cls, holds, *others):
    """Assert that a bound holds, and fails for steps that are `others` times as long, so that it is tight enough."""
    assert holds()
    step_size = cls.step_size
    for factor in others:
        with pytest.MonkeyPatch.context() as patch:
            scaled = lambda *args, factor=factor: [factor * scalar for scalar in step_size(*args)]  # noqa: E731
            patch.setattr(cls, "step_size", scaled)
            assert not holds(), factor


def random_path(losses, rng, build, steps=15):
    """Run a random sequence of mini-batches; yield before, after, the mini-batch, its loss and the step size."""
    x = torch.nn.Parameter(torch.tensor(rng.normal(size=len(losses[0].a))) * 3)
    optimizer = build([x])
    for i in rng.integers(len(losses), size=steps):
        before = x.detach().clone()
        loss, gamma = descend(optimizer, x, losses[i], lower_bound=losses[i].lowest)
        yield before, x.detach().clone(), losses[i], loss, gamma, optimizer.last_step()
