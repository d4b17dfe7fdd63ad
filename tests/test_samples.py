"""ALIGPlus: losses of samples and their indices, the targets that are learned, and what is refused."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import papers
import polyak
from observe import changed, moved, refused, snapshot

SAMPLES, EPOCHS = 12, 10
OPTIONS = {"samples": SAMPLES, "steps_per_epoch": 3, "epochs": EPOCHS}


class Regression:
    """Twelve samples in batches of four, in another order in every epoch."""

    def __init__(self, **options):
        generator = torch.Generator().manual_seed(0)
        self.A, self.b = (torch.randn(n, dtype=torch.float64, generator=generator) for n in ((SAMPLES, 3), (SAMPLES,)))
        self.order = torch.cat([torch.randperm(SAMPLES, generator=generator) for _ in range(EPOCHS)]).view(-1, 4)
        self.w = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.optimizer = polyak.ALIGPlus([self.w], **OPTIONS | options)

    def losses(self, t: int) -> Tensor:
        return (self.A[self.order[t]] @ self.w - self.b[self.order[t]]).square()

    def step(self, t: int, factor: float = 1.0, indices: Tensor | list[int] | None = None) -> Tensor | None:
        losses = factor * self.losses(t)
        self.optimizer.zero_grad()
        losses.mean().backward()
        return self.optimizer.step(loss=losses, indices=self.order[t] if indices is None else indices)

    def oracle(self, w: np.ndarray, t: int) -> tuple[np.ndarray, np.ndarray]:
        A, b = self.A[self.order[t]].numpy(), self.b[self.order[t]].numpy()
        return (A @ w - b) ** 2, 2 * A.T @ (A @ w - b) / len(b)


@pytest.mark.parametrize("options", [{}, {"lr": 1.0, "momentum": 0.5, "weight_decay": 0.1, "stages": 3}], ids=str)
def test_targets_of_samples_follow_the_paper(options):
    problem = Regression(**options)
    for t in range(30):
        problem.step(t)
    names = {"lr": "η", "momentum": "μ", "weight_decay": "λ", "stages": "K"}
    expected = papers.alig_plus(
        np.ones(3), problem.oracle, 30, SAMPLES, 3, EPOCHS, z=lambda t: problem.order[t].numpy(),
        **{names[name]: value for name, value in options.items()},
    )  # fmt: skip
    np.testing.assert_allclose(problem.w.detach().numpy(), expected, rtol=1e-12)
    assert bool((problem.optimizer.param_groups[0]["targets"] > 0).any())


@pytest.mark.parametrize("kind", [torch.int32, torch.int16, torch.int8, torch.uint8, list], ids=str)
def test_indices_of_every_kind_of_integers_are_the_same(kind):
    first, second = Regression(), Regression()
    for t in range(20):
        first.step(t)
        indices = second.order[t]
        second.step(t, indices=indices.tolist() if kind is list else indices.to(kind))
    assert torch.equal(first.w, second.w)
    for name in ("targets", "target_steps", "last_losses", "best_losses"):
        assert torch.equal(*(problem.optimizer.param_groups[0][name] for problem in (first, second)))
    assert bool((first.optimizer.param_groups[0]["targets"] > 0).any())


def test_the_tables_of_a_single_sample_are_four():
    targets = []
    for dtype in (torch.float32, torch.float64):
        w = nn.Parameter(torch.ones(1, dtype=dtype))
        optimizer = polyak.ALIGPlus([w], lr=1e-3, samples=1, steps_per_epoch=1, epochs=5)
        for loss in (4.0, 3.0, 5.0, 2.0):
            w.grad = torch.ones(1, dtype=dtype)
            optimizer.step(loss=torch.tensor([loss]), indices=[0])
        targets.append([float(optimizer.param_groups[0][name]) for name in ("targets", "target_steps", "best_losses")])
    assert targets[0] == pytest.approx(targets[1])


def test_a_sample_in_no_batch_keeps_its_target_and_one_that_comes_twice_counts_with_its_mean():
    optimizer = polyak.ALIGPlus([w := nn.Parameter(torch.ones(1))], samples=3, steps_per_epoch=1, epochs=5)
    w.grad = torch.ones(1)
    optimizer.step(loss=torch.tensor([1.0, 3.0, 8.0]), indices=[0, 0, 1])
    group = optimizer.param_groups[0]
    assert group["last_losses"].tolist() == [2.0, 8.0, math.inf]
    assert group["targets"].tolist() == [1.0, 4.0, 0.0]
    assert float(optimizer.last_step().loss) == 4.0


def test_a_batch_that_is_not_finite_and_a_copy_of_the_state():
    problem, twin = Regression(), Regression()
    for t in range(6):
        problem.step(t)
    before = snapshot(problem.optimizer)
    for bad in (math.nan, math.inf):
        problem.step(6, factor=bad)
    assert moved(before, snapshot(problem.optimizer)) == set()
    twin.optimizer.load_state_dict(copy.deepcopy(problem.optimizer.state_dict()))
    twin.w.data.copy_(problem.w)
    for t in range(6, 9):
        problem.step(t), twin.step(t)
    torch.testing.assert_close(snapshot(problem.optimizer), snapshot(twin.optimizer), rtol=1e-12, atol=0)


def test_what_is_no_pair_of_losses_and_indices_is_refused():
    problem = Regression()
    problem.losses(0).mean().backward()
    optimizer, losses = problem.optimizer, problem.losses(0).detach()
    line = "write optimizer.step(loss=losses, indices=indices)"
    before = snapshot(optimizer)
    with refused(RuntimeError, "ALIGPlus.step() needs the loss", line):
        optimizer.step()
    with refused(ValueError, "each of 0 indices, but its shape is (4,)", line):
        optimizer.step(loss=losses)
    with refused(ValueError, "each of 4 indices, but its shape is ()", line):
        optimizer.step(loss=losses.mean(), indices=problem.order[0])
    with refused(IndexError, "the indices are from 0 to 12, but samples=12"):
        optimizer.step(loss=losses, indices=[0, 1, 2, SAMPLES])
    with refused(TypeError, "indices are integers, but torch.float32 was given"):
        optimizer.step(loss=losses, indices=torch.ones(4))
    for odd in ("3", ["a"], [None], {3}, [10**30], [[1], [2, 3]], object(), torch.ones(4).to_sparse()):
        with refused(TypeError, "indices are", "integers, but"):
            optimizer.step(loss=losses, indices=odd)
    with refused(ValueError, "meta device"):
        optimizer.step(loss=losses.to("meta"), indices=problem.order[0])
    assert changed(before, snapshot(optimizer)) == set()
    with refused(TypeError, "ALIG.step() takes no indices", "ALIGPlus"):
        polyak.ALIG([problem.w]).step(loss=1.0, indices=0)


def test_the_best_epoch_keeps_its_losses_while_later_ones_are_worse():
    """The authors' code aliases the array of the last losses: after losses 3, 2 and 5 its best were 5."""
    optimizer = polyak.ALIGPlus([w := nn.Parameter(torch.ones(1))], samples=1, steps_per_epoch=1, epochs=15)
    w.grad = torch.ones(1)
    best = []
    for loss in (3.0, 2.0, 5.0):  # an epoch each, and a stage together
        optimizer.step(loss=torch.tensor([loss]), indices=[0])
        best.append(optimizer.param_groups[0]["best_losses"].item())
    assert best[:2] == [3.0, 2.0]
    assert optimizer.param_groups[0]["targets"].tolist() == [1.0]  # halfway to 2, not to 5


@pytest.mark.parametrize("scale", [1e-20, 1e8, 1e20])
def test_targets_are_learned_from_losses_of_any_size(scale):
    one, other = Regression(lr=1.0, eps=0.0), Regression(lr=1.0 / scale, eps=0.0)
    for t in range(30):
        one.step(t), other.step(t, factor=scale)
    targets, scaled = (problem.optimizer.param_groups[0]["targets"] for problem in (one, other))
    assert bool((targets > 0).any())
    torch.testing.assert_close(scaled / scale, targets, rtol=1e-9, atol=0)
    torch.testing.assert_close(other.w, one.w, rtol=1e-9, atol=0)
