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
        ("cnn", GREY, 10, 16 * 9 + 16 + 32 * 16 * 9 + 32 + 10 * 32 * 49 + 10, 6),
        ("resnet8", RGB, 10, 75_290, 23),
        ("resnet20", RGB, 10, 269_722, 59),
        ("resnet20", GREY, 10, 269_722 - 2 * 16 * 9, 59),
        ("resnet20", RGB, 100, 269_722 + 90 * 65, 59),
        ("resnet34", RGB, 10, 21_282_122, 110),
        ("densenet121", RGB, 10, 6_956_298, 362),
        ("densenet121", RGB, 100, 6_956_298 + 90 * 1025, 362),
        ("densenet-40-40", RGB, 10, 1_901_920, 118),
        ("wrn-40-4", RGB, 10, 8_949_210, 116),
        ("wrn-40-4", RGB, 100, 8_949_210 + 90 * 257, 116),
        ("wrn-16-4", RGB, 10, 2_748_890, 44),
        ("linear", (112,), 1, 112, 1),
        ("deep-linear", (6,), 10, 160, 2),
        ("deep-linear-4", (6,), 10, 64, 2),
        ("deep-linear-1", (6,), 10, 16, 2),
    ],
)
def test_number_of_parameters(name, shape, outputs, count, tensors):
    sizes = parameters(name, shape, outputs)
    assert (sum(sizes), len(sizes)) == (count, tensors)


@pytest.mark.parametrize("shape", [RGB, GREY, TINY])
@pytest.mark.parametrize("name", [name for name in models.NAMES if not name.startswith(("deep-linear", "gpt"))])
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
        *("mlp", "logistic", "linear", "cnn", "resnet8", "resnet20", "resnet34"),
        *("densenet121", "densenet-40-40", "wrn-40-4", "wrn-16-4"),
        *("deep-linear", "deep-linear-1", "deep-linear-4"),
        "gpt-small",
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
    shape = (6,) if name.startswith(("deep", "gpt")) else TINY

    def weights(seed):
        torch.manual_seed(seed)
        model = models.build(name, shape, 2, text=name.startswith("gpt"))
        return torch.nn.utils.parameters_to_vector(model.parameters())

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


@pytest.mark.parametrize(
    ("name", "published", "unit"),
    [("resnet20", 0.27, 0.01), ("wrn-40-4", 8.9, 0.1), ("wrn-16-4", 2.7, 0.1), ("densenet121", 6.96, 0.01)],
)
def test_published_numbers_of_parameters(name, published, unit):
    millions = sum(parameters(name, RGB, 10)) / 1e6
    assert abs(millions - published) <= unit / 2 * 1.0001


def test_densenet_of_the_paper_by_its_formula():
    """Every layer reads all channels before it: 160 + growth·9·160 more weights, two for each channel normalised."""
    width, total = 80, 3 * 9 * 80
    for stage in range(3):
        for _ in range(6):
            total += 2 * width + width * 160 + 2 * 160 + 160 * 9 * 40
            width += 40
        if stage < 2:
            total += 2 * width + width * (width // 2)
            width //= 2
    assert total + 2 * width + 10 * width == sum(parameters("densenet-40-40", RGB, 10))


def test_only_wrn_16_4_drops_units():
    model, images = models.build("wrn-16-4", RGB, 10).train(), torch.randn(4, *RGB)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))
    rates = {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
    assert rates == {0.4}
    assert {m.p for m in models.build("wrn-40-4", RGB, 10).modules() if isinstance(m, torch.nn.Dropout)} == {0.0}


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
