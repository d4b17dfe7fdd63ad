"""Released optimizers of other packages as rows beside ours: their numbers are those of a loop written by hand."""

from __future__ import annotations

import signal

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lab.runs import call
from polyak_lab import data, models
from polyak_lab.data.augment import normalise
from polyak_lab.optimizers import optimizer_class
from polyak_lab.progress import Progress
from polyak_lab.runs import documents, stored
from polyak_lab.training.batches import EVALUATION_BATCH_SIZE, derive_seed, permutation

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]
RIVALS = {
    "pytorch_optimizer:AdEMAMix": {"lr": 1e-3, "betas": [0.9, 0.99, 0.999]},
    "pytorch_optimizer:AliG": {"max_lr": 0.1, "momentum": 0.9},
    "pytorch_optimizer:Lion": {"lr": 1e-4},
    "pytorch_optimizer:Prodigy": {"lr": 1.0},
    "pytorch_optimizer:ScheduleFreeAdamW": {"lr": 1e-3},
    "schedulefree:AdamWScheduleFree": {"lr": 2e-3, "warmup_steps": 5},
    "schedulefree:SGDScheduleFree": {"lr": 0.5},
}
EPOCHS, SIZE = 2, 128
RECIPE = """
[defaults]
data = "digits"
model = "logistic"
training = {{ epochs = {epochs}, batch_size = {size}, device = "cpu", threads = 1 }}
[[row]]
name = "rival"
optimizer = {{ name = "{name}", {options} }}
[[row]]
name = "ALI-G"
optimizer = {{ name = "alig", lr = 0.1 }}
"""


def by_hand(name: str, options: dict[str, object]) -> tuple[float, float]:
    """Train as the package's own pages do; return the test loss and accuracy."""
    digits = data.load("digits")
    torch.manual_seed(derive_seed("weights", 0))
    model = models.build("logistic", digits.shape, digits.outputs)
    optimizer = optimizer_class(name)(model.parameters(), **options)
    x, y = normalise(digits.train.inputs, digits.mean, digits.std), digits.train.targets
    switches = hasattr(optimizer, "eval")
    for epoch in range(EPOCHS):
        if switches:
            optimizer.train()
        for rows in permutation(len(y), 0, epoch).split(SIZE):
            step(model, optimizer, x[rows], y[rows], needs_closure=name.endswith("AliG"))
        if switches:
            optimizer.eval()
    return scores(model, normalise(digits.test.inputs, digits.mean, digits.std), digits.test.targets)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x, y, *, needs_closure: bool) -> None:
    @torch.enable_grad()  # AliG calls it where gradients are off
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    if needs_closure:
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()


@torch.no_grad()
def scores(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    size = EVALUATION_BATCH_SIZE["cpu"]
    outputs = [model(rows) for rows in x.split(size)]
    losses = [F.cross_entropy(out, target) for out, target in zip(outputs, y.split(size), strict=True)]
    weights = torch.tensor([len(target) for target in y.split(size)], dtype=torch.float64)
    loss = float(torch.stack(losses).double() @ weights / len(y))
    return loss, float((torch.cat(outputs).argmax(1) == y).double().mean())


@pytest.mark.parametrize("name", RIVALS)
def test_a_row_has_the_numbers_of_a_loop_written_by_hand(name, tmp_path, monkeypatch):
    pytest.importorskip(name.partition(":")[0])
    options = ", ".join(f"{key} = {value}" for key, value in RIVALS[name].items())
    recipe = RECIPE.format(epochs=EPOCHS, size=SIZE, name=name, options=options)
    (tmp_path / "recipe.toml").write_text(recipe, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert call("run", "recipe.toml", "--out", "whole") == 0
    record = stored.load_run(tmp_path / "whole/rival/seed-0").records[-1]
    assert (record["test_loss"], record["test_accuracy"]) == by_hand(name, RIVALS[name])
    assert documents.read_config(tmp_path / "whole/rival/seed-0/config.json")["run"]["optimizer"]["version"]
    assert stored.load_run(tmp_path / "whole/ali-g/seed-0").finished


@pytest.mark.parametrize("name", RIVALS)
def test_a_stopped_row_resumes_with_the_same_bits(name, tmp_path, monkeypatch):
    pytest.importorskip(name.partition(":")[0])
    monkeypatch.chdir(tmp_path)
    pairs = [part for key, value in RIVALS[name].items() for part in ("--set", f"{key}={value}")]
    train = ("train", "--data", "digits", "--model", "logistic", "--optimizer", name, *pairs, "--epochs", 3)
    train = (*train, "--threads", 1, "--device", "cpu")
    assert call(*train, "--out", "whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "epoch_done", lambda *_: signal.raise_signal(signal.SIGINT))
        assert call(*train, "--out", "stopped") == 130
    assert call(*train, "--out", "stopped") == 0
    whole, stopped = ((tmp_path / out / "metrics.jsonl").read_bytes() for out in ("whole", "stopped"))
    assert whole == stopped
