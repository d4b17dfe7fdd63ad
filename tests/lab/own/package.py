"""A user's package outside the repository: model, data, loss and rival of its own."""

import sys
from pathlib import Path

FILES = {
    "acme/__init__.py": "",
    "acme/nets.py": """
from torch import nn

def build(shape, outputs, width=16):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0], width), nn.Tanh(), nn.Linear(width, outputs))

def fixed():
    return nn.Sequential(nn.Linear(6, 3))

class Net(nn.Sequential):
    def __init__(self, hidden=8):
        super().__init__(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, 3))
""",
    "acme/sets.py": """
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

def _parts(samples, *sizes):
    generator = torch.Generator().manual_seed(5)
    w = torch.randn(6, 3, generator=generator)
    made = []
    for size in (samples, *sizes):
        x = torch.randn(size, 6, generator=generator)
        made.append((x, (x @ w).argmax(1)))
    return made

def load(samples=48):
    return _parts(samples, 24)

class Classes(TensorDataset):
    classes = ("a", "b", "c")

def datasets(samples=48):
    return [Classes(*part) for part in _parts(samples, 24)]

class Noisy(Classes):
    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + 0.1 * torch.randn(6), y

def loaders(samples=48, workers=0, shuffle=True, kind=Classes):
    train, test, validation = (kind(*part) for part in _parts(samples, 24, 12))
    return (
        DataLoader(train, batch_size=16, shuffle=shuffle, num_workers=workers),
        DataLoader(test, batch_size=10),
        DataLoader(validation, batch_size=12),
    )

def noisy(workers=0):
    return loaders(workers=workers, kind=Noisy)

class Endless(IterableDataset):
    def __iter__(self):
        (x, y), = _parts(100)
        return iter(zip(x, y))

def endless():
    return DataLoader(Endless(), batch_size=16), DataLoader(Endless(), batch_size=16)
""",
    "acme/losses.py": """
import torch.nn.functional as F

def smoothed(outputs, targets, smoothing=0.1):
    return F.cross_entropy(outputs, targets, label_smoothing=smoothing)

def stuck(outputs, targets):
    return (outputs.argmax(1) != targets).float().mean()

def each(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")
""",
    "acme/rivals.py": """
import torch

class Rival(torch.optim.Optimizer):
    '''Steps along the sign of an average.'''

    def __init__(self, params, lr=0.01, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                average.lerp_(p.grad, 1 - group["beta"])
                p.sub_(average.sign(), alpha=group["lr"])

class WithLoss(torch.optim.SGD):
    '''Its step size is the loss.'''

    @torch.no_grad()
    def step(self, closure=None, loss=None):
        for group in self.param_groups:
            group["lr"] = min(0.1, float(loss))
        super().step()

class Demanding(torch.optim.SGD):
    '''Needs a closure, but does not say so in its signature.'''

    def step(self, closure=None):
        if closure is None:
            raise RuntimeError("a closure is required")
        super().step(closure)

class Averaging(torch.optim.SGD):
    '''Evaluates an average of the weights it trains.'''

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr)
        for group in self.param_groups:
            group.update(training=False, count=0)
        self.log = []

    def train(self):
        self._set(True)

    def eval(self):
        self._set(False)

    @torch.no_grad()
    def _set(self, training):
        for group in self.param_groups:
            if group["training"] == training:
                continue
            group["training"] = training
            for p in group["params"]:
                if "other" in self.state[p]:
                    here = p.clone()
                    p.copy_(self.state[p]["other"])
                    self.state[p]["other"].copy_(here)

    @torch.no_grad()
    def step(self, closure=None):
        assert all(group["training"] for group in self.param_groups)
        super().step()
        for group in self.param_groups:
            group["count"] += 1
            for p in group["params"]:
                self.state[p].setdefault("other", p.clone()).lerp_(p, 1 / group["count"])
""",
}
METADATA = "Metadata-Version: 2.1\nName: acme-experiments\nVersion: {version}\n"
ENTRY_POINTS = """
[polyak.models]
acme-net = acme.nets:build
[polyak.data]
acme-set = acme.sets:load
[polyak.objectives]
acme-loss = acme.losses:smoothed
[polyak.optimizers]
acme-rival = acme.rivals:Rival
"""
PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "acme-experiments"
version = "1.2.0"

[tool.hatch.build.targets.wheel]
packages = ["acme"]

[project.entry-points."polyak.models"]
acme-net = "acme.nets:build"
[project.entry-points."polyak.data"]
acme-set = "acme.sets:load"
[project.entry-points."polyak.optimizers"]
acme-rival = "acme.rivals:Rival"
"""
RECIPE = """
title = "Ours"
seeds = [0, 1]

[defaults]
data = { name = "acme.sets:load", holdout = 12 }
model = { name = "acme.nets:build", options = { width = 12 } }
objective = "acme.losses:smoothed"
training = { epochs = 3, batch_size = 16, device = "cpu", threads = 1 }

[[row]]
name = "Rival"
optimizer = { name = "acme.rivals:Rival", lr = 0.02 }

[[row]]
name = "ALI-G"
optimizer = { name = "alig", lr = 0.5, momentum = 0.9 }

[sweep]
row = "Rival"
trials = 2
axes = { lr = [0.01, 0.1] }
"""


def write(folder: Path, files: dict[str, str] = FILES) -> Path:
    """Write files into a folder and return it."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def install(folder: Path, version: str = "1.2.0") -> Path:
    """Write the package as an installer lays it out, with its metadata and entry points."""
    info = f"acme_experiments-{version}.dist-info"
    record = "".join(f"{name},,\n" for name in FILES)
    metadata = {"METADATA": METADATA.format(version=version), "entry_points.txt": ENTRY_POINTS, "RECORD": record}
    return write(folder, {**FILES, **{f"{info}/{name}": text for name, text in metadata.items()}})


def forget(package: str = "acme") -> None:
    """Remove a package from the modules that are loaded, and what is known of it."""
    from polyak_lab import imports
    from polyak_lab.training import build, fit

    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
    imports._distributions.cache_clear()
    build.load_dataset.cache_clear()
    fit._try_batch.cache_clear()
