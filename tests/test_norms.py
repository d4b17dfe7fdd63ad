"""The norm on the CPU is right to 1e-5 for every type, layout and number of tensors, as docs/cost.md promises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import polyak
from catalogue import each_backend
from observe import SMALL_BALLS
from polyak._backend.vector import absolutes, dot, sum_squares
from polyak.methods.muon_momo import polar

pytestmark = pytest.mark.filterwarnings(SMALL_BALLS)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_short_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
N = 1 << 22


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw positive numbers, whose sums are lost to rounding the soonest."""
    return (1 + torch.rand(shape, generator=torch.Generator().manual_seed(0))).to(dtype)


LAYOUTS = {
    "one dimension": lambda dtype: draw(N + 17, dtype=dtype),
    "strided": lambda dtype: draw(2 * N, dtype=dtype)[::2],
    "strided, an odd length": lambda dtype: draw(3 * N + 2, dtype=dtype)[1::3],
    "columns": lambda dtype: draw(N // 8, 16, dtype=dtype)[:, ::2],
    "few long columns": lambda dtype: draw(4, N, dtype=dtype).t()[:, 1:3],
    "a transposed part": lambda dtype: draw(2048, 2100, dtype=dtype)[:, 1:2050].t(),
    "expanded number": lambda dtype: draw(1, dtype=dtype).expand(N),
    "expanded rows": lambda dtype: draw(3000, 1, dtype=dtype).expand(3000, 1500),
    "expanded columns": lambda dtype: draw(7, dtype=dtype).expand(N // 8, 7),
    "expanded and strided": lambda dtype: draw(4000, dtype=dtype)[::2].expand(2000, 2000),
    "channels last": lambda dtype: draw(64, 256, 16, 16, dtype=dtype).to(memory_format=torch.channels_last),
    "overlapping": lambda dtype: draw(3000, dtype=dtype).unfold(0, 1000, 1),
    "a number": lambda dtype: draw(1, dtype=dtype)[0],
    "a strided few": lambda dtype: draw(9, dtype=dtype)[::2],
    "expanded nothing": lambda dtype: draw(1, dtype=dtype).expand(0, 1)[:, 0:],
    "nothing with gaps": lambda dtype: draw(0, 4, dtype=dtype)[:, ::2],
}


def exact(*tensors: Tensor) -> float:
    return float(sum(tensor.to(torch.complex128).abs().square().sum() for tensor in tensors))


@each_dtype
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_norm_is_right_in_every_layout(dtype, layout):
    x = layout(dtype)
    views = [torch.view_as_real(x) if x.is_complex() else x]
    assert float(sum_squares(views)) == pytest.approx(exact(x), rel=1e-5, abs=0)


@each_short_dtype
@pytest.mark.parametrize("other", ["itself", "contiguous"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_product_is_as_right_in_every_layout(dtype, layout, other):
    x = layout(dtype)
    y = x if other == "itself" else x.contiguous()
    assert float(dot([x], [y])) == pytest.approx(float(x.double().square().sum()), rel=1e-5, abs=0)


@each_short_dtype
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_a_sum_of_absolute_values_is_as_right_in_every_layout(dtype, layout):
    x = layout(dtype)
    assert float(absolutes(-x)) == pytest.approx(float(x.double().abs().sum()), rel=1e-5, abs=0)


def test_equal_numbers_lose_no_more():
    x, exactly = torch.full((N,), 0.1), N * float(torch.tensor(0.1))
    for view in (x, x.view(-1, 64).t(), torch.full((2 * N,), 0.1)[::2]):
        assert float(absolutes(view)) == pytest.approx(exactly, rel=1e-5)
        assert float(dot([view], [view])) == pytest.approx(exactly**2 / N, rel=1e-5)


@pytest.mark.parametrize("name", ["polar-express", "newton-schulz"])
def test_the_polar_factor_of_a_large_matrix_is_that_of_a_small_one(name):
    large, small = (polar(torch.full(shape, 0.02), name, 1) for shape in ((1 << 14, 512), (64, 8)))
    assert large[0, 0].item() * large.numel() ** 0.5 == pytest.approx(small[0, 0].item() * 512**0.5, rel=2e-4)


@each_backend
def test_the_slope_of_sign_sps_is_as_right(backend):
    p = nn.Parameter(draw(N))
    p.grad = draw(1).expand(N)
    optimizer = polyak.SignSPS([p], **backend)
    optimizer.step(loss=1.0)
    assert optimizer.last_step().grad_sq_norm.item() == pytest.approx(float(p.grad[0]) * N, rel=1e-5)


@each_dtype
@pytest.mark.parametrize(("count", "shape"), [(2000, (33, 64)), (300, (32767,)), (40, (1 << 15,)), (5000, ())], ids=str)
@pytest.mark.parametrize("step", [1, 2])
def test_a_norm_is_right_over_many_tensors(dtype, count, shape, step):
    whole = draw(count, *shape, dtype=dtype)
    tensors = [*(whole[..., ::step] if shape else whole).unbind()]
    views = [torch.view_as_real(x) if x.is_complex() else x for x in tensors]
    assert float(sum_squares(views)) == pytest.approx(exact(*tensors), rel=1e-5, abs=0)


@each_backend
@pytest.mark.parametrize("mixed", [False, True])
def test_a_step_measures_its_gradient_and_its_ball_as_exactly(backend, mixed):
    params = [nn.Parameter(draw(N, dtype=torch.bfloat16)), nn.Parameter(draw(N))]
    params += [nn.Parameter(draw(300).double())] if mixed else []
    grads = [draw(2 * N, dtype=torch.bfloat16)[::2], draw(1).expand(N), draw(300).double()]
    optimizer = polyak.ALIG(params, lr=1e-9, constraint=polyak.L2Ball(2000.0), **backend)
    for p, grad in zip(params, grads, strict=False):
        p.grad = grad
    optimizer.step(loss=1.0)
    assert optimizer.last_step().grad_sq_norm.item() == pytest.approx(exact(*grads[: len(params)]), rel=1e-5)
    assert exact(*(p.detach() for p in params)) ** 0.5 == pytest.approx(2000.0, rel=1e-4)
