"""The step as one CUDA graph; on a CPU, the same tensors and logs with the step itself in place of the graph."""

from dataclasses import replace

import pytest
import torch
from rich.console import Console

from lab.runs import ALIG, call, execute, run
from observe import SMALL_BALLS
from polyak_lab.config import run as config
from polyak_lab.errors import LabError
from polyak_lab.progress import Progress
from polyak_lab.recipes.resolve import resolve
from polyak_lab.training import build
from polyak_lab.training.loop import choose_step, train_epoch

pytestmark = pytest.mark.filterwarnings(SMALL_BALLS)

SGD = config.Optimizer("sgd", options={"lr": 0.1, "momentum": 0.9})
KINDS = {
    "alig": (ALIG, "constant"),
    "alig, cosine": (ALIG, "cosine"),
    "smooth-sps": (config.Optimizer("smooth-sps", options={"momentum": 0.9}), "constant"),
    "momo-adam, cosine": (config.Optimizer("momo-adam"), "cosine"),
    "ngn-md": (config.Optimizer("ngn-md"), "constant"),
    "ada-sps": (config.Optimizer("ada-sps"), "constant"),
    "iam": (config.Optimizer("iam"), "constant"),
    "sgd": (SGD, "constant"),
    "fused sgd, cosine": (config.Optimizer("sgd", options={**SGD.options, "fused": True}), "cosine"),
    "adamw": (config.Optimizer("adamw", options={"capturable": True}), "constant"),
}
ONLY_ON_GPU = ("adamw", "fused sgd, cosine")
ON_CPU = [kind for kind in KINDS if kind not in ONLY_ON_GPU]
QUIET = Progress(Console(quiet=True), epochs=False)


def measured(kind, cuda_graph, model="mlp", epochs=3):
    """Train without a check of the device; return what every epoch measured, and the state at the end."""
    optimizer, schedule = KINDS[kind]
    wanted = resolve(run(optimizer, schedule, model=model, epochs=epochs, batch_size=200))
    training = replace(wanted.training, cuda_graph=cuda_graph)
    session = build.build_session(replace(wanted, training=training))
    step = choose_step(session.run)
    return [_numbers(train_epoch(session, step, epoch, QUIET)) for epoch in range(epochs)], session.state_dict()


def _numbers(meter):
    return meter.loss(), meter.accuracy(), meter.means(), meter.latest()


def assert_same(one, other):
    """Compare to the bit, whatever holds the numbers."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one.double(), torch.as_tensor(other, dtype=torch.float64))
    else:
        assert one == other


@pytest.mark.parametrize("kind", ON_CPU)
@pytest.mark.parametrize("model", ["mlp", pytest.param("resnet8", marks=pytest.mark.slow)])
def test_steps_on_tensors_that_stay_are_the_steps_of_a_run(kind, model):
    """Eight steps an epoch, the last of 37 samples: warm, replayed and smaller batches are all there."""
    epochs = 3 if model == "mlp" else 1
    (plain, plain_state), (replayed, state) = (measured(kind, graph, model, epochs) for graph in (False, True))
    assert replayed == plain
    assert_same(state, plain_state)


def test_a_schedule_writes_into_the_lr_that_a_replayed_step_reads():
    wanted = resolve(run(ALIG, "cosine", epochs=1))
    session = build.build_session(replace(wanted, training=replace(wanted.training, cuda_graph=True)))
    lr = session.optimizer.param_groups[0]["lr"]
    train_epoch(session, choose_step(session.run), 0, QUIET)
    assert session.optimizer.param_groups[0]["lr"] is lr
    assert float(lr) == pytest.approx(0.0, abs=1e-12)


WRONG = {
    "a CPU": (run(cuda_graph=True), "the device 'cpu' has no CUDA graphs"),
    "a schedule": (run(SGD, "cosine", cuda_graph=True, device="cuda"), "its schedule must be constant"),
    "Adam": (run(config.Optimizer("adam"), cuda_graph=True, device="cuda"), "adam needs capturable = true"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_recorded_is_refused_before_anything_trains(case, tmp_path, monkeypatch):
    monkeypatch.setattr("polyak_lab.recipes.resolve._resolve_device", lambda name: name)  # there may be no GPU
    wanted, reason = WRONG[case]
    with pytest.raises(LabError) as caught:
        execute(tmp_path / "run", wanted)
    assert str(caught.value).startswith("training.cuda_graph does not go here: ")
    assert reason in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_command_line_takes_the_flag(tmp_path, capsys):
    flags = ("--data", "digits", "--model", "mlp", "--optimizer", "alig", "--device", "cpu", "--cuda-graph")
    assert call("train", *flags, "--out", tmp_path / "run") == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_without_a_graph_is_stored_as_before_there_were_any():
    assert "cuda_graph" not in config.as_json(run())["training"]
    assert config.as_json(run(cuda_graph=True))["training"]["cuda_graph"] is True


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options", [{}, {"precision": "bfloat16"}, {"model": "resnet8", "channels_last": True}], ids=str
)
def test_a_replayed_run_equals_one_that_is_not(kind, options, tmp_path):
    optimizer, schedule = KINDS[kind]
    wanted = {"epochs": 3, "batch_size": 200, "device": "cuda", **options}
    plain, replayed = (
        execute(tmp_path / str(graph), run(optimizer, schedule, cuda_graph=graph, **wanted)).records
        for graph in (False, True)
    )
    rel = 0.02 if kind.startswith("fused sgd") else 1e-6  # torch's kernel computes otherwise with an lr on the host
    known = [{key: value for key, value in record.items() if value is not None} for record in plain]
    for record, expected in zip(replayed, known, strict=True):
        assert {key: record[key] for key in expected} == pytest.approx(expected, rel=rel)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:TensorFloat32")
def test_a_compiled_network_is_recorded(tmp_path):
    """The steps of full batches are those of the compiled network, up to its roundings."""
    wanted = {"epochs": 2, "batch_size": 200, "device": "cuda", "model": "resnet8", "channels_last": True}
    plain, compiled = (
        execute(tmp_path / str(fast), run(ALIG, "cosine", cuda_graph=fast, compile=fast, **wanted)).records
        for fast in (False, True)
    )
    for one, other in zip(plain, compiled, strict=True):
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=0.05)
