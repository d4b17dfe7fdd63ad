"""Sizes, shapes and promises of the models."""

import pytest
import torch

from polyak_lab import data, models
from polyak_lab.errors import LabError
from polyak_lab.models.resnet import PadShortcut

RGB, GREY, TINY = (3, 32, 32), (1, 28, 28), (1, 8, 8)


def parameters(name, shape, outputs):
    return [p.numel() for p in models.build(name, shape, outputs).parameters()]


@pytest.mark.parametrize(
    ("name", "shape", "outputs", "count", "tensors"),
    [
        ("logistic", (112,), 1, 113, 2),
        ("logistic", GREY, 10, 7850, 2),
        ("mlp", GREY, 10, 784 * 512 + 512 + 512 * 256 + 256 + 256 * 10 + 10, 6),
        ("resnet8", RGB, 10, 75_290, 23),
        ("resnet20", RGB, 10, 269_722, 59),
        ("resnet20", GREY, 10, 269_722 - 2 * 16 * 9, 59),
        ("resnet20", RGB, 100, 269_722 + 90 * 65, 59),
        ("resnet34", RGB, 10, 21_282_122, 110),
        ("deep-linear", (6,), 10, 160, 2),
        ("deep-linear-4", (6,), 10, 64, 2),
        ("deep-linear-1", (6,), 10, 16, 2),
    ],
)
def test_number_of_parameters(name, shape, outputs, count, tensors):
    sizes = parameters(name, shape, outputs)
    assert (sum(sizes), len(sizes)) == (count, tensors)


@pytest.mark.parametrize("shape", [RGB, GREY, TINY])
@pytest.mark.parametrize("name", ["mlp", "logistic", "resnet8", "resnet20", "resnet34"])
def test_image_models_take_every_size_and_train(name, shape):
    model = models.build(name, shape, 10)
    out = model(torch.randn(2, *shape))
    assert out.shape == (2, 10)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["mlp", "logistic", "deep-linear"])
def test_vector_models_take_vectors(name):
    assert models.build(name, (6,), 3)(torch.randn(4, 6)).shape == (4, 3)


def test_every_name_is_tested_and_unknown_names_are_refused():
    assert set(models.NAMES) == {
        *("mlp", "logistic", "resnet8", "resnet20", "resnet34"),
        *("deep-linear", "deep-linear-1", "deep-linear-4"),
    }
    with pytest.raises(LabError, match=r"'resnet-20'.*did you mean 'resnet20'"):
        models.build("resnet-20", RGB, 10)


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("resnet20", (126,), r"'resnet20' takes images .*not inputs of shape \(126,\); try 'mlp'"),
        ("deep-linear", RGB, "'deep-linear' takes vectors"),
        ("mlp", (0,), "cannot be built"),
    ],
)
def test_impossible_inputs_are_refused(name, shape, said):
    with pytest.raises(LabError, match=said):
        models.build(name, shape, 10)


def test_no_outputs_are_refused():
    with pytest.raises(LabError, match="0 outputs"):
        models.build("mlp", (3,), 0)


@pytest.mark.parametrize("name", models.NAMES)
def test_global_generator_alone_decides_the_weights(name):
    shape = (6,) if name.startswith("deep") else TINY

    def weights(seed):
        torch.manual_seed(seed)
        return torch.nn.utils.parameters_to_vector(models.build(name, shape, 2).parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_option_a_shortcut_takes_every_second_pixel_and_pads_channels_with_zeros():
    x = torch.randn(1, 16, 8, 8)
    out = PadShortcut(16, 32, 2)(x)
    assert out.shape == (1, 32, 4, 4)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert out[:, :8].abs().sum() + out[:, 24:].abs().sum() == 0


def test_resnet34_halves_the_image_three_times():
    sizes = []
    model = models.build("resnet34", RGB, 10)
    for stage in model.stages:
        stage.register_forward_hook(lambda module, inputs, out: sizes.append(tuple(out.shape[1:])))
    model(torch.randn(1, *RGB))
    assert sizes == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


def test_small_resnet_starts_with_kaiming_weights():
    torch.manual_seed(0)
    weight = models.build("resnet20", RGB, 10).stages[2][2].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


def test_deep_linear_of_full_rank_can_interpolate_and_of_rank_one_cannot():
    problem = data.load("matrix-factorisation")
    A = torch.linalg.lstsq(problem.train.inputs, problem.train.targets).solution.T
    U, S, V = torch.linalg.svd(A, full_matrices=False)
    for name, rank, bound in (("deep-linear", 6, 1e-6), ("deep-linear-1", 1, None)):
        model = models.build(name, (6,), 10)
        with torch.no_grad():
            model[0].weight.zero_()[:rank] = V[:rank]
            model[1].weight.zero_()[:, :rank] = U[:, :rank] * S[:rank]
            loss = (model(problem.train.inputs) - problem.train.targets).square().max()
        assert loss < bound if bound else loss > 0.1
