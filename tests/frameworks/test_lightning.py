"""The callback in the released Lightning: what it logs, what it leaves alone, and what happens without it."""

from __future__ import annotations

import warnings
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import loops
import polyak
from loops import quiet_trainer
from polyak.integrations.lightning import PolyakCallback
from truth import ROWS, STEPS, network, samples

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]


class Module(lightning.LightningModule):
    """A classifier; remembers its micro-batch losses and the step sizes that were logged."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.network, self.make = network(), make
        self.logged: list[float] = []
        self.taken: list[float] = []

    def training_step(self, batch: Any, index: int) -> Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return self.make(self.network)

    def on_train_batch_end(self, *_: Any) -> None:
        if "step_size" in self.trainer.callback_metrics:
            self.logged.append(float(self.trainer.callback_metrics["step_size"]))
        self.taken.append(float(self.optimizers().param_groups[0].get("step_size", -1.0)))


def alig(model: nn.Module, lr: float = 100.0) -> polyak.ALIG:
    return polyak.ALIG(model.parameters(), lr=lr)


def fit(module: Any, accumulate: int = 1, callbacks: tuple[Any, ...] = (), **options: Any) -> Any:
    trainer = quiet_trainer(lightning.Trainer, "cpu", accumulate, callbacks=list(callbacks), **options)
    trainer.fit(module, DataLoader(samples(accumulate), ROWS))
    return trainer


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_step_size_that_was_taken_is_logged_not_the_cap(accumulate):
    module = Module(alig)
    trainer = fit(module, accumulate, (PolyakCallback(),))
    gamma = float(trainer.optimizers[0].param_groups[0]["step_size"])
    assert 0 < gamma < 100.0
    assert float(trainer.callback_metrics["step_size"]) == gamma
    assert len(set(module.taken)) == STEPS + (accumulate > 1)  # γ is 0 before the first step
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged.items() >= polyak.metrics(trainer.optimizers[0]).items()


def test_nothing_is_logged_on_request_or_for_another_kind_of_optimizer():
    quiet = fit(Module(alig), callbacks=(PolyakCallback(log=False),))
    other = fit(Module(lambda model: torch.optim.SGD(model.parameters(), 0.1)), callbacks=(PolyakCallback(),))
    assert "step_size" not in quiet.callback_metrics | other.callback_metrics


def test_clipping_is_warned_about_for_a_polyak_optimizer_alone():
    with pytest.warns(UserWarning, match=r"gradient_clip_val=0\.5 .* leave it out, since lr already caps the step"):
        fit(Module(alig), callbacks=(PolyakCallback(),), gradient_clip_val=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="gradient_clip_val")
        fit(Module(alig), callbacks=(PolyakCallback(),))
        sgd = Module(lambda model: torch.optim.SGD(model.parameters(), 0.1))
        fit(sgd, callbacks=(PolyakCallback(),), gradient_clip_val=0.5)


def test_without_the_callback_accumulation_makes_the_loss_too_small():
    """Why the callback exists: Lightning's closure returns the last micro-batch's loss, divided."""
    losses = []
    for callbacks in ((), (PolyakCallback(),)):
        module = Module(lambda model: alig(model, lr=1e-9))
        losses.append(float(fit(module, 4, callbacks).optimizers[0].last_step().loss))
    assert losses[0] < 0.5 * losses[1]


def test_where_lightning_hides_the_loss_the_error_names_it_and_the_line_to_write():
    from lightning.pytorch.plugins import MixedPrecision

    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(RuntimeError, match=r"the Lightning Trainer .* Trainer\(callbacks=\[PolyakCallback\(\)\]\)"):
        fit(Module(alig), plugins=[plugin])


def test_a_step_that_the_scaler_skipped_leaves_nothing_behind():
    from lightning.pytorch.plugins import MixedPrecision

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100, backoff_factor=2.0**-90)
    module = Module(lambda model: alig(model, lr=1e-9))
    trainer = fit(module, callbacks=(PolyakCallback(),), plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert scaler.get_scale() == 2.0**10
    x, y = samples(1)[-ROWS:]
    with torch.autocast("cpu", dtype=torch.float16):
        expected = F.cross_entropy(module.network(x), y)
    torch.testing.assert_close(trainer.optimizers[0].last_step().loss, expected.detach().float(), rtol=1e-6, atol=0)


class Two(lightning.LightningModule):
    """Two networks with an optimizer each, as adversarial training has them."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.first, self.second = network(), network()
        self.seen: list[tuple[float, float]] = []

    def training_step(self, batch: Any, index: int) -> None:
        for optimizer, model, factor in zip(self.optimizers(), (self.first, self.second), (1.0, 5.0), strict=True):
            self.toggle_optimizer(optimizer)
            loss = factor * F.cross_entropy(model(batch[0]), batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)
            self.seen.append((float(optimizer.optimizer.last_step().loss), float(loss.detach())))

    def configure_optimizers(self) -> Any:
        return alig(self.first), alig(self.second)


def test_each_of_several_optimizers_gets_its_own_loss_and_its_own_name():
    module = Two()
    trainer = fit(module, callbacks=(PolyakCallback(),))
    assert len(module.seen) == 2 * STEPS
    assert all(seen == given for seen, given in module.seen)
    assert {"optimizer/0/step_size", "optimizer/1/step_size"} <= trainer.callback_metrics.keys()


class Untoggled(lightning.LightningModule):
    """Networks with an optimizer each, all of which require gradients all the time."""

    def __init__(self, count: int, at_once: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.networks = torch.nn.ModuleList(network() for _ in range(count))
        self.at_once = at_once
        self.seen: list[tuple[float, float]] = []

    def training_step(self, batch: Any, index: int) -> None:
        optimizers = self.optimizers()
        losses = [(i + 1.0) * F.cross_entropy(net(batch[0]), batch[1]) for i, net in enumerate(self.networks)]
        for optimizer, loss in zip(optimizers, losses, strict=True):
            optimizer.zero_grad()
            self.manual_backward(loss)
            if not self.at_once:
                optimizer.step()
        for optimizer in optimizers if self.at_once else ():
            optimizer.step()
        for optimizer, loss in zip(optimizers, losses, strict=True):
            self.seen.append((float(optimizer.optimizer.last_step().loss), float(loss.detach())))

    def configure_optimizers(self) -> Any:
        return [alig(net) for net in self.networks]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("at_once", [False, True])
def test_each_of_several_optimizers_gets_its_own_loss_without_toggling(count, at_once):
    module = Untoggled(count, at_once)
    fit(module, callbacks=(PolyakCallback(),))
    assert len(module.seen) == count * STEPS
    assert all(seen == given for seen, given in module.seen)


@pytest.mark.parametrize("precision", ["32", "bf16", "16"])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_loss_that_is_watched_in_the_step_and_by_the_callback_counts_once(precision, accumulate):
    assert loops.lightning(precision, accumulate, by_hand=True, by_callback=True) <= 1e-6


def test_a_missing_loss_in_fabric_is_told_with_the_line_to_write():
    from lightning.fabric import Fabric

    from polyak.integrations.fabric import backward

    fabric = Fabric(accelerator="cpu", devices=1)
    bare = network()
    model, optimizer = fabric.setup(bare, alig(bare))
    x, y = next(iter(DataLoader(samples(1), ROWS)))
    fabric.backward(F.cross_entropy(model(x), y))
    with pytest.raises(RuntimeError, match=r"Fabric .* backward\(fabric, optimizer, loss\) from polyak"):
        optimizer.step()
    with pytest.raises(TypeError, match=r"a SGD holds none: write fabric\.backward\(loss\)\.$"):
        backward(fabric, torch.optim.SGD(bare.parameters(), 0.1), torch.ones(()))
