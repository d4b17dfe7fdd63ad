"""MuonMoMo: which parameters have the spectral norm, what is refused, the polar factor, and the stale nuclear norm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import polyak
from observe import refused
from papers import polar as transcribed
from polyak.methods.muon_momo import polar


@pytest.mark.parametrize("name", ["polar-express", "newton-schulz"])
@pytest.mark.parametrize("steps", [1, 5, 9])
@pytest.mark.parametrize("shape", [(4, 7), (7, 4), (1, 5), (5, 1), (3, 3)])
def test_the_polar_factor_is_that_of_the_transcription(name, steps, shape):
    m = np.random.default_rng(0).normal(size=shape)
    expected = getattr(transcribed, name.replace("-", "_"))(m, steps)
    np.testing.assert_allclose(polar(torch.tensor(m), name, steps).numpy(), expected, rtol=1e-11, atol=1e-13)


def test_many_steps_of_polar_express_find_the_polar_factor():
    m = torch.tensor(np.random.default_rng(0).normal(size=(6, 9)))
    torch.testing.assert_close(polar(m, "polar-express", 12), torch.tensor(transcribed.exact(m.numpy())))


@pytest.mark.parametrize(
    "p",
    [
        torch.ones(3),
        torch.ones(()),
        torch.ones(2, 3, 4),
        torch.ones(2, 3, 1, 1),
        torch.ones(0, 3),
        torch.ones(2, 2, dtype=torch.complex64),
    ],
    ids=lambda p: f"{tuple(p.shape)}",
)
def test_the_spectral_norm_is_refused_for_what_is_no_real_matrix(p):
    sentence = ("MuonMoMo: norm='spectral' is for real matrices", str(tuple(p.shape)), "norm='adam'")
    with refused(ValueError, *sentence):
        polyak.MuonMoMo([nn.Parameter(p)], norm="spectral")
    optimizer = polyak.MuonMoMo([nn.Parameter(torch.ones(2, 2))])
    with refused(ValueError, *sentence):
        optimizer.add_param_group({"params": [nn.Parameter(p)], "norm": "spectral"})
    assert len(optimizer.param_groups) == 1
    polyak.MuonMoMo([nn.Parameter(p)])


@pytest.mark.parametrize("norm", [None, "spectral", "adam"])
def test_at_the_cap_a_matrix_moves_along_its_polar_factor(norm):
    w = nn.Parameter(torch.zeros(4, 3, dtype=torch.float64))
    gradient = torch.tensor(np.random.default_rng(1).normal(size=(4, 3)))
    optimizer = polyak.MuonMoMo([w], lr=0.1, norm=norm, polar_steps=12, eps=0.0)
    w.grad = gradient
    optimizer.step(loss=1e3)
    direction = torch.sign(gradient) if norm == "adam" else torch.tensor(transcribed.exact(gradient.numpy()))
    torch.testing.assert_close(w.detach(), -0.1 * direction)


def test_a_stale_norm_is_that_of_the_step_before():
    w = nn.Parameter(torch.zeros(3, 3, dtype=torch.float64))
    optimizer = polyak.MuonMoMo([w], lr=1e9, momentum=0.0, stale=True, polar_steps=12)
    first, second = torch.eye(3, dtype=torch.float64), 4 * torch.eye(3, dtype=torch.float64)
    for gradient in (first, second, second):
        w.grad = gradient
        w.data.zero_()
        optimizer.step(loss=6.0)
        w.data.zero_()
    assert float(optimizer.last_step().step_size) == pytest.approx(6 / 12)
    w.grad = first
    optimizer.step(loss=6.0)
    assert float(optimizer.last_step().step_size) == pytest.approx(6 / 12)
    optimizer.step(loss=6.0)
    assert float(optimizer.last_step().step_size) < 6.1 / 3
