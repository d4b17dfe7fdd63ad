"""The trajectories of the authors' own code, to the printed digits.

The problem: mini-batches alternate between f_A = ½(2a + b − 1)² + ½(b − ½)² and f_B = ½(a − b + 2)² + ½a², in float64,
from (a, b) = (1.5, −1). The points were printed by oval-group/ali-g (alig/th/alig.py, revision c40de14) and
IssamLaradji/sps (sps/sps.py, revision 6d112a1).
"""

import math

import pytest
import torch

import polyak
from catalogue import each_backend

# name: (class, options, {steps: (a, b)})
GOLDEN = {
    "ALI-G η=0.1": (
        polyak.ALIG,
        {"lr": 0.1},
        {1: (1.3, -0.95), 2: (0.745, -0.525), 4: (0.3597, -0.1019)},
    ),
    "ALI-G η=∞": (
        polyak.ALIG,
        {"lr": math.inf},
        {1: (0.7352959170, -0.8088239792), 2: (-0.1726878196, -0.0568514281), 4: (-0.3922036699, 0.6021026413)},
    ),
    "ALI-G η=0.1 μ=0.9": (
        polyak.ALIG,
        {"lr": 0.1, "momentum": 0.9},
        {1: (1.12, -0.905), 2: (-0.01955, -0.09975), 4: (-0.6817014300, 1.2990588100)},
    ),
    "ALI-G η=1 μ=0.9": (
        polyak.ALIG,
        {"lr": 1.0, "momentum": 0.9},
        {1: (0.0470622422, -0.6367655606), 2: (-1.8473647484, 0.7711309571), 4: (-0.6331234010, 2.4872444824)},
    ),
    "ALI-G η=1 μ=0.9 adjusted": (
        polyak.ALIG,
        {"lr": 1.0, "momentum": 0.9, "adjusted_momentum": True},
        {1: (0.0470622422, -0.6367655606), 2: (-1.6260369234, 0.7157990008), 4: (0.4963212610, 2.8607755003)},
    ),
    "SPS c=0.5 γ_b=0.3": (
        polyak.SPS,
        {"lr": 0.3},
        {1: (0.9, -0.85), 2: (-0.495, 0.275), 4: (-0.3390261041, 1.1038992782)},
    ),
    "SPS smooth c=0.5 n/b=2": (
        polyak.SmoothSPS,
        {"steps_per_epoch": 2},
        {1: (-0.0294117575, -0.6176470606), 2: (-1.3236119974, 0.6914290404), 4: (-0.2594823209, 1.4453949715)},
    ),
}
HALF_A_PRINTED_DIGIT = 0.51e-10


def _loss(a: torch.Tensor, b: torch.Tensor, step: int) -> torch.Tensor:
    if step % 2 == 0:
        return ((2 * a + b - 1).square() + (b - 0.5).square()) / 2
    return ((a - b + 2).square() + a.square()) / 2


@each_backend
@pytest.mark.parametrize(("cls", "options", "points"), GOLDEN.values(), ids=GOLDEN.keys())
def test_the_points_are_those_of_the_authors_code(cls, options, points, backend):
    a, b = (torch.nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (1.5, -1.0))
    optimizer, seen = cls([a, b], **options, **backend), {}
    for step in range(4):
        optimizer.zero_grad()
        loss = _loss(a, b, step)
        loss.backward()
        optimizer.step(loss=loss)
        seen[step + 1] = (a.item(), b.item())
    for steps, point in points.items():
        assert seen[steps] == pytest.approx(point, rel=0, abs=HALF_A_PRINTED_DIGIT), f"after {steps} steps"
