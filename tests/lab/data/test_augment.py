"""Crop and flip against a loop over images, and what they promise besides."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyak_lab import data
from polyak_lab.data.augment import crop_flip, draw, normalise


def seeded(seed, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


def images_of(n, channels=3, height=32, width=32):
    return torch.randint(256, (n, channels, height, width), generator=seeded(1), dtype=torch.uint8)


def one_by_one(images, top, left, mirrored, padding):
    _, channels, height, width = images.shape
    done = []
    for image, i, j, mirror in zip(images, top.tolist(), left.tolist(), mirrored.tolist(), strict=True):
        padded = torch.zeros(channels, height + 2 * padding, width + 2 * padding, dtype=torch.uint8)
        padded[:, padding : padding + height, padding : padding + width] = image
        crop = padded[:, i : i + height, j : j + width]
        done.append(crop.flip(2) if mirror else crop)
    return torch.stack(done)


@given(
    n=st.integers(1, 9),
    channels=st.integers(1, 3),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    padding=st.integers(0, 5),
    seed=st.integers(0, 2**31),
)
def test_batch_equals_a_loop_over_images(n, channels, height, width, padding, seed):
    images = images_of(n, channels, height, width)
    expected = one_by_one(images, *draw(n, seeded(seed), padding), padding)
    assert torch.equal(crop_flip(images, seeded(seed), padding), expected)


def test_every_offset_and_flip_occurs_equally_often():
    n = 40_000
    top, left, mirrored = draw(n, seeded(0), padding=4)
    counts = torch.bincount((top * 9 + left) * 2 + mirrored, minlength=162)
    expected = n / 162
    assert ((counts - expected).abs() < 5 * expected**0.5).all()


def test_generator_decides_and_input_stays():
    images = images_of(64)
    before = images.clone()
    first = crop_flip(images, seeded(5))
    assert torch.equal(first, crop_flip(images, seeded(5)))
    assert not torch.equal(first, crop_flip(images, seeded(6)))
    assert torch.equal(images, before)
    assert first.dtype == torch.uint8
    assert first.is_contiguous()


def test_global_generator_is_left_alone():
    before = torch.get_rng_state()
    crop_flip(images_of(8), seeded(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_padding_only_flips_remain():
    images = images_of(32)
    done = crop_flip(images, seeded(0), padding=0)
    for before, after in zip(images, done, strict=True):
        assert torch.equal(after, before) or torch.equal(after, before.flip(2))


def test_normalise_is_the_formula_per_channel():
    images = images_of(6)
    mean, std = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.2, 0.3, 0.4])
    done = normalise(images, mean, std)
    expected = (images.double() / 255 - mean.double()[:, None, None]) / std.double()[:, None, None]
    assert done.dtype == torch.float32
    assert torch.allclose(done.double(), expected, atol=2e-6)


def test_normalised_training_images_have_mean_0_and_std_1():
    digits = data.load("digits")
    done = normalise(digits.train.inputs, digits.mean, digits.std)
    assert done.mean().item() == pytest.approx(0, abs=1e-4)
    assert done.std().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.gpu
def test_batch_equals_a_loop_on_the_gpu():
    images = images_of(256)
    offsets = (drawn.cpu() for drawn in draw(256, seeded(3, "cuda"), 4))
    done = crop_flip(images.cuda(), seeded(3, "cuda"))
    assert torch.equal(done.cpu(), one_by_one(images, *offsets, padding=4))
