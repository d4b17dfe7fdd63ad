"""Errors in a user's own code name the row and its line, show the user's traceback, and leave the other rows alone."""

import re

import pytest

from lab.own import package
from lab.runs import call
from polyak_lab import optimizers
from polyak_lab.config import run as config
from polyak_lab.errors import RowError, first_line, typed_line
from polyak_lab.models import imported
from polyak_lab.runs import stored

BROKEN = {
    "acme/syntax.py": "def build(:\n",
    "acme/raises.py": "def inner():\n    raise ValueError('no luck')\n\ninner()\n",
    "acme/needs.py": "import nowhere_at_all\n",
    "acme/exits.py": "class Quit(BaseException):\n    pass\n\nraise Quit('now')\n",
    "acme/wrong.py": """
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

number = lambda outputs, targets: 1.5
row = lambda outputs, targets: F.cross_entropy(outputs, targets)[None]
def one(outputs): ...
apart = lambda outputs, targets: 2 * torch.ones((), requires_grad=True)

class Set(TensorDataset):
    classes = ("a", "b", "c")

def _loader(samples):
    return DataLoader(Set(torch.randn(samples, 6), torch.arange(samples) % 3), batch_size=16)

class Nothing(IterableDataset):
    classes = Set.classes
    def __len__(self):
        return 32
    def __iter__(self):
        return iter(())

empty = lambda: (_loader(0), _loader(32))
untested = lambda: (_loader(32), _loader(0))
nothing = lambda: (DataLoader(Nothing(), batch_size=16), _loader(32))

class Base(nn.Linear):
    def __init__(self):
        super().__init__(6, 3)

class Pair(Base):
    def forward(self, x):
        return super().forward(x), 1

class OnlyTraining(Base):
    def forward(self, x):
        if not self.training:
            raise ValueError("only training")
        return super().forward(x)

class Exits(Base):
    def forward(self, x):
        if not self.training:
            raise SystemExit(3)
        return super().forward(x)

class Zero(Base):
    def __init__(self):
        super().__init__()
        torch.nn.init.zeros_(self.weight), torch.nn.init.zeros_(self.bias)

class Extra(Base):
    def get_extra_state(self):
        return Base
    def set_extra_state(self, state): ...

class Keeps(torch.optim.SGD):
    def step(self, closure=None):
        self.param_groups[0]["f"] = lambda: 1

class Step(torch.optim.SGD):
    def step(self, one, two): ...
""",
    "acme/late.py": """
import torch
from torch import nn

class Late(nn.Linear):
    '''Fails in its tenth step.'''
    calls = 0
    def __init__(self):
        super().__init__(6, 3)
    def forward(self, x):
        Late.calls += 1
        if Late.calls >= 10:
            raise ArithmeticError("late")
        return super().forward(x)
""",
}
HEAD = """
seeds = [0]
[defaults]
data = "acme.sets:load"
model = "acme.nets:build"
optimizer = { name = "sgd", lr = 0.1 }
training = { epochs = 5, batch_size = 16, device = "cpu", threads = 1 }
[[row]]
name = "good"

[[row]]
name = "bad"
"""
NO_FIT = 'model = { name = "torch.nn:Linear", options = { in_features = 5, out_features = 3 } }'
CASES = {
    "no module": ('model = "nothere.nets:build"', "does not exist: there is no module nothere", ""),
    "no submodule": ('model = "acme.nots:build"', "there is no module acme.nots", ""),
    "no attribute": ('model = "acme.nets:biuld"', "does not exist: acme.nets has no 'biuld'", ""),
    "no path": ('model = "acme.nets:"', "is not an import path: write package.module:name", ""),
    "syntax": ('model = "acme.syntax:build"', "raised SyntaxError", "def build(:"),
    "import": ('data = "acme.raises:load"', "data 'acme.raises:load' raised ValueError: no luck.", "in inner"),
    "missing package": ('objective = "acme.needs:loss"', "No module named 'nowhere_at_all'", "import nowhere_at_all"),
    "options": ('data = { name = "acme.sets:load", options = { n = 3 } }', "takes no option 'n'; it takes samples", ""),
    "signature": ('model = "torch.nn:Bilinear"', "needs in1_features, in2_features, out_features", ""),
    "shape": (NO_FIT, "on 'acme.sets:load', in a batch of shape (16, 6): it raised RuntimeError", "mat1 and mat2"),
    "no gradient": ('objective = "acme.losses:stuck"', "losses:stuck' returned a loss with no gradient", ""),
    "no mean": ('objective = "acme.losses:each"', "returned a tensor of shape (16,): it must return the mean loss", ""),
    "late": ('model = "acme.late:Late"', "the run's own code raised ArithmeticError: late.", "in forward"),
    "base exception": ('model = "acme.exits:build"', "model 'acme.exits:build' raised Quit: now.", "raise Quit"),
    "float": ('objective = "acme.wrong:number"', "'acme.wrong:number' returned float: it must return the mean", ""),
    "one loss": ('objective = "acme.wrong:row"', "'acme.wrong:row' returned a tensor of shape (1,)", ""),
    "loss signature": (
        'objective = "acme.wrong:one"',
        "objective 'acme.wrong:one' raised TypeError: one() takes 1",
        "",
    ),
    "other weights": (
        'objective = "acme.wrong:apart"',
        "with no gradient for any weight of model 'acme.nets:build'",
        "",
    ),
    "two outputs": ('model = "acme.wrong:Pair"', "model 'acme.wrong:Pair' returned tuple: its forward must return", ""),
    "no samples": ('data = "acme.wrong:empty"', "data 'acme.wrong:empty': a part has no samples.", ""),
    "no test samples": ('data = "acme.wrong:untested"', "data 'acme.wrong:untested': a part has no samples.", ""),
    "nothing": ('data = "acme.wrong:nothing"', "data 'acme.wrong:nothing' gave no batch.", ""),
    "evaluation": (
        'model = "acme.wrong:OnlyTraining"',
        "the run's own code raised ValueError: only training.",
        "in forward",
    ),
    "exit": ('model = "acme.wrong:Exits"', "the run's own code raised SystemExit: 3.", "in forward"),
    "state": ('optimizer = "acme.wrong:Keeps"', "cannot be restored from a checkpoint", ""),
    "loaded state": ('model = "acme.wrong:Extra"', "cannot be restored from a checkpoint (UnpicklingError", ""),
    "zero norm": (
        'model = "acme.wrong:Zero"\noptimizer = { name = "alig", l2_ball_relative = 1.5 }',
        "weights of model 'acme.wrong:Zero' have the norm 0, of which l2_ball_relative cannot be a multiple",
        "",
    ),
    "step": ('optimizer = "acme.wrong:Step"', "optimizer 'acme.wrong:Step' raised TypeError", ""),
    "unknown option": ('optimizer = { name = "acme.rivals:Rival", bta = 0.9 }', "did you mean 'beta'", ""),
    "optimizer": ('optimizer = { name = "acme.rivals:Rival", lr = "x" }', "'acme.rivals:Rival' raised TypeError", ""),
}


@pytest.mark.parametrize("case", CASES)
def test_the_row_is_named_and_the_others_are_trained(acme, capsys, case):
    line, message, traceback = CASES[case]
    package.write(acme, BROKEN)
    (acme / "bad.toml").write_text(HEAD + line + "\n", encoding="utf-8")
    assert call("run", "bad.toml", "--out", "runs") == 1
    errors = capsys.readouterr().err
    assert message in errors
    assert traceback in errors
    if case not in ("late", "evaluation", "exit", "state", "loaded state"):
        assert "bad.toml, row 'bad' (line 11): " in errors
        assert "polyak: 1 row cannot be trained: correct it" in errors
    else:
        assert "polyak: [2/2] bad, seed 0: " in errors
        assert "1 of 2 runs failed" in errors
    assert "polyak_lab" not in re.sub(r"^polyak: .*", "", errors)
    assert len(errors.splitlines()[0]) < 400
    finished = [run.label.row for run in stored.find_runs([acme / "runs"]) if run.finished]
    assert finished == ["good"]


def test_one_run_shows_the_traceback_too(acme, capsys):
    package.write(acme, BROKEN)
    own = ("--data", "acme.sets:load", "--model", "acme.raises:build", "--optimizer", "sgd")
    assert call("train", *own) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("polyak: model 'acme.raises:build' raised ValueError: no luck.\nTraceback")
    assert "raises.py" in errors
    assert "polyak_lab" not in errors
    assert "importlib" not in errors


def test_a_recipe_without_a_good_row_ends_with_its_error(acme, capsys):
    (acme / "bad.toml").write_text(HEAD + 'model = "acme.nets:none"\n', encoding="utf-8")
    assert call("run", "bad.toml", "--row", "bad") == 1
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "acme.nets has no 'none'" in errors


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('data = { name = "acme.sets:load", root = "x" }', "takes no root: write data.options"),
        ('data = { name = "digits", workers = 2 }', "data 'digits' takes no workers"),
        ('model = { name = "mlp", options = { width = 3 } }', "model 'mlp' takes no options"),
        ('objective = { name = "squared", options = { x = 3 } }', "objective 'squared' takes no options"),
        ('objective = "cross-entropy"', "did you mean 'cross_entropy'"),
        ('data = { name = "acme.sets:loaders", holdout = 3 }', "return a third one for validation"),
        ('data = { name = "acme.sets:datasets", kernel_width = 1.0 }', "a kernel (data.kernel_width) needs vectors"),
        ('data = { name = "acme.sets:datasets", augment = true }', "need images"),
        ('data = { name = "acme.sets:loaders", workers = 2 }', "have their own num_workers"),
    ],
)
def test_options_that_do_not_go_together_stop_before_anything_trains(acme, capsys, line, message):
    (acme / "bad.toml").write_text(HEAD + line + "\n", encoding="utf-8")
    assert call("run", "bad.toml", "--out", "runs") == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["builtins:dict", "builtins:int", "acme.unsigned:NoSignature"])
def test_an_optimizer_without_a_signature_is_tried_out(acme, name):
    package.write(
        acme, {"acme/unsigned.py": "import torch\n\nclass NoSignature(torch.optim.SGD):\n    __signature__ = 'none'\n"}
    )
    wanted = config.Optimizer(name, options={"lr": 0.5})
    if name.startswith("builtins"):
        with pytest.raises(RowError, match=rf"optimizer '{name}' raised \w+Error: [^\n]+\.$"):
            optimizers.resolve(wanted)
    else:
        assert optimizers.resolve(wanted).options == {"lr": 0.5}


def test_a_model_without_a_signature_takes_any_option(acme):
    unsigned = "import torch\n\ndef make(**options):\n    return torch.nn.Linear(1, options['width'])\n"
    package.write(acme, {"acme/unsigned.py": f"{unsigned}\nmake.__signature__ = 'none'\n"})
    assert imported.build("acme.unsigned:make", (1,), None, {"width": 3}).out_features == 3


@pytest.mark.parametrize(
    ("error", "line", "typed"),
    [
        (ValueError("One thing. \nand another"), "One thing", "ValueError: One thing"),
        (ValueError(), "ValueError", "ValueError"),
        (ValueError(" \n "), "ValueError", "ValueError"),
        (ValueError("\n\nlate"), "late", "ValueError: late"),
        (ValueError("x" * 500), "x" * 150, "ValueError: " + "x" * 150),
    ],
)
def test_an_error_of_another_package_is_told_in_a_line(error, line, typed):
    assert (first_line(error), typed_line(error)) == (line, typed)
