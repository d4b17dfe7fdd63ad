"""The scalars of a step: the same numbers on the host and in tensors."""

import pytest
import torch

from polyak._backend.scalars import bias_correction


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 0.999999])
@pytest.mark.parametrize("k", [1, 2, 17, 10**6])
def test_a_bias_correction_in_float32_has_all_digits(beta, k):
    expected = 1 - beta**k
    assert bias_correction(beta, k) == expected
    found = bias_correction(beta, torch.tensor(float(k)))
    assert float(found) == pytest.approx(expected, rel=3e-7)
