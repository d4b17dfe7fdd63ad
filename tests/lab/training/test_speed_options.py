"""What makes a run faster changes its numbers within rounding and no more."""

import pytest
import torch

from lab.runs import execute, run
from observe import SMALL_BALLS
from polyak_lab.config import run as config
from polyak_lab.data.augment import normalise
from polyak_lab.errors import LabError
from polyak_lab.recipes.resolve import resolve
from polyak_lab.training import build

pytestmark = pytest.mark.filterwarnings(SMALL_BALLS)

SMALL = {"model": "resnet8", "epochs": 1, "max_batches": 4, "batch_size": 64}


def losses(path, **options):
    return [record["train_loss"] for record in execute(path, run(**SMALL, **options)).records]


def test_channels_last_changes_the_layout_alone(tmp_path):
    assert losses(tmp_path / "fast", channels_last=True) == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)
    weight = build.build_session(resolve(run(**SMALL, channels_last=True))).model.stages[1][0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()


def test_bfloat16_is_near_and_keeps_weights_and_losses_in_float32(tmp_path):
    fast, plain = losses(tmp_path / "fast", precision="bfloat16"), losses(tmp_path / "plain")
    assert fast == pytest.approx(plain, rel=0.05)
    assert fast != plain
    session = build.build_session(resolve(run(**SMALL, precision="bfloat16")))
    assert {p.dtype for p in session.model.parameters()} == {torch.float32}
    assert session.outputs(next(session.training_batches(0))[0]).dtype == torch.float32


def test_an_unknown_precision():
    with pytest.raises(LabError, match=r"training.precision: 'bf16' is not known; did you mean 'bfloat16'"):
        run(precision="bf16")


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:TensorFloat32")
@pytest.mark.parametrize("option", [{"compile": True}, {"precision": "bfloat16"}, {"channels_last": True}])
def test_on_a_gpu(option, tmp_path):
    plain = losses(tmp_path / "plain", device="cuda")
    assert losses(tmp_path / "fast", device="cuda", **option) == pytest.approx(plain, rel=0.05)


def test_held_out_samples_are_scored_every_epoch(tmp_path):
    wanted = run(epochs=2)
    held = config.Run(
        config.Data("digits", holdout=300), *(vars(wanted)[k] for k in ("model", "optimizer", "training"))
    )
    records = execute(tmp_path, held).records
    session = build.build_session(resolve(held))
    model, data = session.model.eval(), session.dataset
    model.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]["model"])
    scores = {}
    for name in ("validation", "test"):
        part = getattr(data, name)
        with torch.no_grad():
            outputs = model(normalise(part.inputs, data.mean, data.std))
        scores[f"{name}_loss"] = torch.nn.functional.cross_entropy(outputs, part.targets).item()
        scores[f"{name}_accuracy"] = (outputs.argmax(1) == part.targets).double().mean().item()
    assert scores["validation_loss"] != pytest.approx(scores["test_loss"], rel=1e-2)
    assert {name: records[-1][name] for name in scores} == pytest.approx(scores, rel=1e-5)
    assert records[0]["validation_loss"] != records[1]["validation_loss"]
