"""Recipes are read strictly, and every row of ours builds and steps."""

from dataclasses import replace
from pathlib import Path

import pytest

from lab import archives
from lab.runs import execute
from observe import SMALL_BALLS
from polyak_lab.errors import LabError
from polyak_lab.processes import group
from polyak_lab.recipes import recipe as recipes
from polyak_lab.recipes.resolve import resolve, where_possible
from polyak_lab.training import batches, build
from polyak_lab.training.cuda_graph import is_replayed

pytestmark = pytest.mark.filterwarnings(SMALL_BALLS)

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.toml"))
ROWS = [(path.stem, row) for path in RECIPES for row in recipes.load(path).rows]

GOOD = """
title = "A table"
seeds = [0, 1]

[defaults]
data = "digits"
model = "mlp"
training = { epochs = 2, batch_size = 64 }

[[row]]
name = "SGD, cosine"
optimizer = { name = "sgd", lr = 0.1 }
schedule = "cosine"
training = { epochs = 3 }
paper = 93.5

[[row]]
name = "ALI-G"
data = { name = "digits", augment = true }
optimizer = { name = "alig", lr = 1, l2_ball = 100 }
"""


def load(tmp_path, text):
    path = tmp_path / "table.toml"
    path.write_text(text)
    return recipes.load(path)


def test_rows_lie_over_the_defaults(tmp_path):
    recipe = load(tmp_path, GOOD)
    first, second = recipe.rows
    assert (recipe.title, recipe.seeds) == ("A table", (0, 1))
    assert (first.slug, first.paper, second.paper) == ("sgd-cosine", 93.5, None)
    assert (first.run.training.epochs, first.run.training.batch_size, second.run.training.epochs) == (3, 64, 2)
    assert (first.run.schedule.name, second.run.schedule.name) == ("cosine", "constant")
    assert (first.run.data.augment, second.run.data.augment) == (False, True)
    assert (second.run.optimizer.l2_ball, dict(second.run.optimizer.options)) == (100.0, {"lr": 1})


WRONG = {
    "top level": (("seeds =", "sedes ="), "table.toml: 'sedes' is not known; did you mean 'seeds'"),
    "section": (("model =", "modle ="), "'modle' is not known; did you mean 'model'"),
    "key": (("batch_size", "batchsize"), "'batchsize' is not known; did you mean 'batch_size'"),
    "data key": (("augment", "augmentt"), "'augmentt' is not known; did you mean 'augment'"),
    "type": (("epochs = 3", 'epochs = "3"'), "training.epochs is '3', but must be a whole number"),
    "type of a list": (("seeds = [0, 1]", "seeds = 3"), "seeds is 3, but must be a list of whole numbers, such as [0"),
    "type of a switch": (("augment = true", "augment = 1"), "data.augment is 1, but must be true or false"),
    "boolean number": (("epochs = 3", "epochs = true"), "training.epochs is True"),
    "range": (("epochs = 3", "epochs = 0"), "training.epochs is 0, but must be 1 or more"),
    "missing section": (('model = "mlp"', ""), "the key 'model' is missing"),
    "missing optimizer": (('optimizer = { name = "sgd", lr = 0.1 }', ""), "the key 'optimizer' is missing"),
    "nameless": (('name = "ALI-G"', ""), "row 2 needs a name"),
    "same folder": (('name = "ALI-G"', 'name = "SGD - cosine"'), "would share one folder"),
    "paper": (("93.5", '"93.5"'), "paper is '93.5', but must be a number"),
    "no seeds": (("[0, 1]", "[]"), "seeds is empty"),
    "syntax": (("title =", "title"), "table.toml is not valid TOML"),
    "section type": (('data = "digits"', "data = 3"), "data is 3, but must be a name or a table"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_refused(case, tmp_path):
    (old, new), message = WRONG[case]
    assert old in GOOD
    with pytest.raises(LabError, match=r"^[^\n]*$") as caught:
        load(tmp_path, GOOD.replace(old, new))
    assert message in str(caught.value)


def test_a_single_table_where_several_are_meant(tmp_path):
    text = GOOD[: GOOD.index('[[row]]\nname = "ALI-G"')].replace("[[row]]", "[row]")
    with pytest.raises(LabError, match=r"table.toml.row is a single table: write \[\[row\]\] instead of \[row\]\.$"):
        load(tmp_path, text)


SMOKE = """
[smoke]
data = { train_size = 100 }
model = "logistic"
training = { epochs = 1 }
"""


def test_a_declared_smoke_run_lies_over_every_row(tmp_path):
    steps = GOOD.replace('schedule = "cosine"', 'schedule = { name = "step", milestones = [1, 2] }')
    first, second = map(recipes.smoke, load(tmp_path, steps.replace("epochs = 3", "epochs = 4") + SMOKE).rows)
    assert (first.model.name, first.training.epochs, first.data.train_size) == ("logistic", 1, 100)
    assert first.schedule.milestones == (0, 0)
    assert (second.data.name, second.data.augment, second.data.train_size) == ("digits", True, 100)
    assert second.training.batch_size == 64


def test_milestones_keep_their_places_in_a_smoke_run(tmp_path):
    text = GOOD.replace('schedule = "cosine"', 'schedule = { name = "step", milestones = [60, 120, 160] }')
    row = load(tmp_path, text.replace("epochs = 3", "epochs = 200") + "[smoke]\ntraining = { epochs = 10 }").rows[0]
    assert recipes.smoke(row).schedule.milestones == (3, 6, 8)


def test_without_a_declared_one_a_smoke_run_is_two_steps(tmp_path):
    small = recipes.smoke(load(tmp_path, GOOD).rows[0])
    assert (small.training.epochs, small.training.max_batches) == (1, 2)


def test_a_smoke_table_is_read_strictly(tmp_path):
    with pytest.raises(LabError, match=r"row 1 \(SGD, cosine\), smoke: 'modle' is not known"):
        load(tmp_path, GOOD + SMOKE.replace("model", "modle"))


def test_a_recipe_that_is_not_there(tmp_path):
    with pytest.raises(LabError, match="cannot be read: No such file"):
        recipes.load(tmp_path / "none.toml")


def test_rows_are_chosen_by_name_or_folder(tmp_path):
    rows = load(tmp_path, GOOD).rows
    assert recipes.select(rows, []) == rows
    assert recipes.select(rows, ["ALI-G"]) == recipes.select(rows, ["ali-g"]) == rows[1:]
    assert recipes.select(rows, ["ALIG"]) == recipes.select(rows, ["ali"]) == rows[1:]
    with pytest.raises(LabError, match="--row: 'ALIH' is not known; did you mean 'ALI-G'"):
        recipes.select(rows, ["ALIH"])


NAMED = """
[defaults]
data = "digits"
model = "mlp"
training = { epochs = 1 }
[[row]]
name = "ALI-G"
optimizer = "alig"
[[row]]
name = "ALI-G, momentum 0.9, ball"
optimizer = "alig"
[[row]]
name = "SGD, constant"
optimizer = "alig"
[[row]]
name = "SGD, cosine"
optimizer = "alig"
[[row]]
name = "模型 A"
optimizer = "alig"
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ALI-G", [0]),
        ("alig", [0]),
        ("ali-g", [0]),
        ("ALI-G, mom", [1]),
        ("aligmomentum0.9", [1]),
        ("sgd-cos", [3]),
        ("sgd, constant", [2]),
        ("SGD, cosine", [3]),
        ("模", [4]),
    ],
)
def test_a_row_is_named_by_the_beginning_of_its_name(name, expected, tmp_path):
    rows = load(tmp_path, NAMED).rows
    assert [rows.index(row) for row in recipes.select(rows, [name])] == expected


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "sgd",
            r"--row: 'sgd' begins the names of 2 rows \('SGD, constant', 'SGD, cosine'\): write more of it\.",
        ),
        ("al", "begins the names of 2 rows"),
        ("", "--row: '' is none of the 5 rows: write one of ali-g, "),
        ("--", "is none of the 5 rows"),
        ("adam", "is none of the 5 rows"),
    ],
)
def test_a_beginning_of_several_rows_or_none(name, said, tmp_path):
    with pytest.raises(LabError, match=said):
        recipes.select(load(tmp_path, NAMED).rows, [name])


@pytest.mark.parametrize("grid", ["", "[grid]\nlr = [0.1, 1.0]\n"])
def test_a_name_of_two_rows_that_differ_in_punctuation_alone(grid, tmp_path):
    rows = load(tmp_path, f'{NAMED}[[row]]\nname = "ALIG"\noptimizer = "alig"\n{grid}').rows
    with pytest.raises(LabError, match=r"--row: 'ali g' names \d rows \('ALI-G.*: write it as one of them is\.$"):
        recipes.select(rows, ["ali g"])
    if not grid:
        assert [[row.name for row in recipes.select(rows, [name])] for name in ("ali-g", "alig")] == [
            ["ALI-G"],
            ["ALIG"],
        ]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("ALI-G", 3),
        ("alig", 3),
        ("ali", None),
        ("ALI-G, lr 1", 1),
        ("ALI-G, lr", 3),
        ("sgd, cos", 3),
        ("SGD, cosine, lr 0.1", 1),
    ],
)
def test_a_family_of_a_grid_is_chosen_like_a_row(name, count, tmp_path):
    rows = load(tmp_path, NAMED + "[grid]\nlr = [0.1, 1.0, 10.0]\n").rows
    if count is None:
        with pytest.raises(LabError, match="begins the names of 6 rows"):
            recipes.select(rows, [name])
        return
    chosen = recipes.select(rows, [name])
    assert len(chosen) == count
    assert len({row.family for row in chosen}) == 1


@pytest.mark.parametrize("old", ["training = { epochs = 1 }", 'name = "ALI-G"\n', "[defaults]"])
def test_a_seed_in_a_recipe_is_refused(old, tmp_path):
    new = {
        "training = { epochs = 1 }": "training = { epochs = 1, seed = 3 }",
        'name = "ALI-G"\n': 'name = "ALI-G"\ntraining = { seed = 3 }\n',
        "[defaults]": "[smoke]\ntraining = { seed = 3 }\n[defaults]",
    }
    with pytest.raises(LabError, match=r"training\.seed has no effect here: write seeds = \[\.\.\.\] at the top"):
        load(tmp_path, NAMED.replace(old, new[old], 1))


def test_a_row_of_a_grid_needs_a_name_too(tmp_path):
    with pytest.raises(LabError, match="needs a name"):
        load(tmp_path, NAMED.replace('name = "ALI-G"\n', "", 1) + "[grid]\nlr = [0.1]\n")


@pytest.fixture(scope="module")
def small_data(tmp_path_factory):
    """A few samples of every data set that has to be downloaded, in its official format."""
    root = tmp_path_factory.mktemp("data")
    archives.unpacked(root, archives.CIFAR10_FOLDER, archives.cifar10_files())
    archives.unpacked(root, archives.CIFAR100_FOLDER, archives.cifar100_files())
    for name in ("mnist", "fashion-mnist"):
        archives.mnist(root / name)
    (root / "mushrooms").mkdir()
    (root / "mushrooms" / "mushrooms").write_text(archives.MUSHROOM_ROWS)
    return root


def tiny(run):
    """The same run on the CPU with two batches of two samples, of which as many are held out."""
    held_out = 2 if run.data.holdout else None
    data = replace(run.data, holdout=held_out, train_size=None)
    training = replace(run.training, batch_size=2, threads=1, compile=False)
    return recipes.two_steps(recipes.on_device(replace(run, data=data, training=training), "cpu"))


def first_of_its_kind_is_quick():
    """Mark as slow the rows whose network and data an earlier row has."""
    seen = set()
    for recipe, row in ROWS:
        kind = (row.run.model.name, row.run.data.name)
        marks = pytest.mark.slow if kind in seen else ()
        seen.add(kind)
        yield pytest.param(recipe, row, id=f"{recipe}-{row.slug}", marks=marks)


@pytest.mark.parametrize(("recipe", "row"), list(first_of_its_kind_is_quick()))
def test_every_row_takes_two_steps(recipe, row, small_data, tmp_path, monkeypatch):
    monkeypatch.setenv("POLYAK_DATA", str(small_data))
    monkeypatch.setitem(batches.EVALUATION_BATCH_SIZE, "cpu", 2)
    for number, run in enumerate(where_possible(tiny(run)) for run in (row.run, row.small) if run is not None):
        build.load_dataset.cache_clear()
        (record,) = execute(tmp_path / str(number), run).records
        assert record["step_size"] > 0
        assert record["train_loss"] > 0
        assert ("validation_loss" in record) == (run.data.holdout is not None)


PAPERS = {
    # Berrada, Zisserman, Kumar (2021), table 1
    ("note-table1", "cifar10", "alig", 0.0): 87.5,
    ("note-table1", "cifar10", "alig", 0.9): 93.5,
    ("note-table1", "cifar100", "alig", 0.0): 68,
    ("note-table1", "cifar100", "alig", 0.9): 76,
    # Berrada, Zisserman, Kumar (2020), arXiv:1906.05661, table of the CIFAR experiments
    ("alig-cifar", "cifar10", "wrn-40-4", "alig"): 95.2,
    ("alig-cifar", "cifar10", "densenet-40-40", "alig"): 95.0,
    ("alig-cifar", "cifar100", "wrn-40-4", "alig"): 75.8,
    ("alig-cifar", "cifar100", "densenet-40-40", "alig"): 76.3,
    ("alig-cifar", "cifar10", "wrn-40-4", "sgd"): 95.3,
    ("alig-cifar", "cifar10", "densenet-40-40", "sgd"): 95.1,
    ("alig-cifar", "cifar100", "wrn-40-4", "sgd"): 77.8,
    ("alig-cifar", "cifar100", "densenet-40-40", "sgd"): 76.3,
}
KEYS = {
    "note-table1": lambda run: (run.optimizer.name, run.optimizer.options["momentum"]),
    "alig-cifar": lambda run: (run.model.name, run.optimizer.name),
}


def test_the_papers_numbers():
    rows = [(recipe, row) for recipe, row in ROWS if row.paper is not None]
    found = {(recipe, row.run.data.name, *KEYS[recipe](row.run)): row.paper for recipe, row in rows}
    assert found == PAPERS
    assert len(rows) == len(PAPERS)


def test_table_1_is_run_as_the_note_says():
    rows = {row.paper: row.run for recipe, row in ROWS if recipe == "note-table1"}
    assert {paper: (dict(run.optimizer.options), run.optimizer.l2_ball) for paper, run in rows.items() if paper} == {
        87.5: ({"lr": 0.1, "momentum": 0.0}, None),
        93.5: ({"lr": 0.1, "momentum": 0.9}, 100.0),
        68: ({"lr": 0.1, "momentum": 0.0}, None),
        76: ({"lr": 0.1, "momentum": 0.9}, 100.0),
    }
    for run in rows.values():
        assert (run.model.name, run.data.augment, run.data.holdout) == ("resnet34", True, None)
        training = run.training
        assert (training.epochs, training.batch_size, training.eval_protocol) == (200, 128, "sps-augmented-validation")


OPTIONS = {  # what a recipe gives, and what the parameter group then holds
    "momo": ("momentum = 0.5, weight_decay = 0.01, bias_correction = true, learn_lower_bound = true", {}),
    "momo-adam": ("betas = [0.5, 0.9], eps = 1e-6, decoupled_weight_decay = true, weight_decay = 0.01", {}),
    "ngn": ("lr = 0.5, momentum = 0.9", {}),
    "ngn-md": ("betas = [0.5, 0.9], weight_decay = 0.01", {}),
    "mom-sps": ("c = 0.5, momentum = 0.8, lower_bound = 0.1", {}),
    "smooth-mom-sps": ("steps_per_epoch = 9, gamma = 3, init_step_size = 0.1", {}),
    "safe-sps": ("floor = 0.5, lr = 2.0, momentum = 0.5", {}),
    "dec-sps": ("lr = 2.0, c0 = 1.5", {}),
    "ada-sps": ("lr = inf, c = 0.5", {}),
    "iam": ('momentum = "none"', {"momentum": None}),
    "schedule-free-sps": ("lr = 0.5, momentum = 0.8, floor = 0.1", {}),
    "schedule-free-adam-sps": ("lr = 0.5, beta2 = 0.9, eps = 1e-6", {}),
    "schedule-free-plus": ("betas = [0.5, 0.9], weight_decay = 20.0, anneal_steps = 100, r = 1.0, norm_beta = 0.5", {}),
    "sign-sps": ("lr = 0.1, momentum = 0.5, weight_decay = 0.01", {}),
    "muon-momo": ('norm = "adam", polar = "newton-schulz", polar_steps = 3, stale = true', {}),
    "sam-sps": ("rho = 0.05, normalized = false, weight_decay = 0.01", {}),
    "slack-sps": ("slack = 0.5, delta = 0.1, lr = 1.0", {}),
    "iam-adam": ("beta2 = 0.9, momentum = 0.5, float32_momentum = true", {}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_options_of_a_method_reach_its_group(name, tmp_path):
    given, other = OPTIONS[name]
    row = f'optimizer = {{ name = "{name}", {given} }}'
    wanted = load(tmp_path, GOOD.replace('optimizer = { name = "alig", lr = 1, l2_ball = 100 }', row)).rows[1].run
    (group,) = build.build_session(resolve(wanted)).optimizer.param_groups
    for option, value in (dict(wanted.optimizer.options) | other).items():
        assert group[option] == (tuple(value) if isinstance(value, list) else value)


def test_a_cuda_graph_of_a_recipe_is_left_out_where_there_is_none(monkeypatch):
    wanted = next(row.run for stem, row in ROWS if stem == "note-table1")
    on = {device: replace(wanted, training=replace(wanted.training, device=device)) for device in ("cpu", "cuda")}
    assert where_possible(on["cuda"]) == on["cuda"]
    assert is_replayed(on["cuda"].training)
    monkeypatch.setattr(group, "world_size", lambda: 2)
    assert where_possible(on["cuda"]) == on["cuda"]  # a run may go on with any number of processes
    assert not is_replayed(on["cuda"].training)
    left = where_possible(on["cpu"]).training
    assert (left.compile, left.cuda_graph, left.precision) == (False, False, "bfloat16")
