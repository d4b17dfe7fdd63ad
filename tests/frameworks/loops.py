"""Every loop as a function that trains for some steps and returns the relative error of the loss its steps saw."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, SequentialSampler

import language
from launch import launch
from truth import ROWS, STEPS, Witness, autocast, mean_loss, network, optimizer_for, samples

GRADIENT = {"32": 1e-5, "bf16": 0.02, "16": 0.005}  # narrow activations round the gradient itself


def plain(precision: str, accumulate: int, device: str = "cpu") -> float:
    """A loop of one's own, with `watch`."""
    model = network().to(device)
    optimizer = optimizer_for(model)
    witness = Witness(optimizer, mean_loss(model, accumulate, precision))
    for i, (x, y) in enumerate(DataLoader(samples(accumulate), ROWS)):
        with autocast(precision, device):
            loss = optimizer.watch(F.cross_entropy(model(x.to(device)), y.to(device)))
        (loss / accumulate).backward()
        if (i + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    return witness.worst(gradient=GRADIENT[precision])


def grad_scaler(precision: str, accumulate: int, device: str = "cpu") -> float:
    """A loop of one's own with loss scaling, with `watch`."""
    model = network().to(device)
    optimizer = optimizer_for(model)
    witness = Witness(optimizer, mean_loss(model, accumulate, precision))
    scaler = torch.amp.GradScaler(device, init_scale=512.0, growth_interval=2)
    for i, (x, y) in enumerate(DataLoader(samples(accumulate), ROWS)):
        with autocast(precision, device):
            loss = optimizer.watch(F.cross_entropy(model(x.to(device)), y.to(device)), scaler)
        scaler.scale(loss / accumulate).backward()
        if (i + 1) % accumulate == 0:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    return witness.worst(gradient=GRADIENT[precision])


def grad_scaler_keyword(precision: str, accumulate: int, device: str = "cpu") -> float:
    """A loop of one's own with loss scaling, with `loss=`."""
    model = network().to(device)
    optimizer = optimizer_for(model)
    witness = Witness(optimizer, mean_loss(model, accumulate, precision))
    scaler = torch.amp.GradScaler(device, init_scale=512.0, growth_interval=2)
    batches = list(DataLoader(samples(accumulate), ROWS))
    for t in range(STEPS):
        total = torch.zeros((), device=device)
        for x, y in batches[t * accumulate : (t + 1) * accumulate]:
            with autocast(precision, device):
                loss = F.cross_entropy(model(x.to(device)), y.to(device)) / accumulate
            scaler.scale(loss).backward()
            total += loss.detach()
        scaler.step(optimizer, loss=total)
        scaler.update()
        optimizer.zero_grad()
    return witness.worst(gradient=GRADIENT[precision])


def lightning(
    precision: str, accumulate: int, device: str = "cpu", by_hand: bool = False, by_callback: bool = False
) -> float:
    """The Lightning Trainer with our callback, or with `watch` in the training step, or both."""
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.plugins import MixedPrecision

    from polyak.integrations.lightning import PolyakCallback

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def training_step(self, batch: Any, index: int) -> Tensor:
            loss = F.cross_entropy(self.network(batch[0]), batch[1])
            scaler = getattr(self.trainer.precision_plugin, "scaler", None)
            return self.optimizers().watch(loss, scaler) if by_hand else loss

        def configure_optimizers(self) -> Any:
            optimizer = optimizer_for(self.network)
            self.witness = Witness(optimizer, mean_loss(self.network, accumulate, precision))
            return optimizer

    # Lightning turns precision="16-mixed" on the CPU into bf16-mixed, but its plugin runs there.
    scaler = torch.amp.GradScaler(device, init_scale=512.0)
    how: dict[str, Any] = {
        "32": {"precision": "32-true"},
        "bf16": {"precision": "bf16-mixed"},
        "16": {"plugins": [MixedPrecision("16-mixed", device, scaler)]},
    }[precision]
    module = Module()
    callbacks = [] if by_hand and not by_callback else [PolyakCallback()]
    trainer = quiet_trainer(Trainer, device, accumulate, callbacks=callbacks, **how)
    trainer.fit(module, DataLoader(samples(accumulate), ROWS))
    return module.witness.worst(gradient=GRADIENT[precision])


def quiet_trainer(cls: Callable[..., Any], device: str, accumulate: int, **options: Any) -> Any:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    accelerator = "gpu" if device == "cuda" else "cpu"
    settings = dict.fromkeys(off, False) | {"max_epochs": 1, "accumulate_grad_batches": accumulate} | options
    return cls(accelerator=accelerator, devices=1, **settings)


def fabric(precision: str, accumulate: int, device: str = "cpu", by_hand: bool = False) -> float:
    """A loop that Fabric drives, with our `backward` or with `watch`."""
    from lightning.fabric import Fabric
    from lightning.fabric.plugins import MixedPrecision

    from polyak.integrations.fabric import backward

    scaler = torch.amp.GradScaler(device, init_scale=512.0) if precision == "16" else None
    names: dict[str, Any] = {"bf16": "bf16-mixed", "16": "16-mixed"}
    plugins = [MixedPrecision(names[precision], device, scaler)] if precision in names else []
    driver = Fabric(accelerator="gpu" if device == "cuda" else "cpu", devices=1, plugins=plugins)
    bare = network()
    inner = optimizer_for(bare)
    model, optimizer = driver.setup(bare, inner)
    witness = Witness(inner, mean_loss(bare, accumulate, precision))
    for i, (x, y) in enumerate(driver.setup_dataloaders(DataLoader(samples(accumulate), ROWS))):
        loss = F.cross_entropy(model(x), y) / accumulate
        if by_hand:
            driver.backward(optimizer.watch(loss, scaler))
        else:
            backward(driver, optimizer, loss)
        if (i + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    return witness.worst(gradient=GRADIENT[precision])


def accelerate(precision: str, accumulate: int, device: str = "cpu", by_hand: bool = False) -> float:
    """A loop that Accelerate drives, with our `backward` or with `watch`."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    from polyak.integrations.accelerate import backward

    AcceleratorState._reset_state(reset_partial_state=True)
    names = {"32": "no", "bf16": "bf16", "16": "fp16"}
    driver = Accelerator(cpu=device == "cpu", mixed_precision=names[precision], gradient_accumulation_steps=accumulate)
    without_overflow(driver)
    bare = network()
    optimizer = optimizer_for(bare)
    model, wrapped, loader = driver.prepare(bare, optimizer, DataLoader(samples(accumulate), ROWS))
    witness = Witness(optimizer, mean_loss(bare, accumulate, "32"))  # prepare() gave its forward the precision
    for x, y in loader:
        with driver.accumulate(model):
            loss = F.cross_entropy(model(x), y)
            if by_hand:
                driver.backward(wrapped.optimizer.watch(loss, driver.scaler))
            else:
                backward(driver, wrapped, loss)
            wrapped.step()
            wrapped.zero_grad()
    return witness.worst(gradient=GRADIENT[precision])


def without_overflow(driver: Any) -> None:
    """Let float16 begin with a scale that holds every gradient: with a driver's own, the first steps overflow."""
    if driver.scaler is not None:
        driver.scaler = torch.amp.GradScaler(driver.device.type, init_scale=512.0)


def hf_trainer(precision: str, accumulate: int, device: str = "cpu", **arguments: Any) -> float:
    """The HF Trainer with our mixin or `watch`, on a language model whose micro-batches differ in their tokens."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    model = language.tiny().to(device)
    optimizer = optimizer_for(model)
    smoothing = arguments.get("label_smoothing_factor", 0.0)
    witness = Witness(optimizer, language.token_mean(model, accumulate, smoothing, precision))
    trainer = sequential_trainer(model, language.sequences(accumulate), optimizer, precision, accumulate, **arguments)
    trainer.train()
    return witness.worst(gradient=GRADIENT[precision])


def over_processes(kind: str) -> Callable[[str, int], float]:
    """Two processes, each with its own data; the objective is the mean over all of it."""

    def loop(precision: str, accumulate: int) -> float:
        return all_over_processes()[f"{kind} {precision} {accumulate}"]

    return loop


@cache
def all_over_processes() -> dict[str, float]:
    """Measure everything that takes two processes; return the worse of their errors."""
    outputs = launch("over_processes.py", [], size=2, seconds=240)
    found = [json.loads(output.splitlines()[-1]) for output in outputs]
    return {name: max(errors[name] for errors in found) for name in found[0]}


def hf_trainer_smoothed(precision: str, accumulate: int, device: str = "cpu") -> float:
    """The same with label smoothing."""
    return hf_trainer(precision, accumulate, device, label_smoothing_factor=0.1)


def sequential_trainer(
    model: Any,
    data: Dataset[Any],
    optimizer: Any,
    precision: str,
    accumulate: int,
    by_hand: bool = False,
    **arguments: Any,
) -> Any:
    """Return a Trainer that takes the samples in their order and leaves nothing behind."""
    from transformers import Trainer, TrainingArguments

    from polyak.integrations.transformers import PolyakTrainerMixin

    class ByHand(Trainer):
        def compute_loss(self, *inputs: Any, **options: Any) -> Any:
            loss = super().compute_loss(*inputs, **options)
            return optimizer.watch(loss, self.accelerator.scaler)

    class PolyakTrainer(ByHand if by_hand else type("Mixed", (PolyakTrainerMixin, Trainer), {})):
        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(data)

    settings = {
        "per_device_train_batch_size": ROWS,
        "gradient_accumulation_steps": accumulate,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "num_train_epochs": 1,
        "bf16": precision == "bf16",
        "fp16": precision == "16",
        "use_cpu": next(model.parameters()).device.type == "cpu",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    made = TrainingArguments(output_dir=tempfile.gettempdir(), **(settings | arguments))
    trainer = PolyakTrainer(model=model, args=made, train_dataset=data, optimizers=(optimizer, None))
    without_overflow(trainer.accelerator)
    return trainer
