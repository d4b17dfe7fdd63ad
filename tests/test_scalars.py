"""The scalars of a step: the same numbers on the host and in tensors."""

import math

import pytest
import torch

from polyak._backend.scalars import bias_correction


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 0.999999])
@pytest.mark.parametrize("k", [1, 2, 17, 10**6])
def test_a_bias_correction_in_float32_has_all_digits(beta, k):
    expected = -math.expm1(k * math.log(beta)) if beta else 1.0
    assert bias_correction(beta, k) == pytest.approx(expected, rel=1e-9)
    assert float(bias_correction(beta, torch.tensor(float(k)))) == pytest.approx(expected, rel=3e-7)
