"""What a user's data, model, loss and optimizer may be."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lab.own import package
from lab.runs import call
from polyak_lab import models, objectives, optimizers
from polyak_lab.config import run as config
from polyak_lab.data import imported
from polyak_lab.errors import LabError, RowError
from polyak_lab.runs import stored

CLASSES = "cross_entropy"
OWN = ("--data", "acme.sets:load", "--model", "acme.nets:build")
SETTINGS = ("--optimizer", "sgd", "--lr", "0.1", "--epochs", "2", "--batch-size", "16", "--device", "cpu")


def final(folder):
    return stored.load_run(folder).records[-1]


def train(*arguments, out):
    assert call("train", *SETTINGS, "--threads", 1, "--out", out, *arguments) == 0
    return final(Path(out))


@pytest.fixture
def made(acme):
    """A function that writes a module with a function `make`, and returns its import path."""
    numbers = iter(range(100))

    def write(text):
        name = f"acme/made_{next(numbers)}.py"
        package.write(acme, {name: f"import torch\n{text}"})
        return f"acme.{name[5:-3]}:make"

    return write


def test_datasets_are_read_in_the_order_of_tensors(acme):
    one = train(*OWN, out=acme / "one")
    other = train("--data", "acme.sets:datasets", "--model", "acme.nets:build", out=acme / "other")
    assert one == other
    held = train("--data", "acme.sets:datasets", "--holdout", 8, "--model", "acme.nets:build", out=acme / "held")
    assert held["validation_accuracy"] is not None


def test_loaders_have_an_order_and_held_out_samples_of_their_own(acme):
    arguments = ("--data", "acme.sets:loaders", "--model", "acme.nets:build")
    one = train(*arguments, out=acme / "one")
    assert one["validation_accuracy"] is not None
    assert one != train(*arguments, "--seed", 1, out=acme / "other")
    assert one == train(*arguments, "--model-set", "width=16", out=acme / "same")
    tensors = train(*OWN, out=acme / "tensors")
    in_order = train(*arguments, "--data-set", "shuffle=false", out=acme / "in_order")
    assert in_order["test_accuracy"] == pytest.approx(tensors["test_accuracy"], abs=0.2)


@pytest.mark.parametrize("data", ["acme.sets:noisy", "acme.sets:loaders"])
def test_workers_read_the_same_batches_when_a_run_is_repeated(acme, data):
    arguments = ("--data", data, "--data-set", "workers=2", "--model", "acme.nets:build", "--epochs", 1)
    assert train(*arguments, out=acme / "one") == train(*arguments, out=acme / "other")


def test_an_endless_loader_needs_the_number_of_its_batches(acme, capsys):
    arguments = ("--data", "acme.sets:endless", "--outputs", 3, "--model", "acme.nets:build")
    assert train(*arguments, "--max-batches", 3, out=acme / "run")["epoch"] == 2
    assert call("train", *SETTINGS, *arguments) == 1
    assert "has no len()" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("returned", "loss", "shape", "outputs"),
    [
        (
            "torch.zeros(4, 3), torch.tensor([0, 1, 2, 1]), torch.zeros(2, 3), torch.tensor([0, 4])",
            *("cross_entropy",),
            (3,),
            5,
        ),
        ("(torch.zeros(4, 3), torch.zeros(4)), (torch.zeros(2, 3), torch.zeros(2))", "squared", (3,), 1),
        ("(torch.zeros(4, 3), torch.zeros(4, 2)), (torch.zeros(2, 3), torch.zeros(2, 2))", "squared", (3,), 2),
        ("[(torch.zeros(4, 3).double().numpy(), torch.zeros(4, dtype=int).numpy())] * 3", "cross_entropy", (3,), 1),
        ("[(torch.ones(4, 5, dtype=int), torch.ones(4, 5, dtype=int))] * 2", "next_token", (5,), 2),
        ("[(torch.zeros(4, 1, 5, 5, dtype=torch.uint8), torch.ones(4, dtype=int))] * 2", "cross_entropy", (1, 5, 5), 2),
        ("[(torch.zeros(4, 3, 5), torch.ones(4, 5, dtype=int))] * 2", None, (3, 5), None),
    ],
)
def test_tensors_say_their_own_loss_and_shape(made, returned, loss, shape, outputs):
    path = made(f"def make():\n    return {returned}\n")
    loaded = imported.load(config.Data(path))
    assert (loaded.loss, loaded.shape, loaded.outputs) == (loss, shape, outputs)
    assert loaded.train.inputs.dtype in (torch.float32, torch.int64, torch.uint8)
    assert (loaded.mean is None) == (loaded.train.inputs.dtype != torch.uint8)


def test_data_without_seed_of_its_own_is_the_same_every_time(made):
    path = made(
        "import numpy, random\ndef make():\n    return [(torch.rand(4, 2) + numpy.random.rand(), torch.zeros(4))] * 2\n"
    )
    one, other = (imported.load(config.Data(path)).train.inputs for _ in range(2))
    assert torch.equal(one, other)


WRONG_DATA = {
    "a dictionary": ("{}", "returned dict, but must return pairs"),
    "one part": ("[(torch.zeros(2, 2), torch.zeros(2))]", "returned 1 parts, but must return pairs"),
    "strings": ("[('x', 'y')] * 2", "returned str where a tensor is expected"),
    "lengths": ("[(torch.zeros(2, 2), torch.zeros(3))] * 2", "returned (2, 2) inputs and (3,) targets"),
    "no samples": ("[(torch.zeros(0, 2), torch.zeros(0))] * 2", "it needs as many targets as inputs"),
    "bytes": ("[(torch.zeros(2, 2, dtype=torch.uint8), torch.zeros(2))] * 2", "returned uint8 inputs"),
    "truth": ("[(torch.zeros(2, 2) > 0, torch.zeros(2))] * 2", "returned torch.bool"),
    "shapes": (
        "[(torch.zeros(2, 2), torch.zeros(2)), (torch.zeros(2, 3), torch.zeros(2))]",
        "parts of different shapes",
    ),
    "classes": ("[(torch.zeros(2, 2), torch.tensor([0, -1]))] * 2", "returned classes beyond 0 to 0"),
}


@pytest.mark.parametrize("case", WRONG_DATA)
def test_wrong_data_is_named(made, case):
    returned, message = WRONG_DATA[case]
    with pytest.raises(RowError) as caught:
        imported.load(config.Data(made(f"def make():\n    return {returned}\n")))
    assert message in str(caught.value)
    assert "acme.made_0:make" in str(caught.value)


WRONG_STREAMS = {
    "persistent": (
        "[D(S(torch.zeros(4, 2), torch.zeros(4)), num_workers=1, persistent_workers=True)] * 2",
        "persistent",
    ),
    "pairs": ("[S(torch.zeros(4, 2))] * 2", "gave a batch of list: it must be a pair"),
    "mixed": ("[S(torch.zeros(4, 2)), D(S(torch.zeros(4, 2)))]", "returned TensorDataset as a part"),
}


@pytest.mark.parametrize("case", WRONG_STREAMS)
def test_wrong_datasets_are_named(made, case):
    returned, message = WRONG_STREAMS[case]
    text = f"from torch.utils.data import DataLoader as D, TensorDataset as S\ndef make():\n    return {returned}\n"
    with pytest.raises(RowError, match=message):
        imported.load(config.Data(made(text)))


@pytest.mark.parametrize(
    ("path", "options", "hidden"),
    [
        ("acme.nets:build", {}, 16),
        ("acme.nets:build", {"width": 5}, 5),
        ("acme.nets:Net", {}, 8),
        ("acme.nets:Net", {"hidden": 4}, 4),
        ("acme.nets:fixed", {}, 3),
        ("torch.nn:Linear", {"in_features": 6, "out_features": 3}, 3),
    ],
)
def test_a_model_is_built_with_shape_and_outputs_or_without(acme, path, options, hidden):
    model = models.build(path, (6,), 3, options=options)
    assert model(torch.zeros(2, 6)).shape == (2, 3)
    assert next(m for m in model.modules() if isinstance(m, nn.Linear)).out_features == hidden


@pytest.mark.parametrize(
    "signature",
    [
        "shape, outputs",
        "outputs, shape",
        "*, outputs, shape",
        "shape=None, outputs=1",
        "a, b",
        "outputs",
        "*args, **kw",
    ],
)
def test_the_arguments_follow_the_signature(made, signature):
    names = [name.strip().partition("=")[0] for name in signature.split(",") if "*" not in name]
    path = made(f"def make({signature}):\n    return torch.nn.Linear(1, len({{{', '.join(names) or '1'}}}))\n")
    assert models.build(path, (6,), 3).out_features == max(1, len(names))


WRONG_MODELS = {
    "too many": ("def make(shape, outputs, depth): ...", "needs depth: it must take (shape, outputs)"),
    "one": ("def make(width): ...", "needs width"),
    "no module": ("def make():\n    return 3", "returned int, not a torch.nn.Module"),
    "no function": ("make = 3", "is no function or class"),
    "raises": ("def make():\n    return {}['key']", "raised KeyError: 'key'"),
    "exits": ("def make():\n    raise SystemExit(3)", "raised SystemExit: 3"),
}


@pytest.mark.parametrize("case", WRONG_MODELS)
def test_a_wrong_builder_is_named(made, case):
    text, message = WRONG_MODELS[case]
    with pytest.raises(RowError) as caught:
        models.build(made(text), (6,), 3)
    assert message in str(caught.value)
    assert str(caught.value).startswith("model 'acme.made_0:make'")
    assert "polyak_lab" not in caught.value.details
    assert ("made_0.py" in caught.value.details) == ("raised" in message)


def test_options_that_a_builder_does_not_take_are_named(acme):
    with pytest.raises(RowError, match="takes no option 'widht'; it takes shape, outputs, width"):
        models.build("acme.nets:build", (6,), 3, options={"widht": 3})
    with pytest.raises(LabError, match="model 'mlp' takes no options"):
        models.resolve(config.Model("mlp", {"width": 3}))


def test_a_loss_is_a_function_a_class_or_an_objective(made):
    outputs, targets = torch.zeros(2, 3), torch.tensor([0, 1])
    for path, options, value in [
        ("torch.nn.functional:cross_entropy", {}, 1.0986),
        ("torch.nn:CrossEntropyLoss", {"reduction": "sum"}, 2.1972),
        (made("from polyak_lab.objectives import Objective\nmake = Objective(lambda x, y: x.sum(), None)"), {}, 0.0),
    ]:
        objective = objectives.build(config.Objective(path, options), "cross_entropy", "data")
        assert float(objective.loss(outputs, targets)) == pytest.approx(value, abs=1e-4)
        assert (objective.correct is None) == (value == 0.0)


def test_a_built_in_loss_is_chosen_by_name(acme, tmp_path):
    record = train(*OWN, "--objective", "cross_entropy", out="run")
    assert record["test_accuracy"] is not None
    with pytest.raises(RowError, match="implies no loss: write an objective"):
        objectives.build(config.Objective(), None, "data")


@pytest.mark.parametrize(
    ("name", "form"),
    [("Rival", "plain"), ("WithLoss", "loss"), ("Demanding", "closure"), ("Averaging", "plain")],
)
def test_an_optimizer_gets_what_its_step_needs(acme, name, form):
    resolved = optimizers.resolve(config.Optimizer(f"acme.rivals:{name}"))
    assert optimizers.step_form(resolved) == form
    record = train(*OWN, "--optimizer", f"acme.rivals:{name}", out="r")
    assert record["test_accuracy"] > 0.3


def test_a_method_of_one_s_own_gets_the_loss_and_a_ball(acme, made):
    path = made("from polyak import ALIG as make")
    own = train(*OWN, "--optimizer", path, "--l2-ball", 3, out="own")
    ours = train(*OWN, "--optimizer", "alig", "--l2-ball", 3, out="our")
    assert own == ours
    assert own["capped"] is not None


def test_lbfgs_evaluates_its_closure_as_often_as_it_needs(acme):
    settings = ("--optimizer", "torch.optim:LBFGS", "--lr", 0.5, "--batch-size", 48, "--epochs", 1)
    record = train(*OWN, *settings, out="run")
    assert record["test_accuracy"] > 0.7  # after one step of 20 iterations


WRONG_OPTIMIZERS = {
    "options": ({"name": "acme.rivals:Rival", "bta": 0.9}, "'bta' is not known; did you mean 'beta'"),
    "values": ({"name": "acme.rivals:Rival", "lr": 1e39}, "float32 ends at"),
    "no optimizer": ({"name": "acme.nets:fixed"}, "raised TypeError"),
    "no class": ({"name": "acme.rivals:torch"}, "is no class of an optimizer"),
    "versions": ({"name": "acme.rivals:Rival", "l2_ball": 1.0}, "takes no constraint"),
}


@pytest.mark.parametrize("case", WRONG_OPTIMIZERS)
def test_a_wrong_optimizer_is_named(acme, case):
    table, message = WRONG_OPTIMIZERS[case]
    with pytest.raises(LabError) as caught:
        optimizers.resolve(config.Optimizer.from_table(table, "optimizer"))
    assert message in str(caught.value)


def test_a_near_miss_is_refused_where_a_class_takes_anything(made):
    path = made(
        "class make(torch.optim.SGD):\n"
        "    def __init__(self, params, lr=0.1, **others):\n"
        "        super().__init__(params, lr)\n"
    )
    with pytest.raises(LabError, match="'lrr' is not known; did you mean 'lr'"):
        optimizers.resolve(config.Optimizer(path, options={"lrr": 0.5}))
    assert optimizers.resolve(config.Optimizer(path, options={"other": 0.5})).options == {"lr": 0.1, "other": 0.5}


def test_the_batches_of_a_dataset_are_pairs_of_tensors():
    from polyak_lab.data.streamed import batch_of

    with pytest.raises(RowError, match="gave a batch of dict"):
        batch_of({}, "data")
    with pytest.raises(RowError, match="gave a batch of"):
        batch_of([torch.zeros(2, 2), torch.zeros(3)], "data")
    assert len(batch_of(TensorDataset(torch.zeros(2, 2), torch.zeros(2))[:], "data")) == 2
