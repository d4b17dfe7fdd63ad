"""`[grid]` repeats rows over options and sections; what cannot be read is refused in a sentence."""

import pytest

from lab.recipes.test_recipes import GOOD, NAMED, load
from polyak_lab.errors import LabError
from polyak_lab.recipes import recipe as recipes
from polyak_lab.sweep.axes import with_values


def test_a_grid_repeats_every_row(tmp_path):
    rows = load(tmp_path, "grid = { lr = [0.1, 10] }\n" + GOOD).rows
    assert [row.name for row in rows] == ["SGD, cosine, lr 0.1", "SGD, cosine, lr 10", "ALI-G, lr 0.1", "ALI-G, lr 10"]
    assert [row.run.optimizer.options["lr"] for row in rows] == [0.1, 10, 0.1, 10]


GRIDS = {
    'lr = [0.1, 1], data = ["digits", { name = "mnist", train_size = 9 }]': [
        "lr 0.1, digits",
        "lr 0.1, mnist, train_size 9",
        "lr 1, digits",
        "lr 1, mnist, train_size 9",
    ],
    "nesterov = [true, false], momentum = [0.5]": ["nesterov true, momentum 0.5", "nesterov false, momentum 0.5"],
    'betas = [[0.9, 0.99]], schedule = ["cosine"]': ["betas 0.9 0.99, cosine"],
    "training = [{ epochs = 5, batch_size = 8 }]": ["epochs 5, batch_size 8"],
}


@pytest.mark.parametrize("grid", GRIDS)
def test_a_grid_takes_every_combination_of_options_and_sections(grid, tmp_path):
    rows = load(tmp_path, f"grid = {{ {grid} }}\n" + GOOD).rows
    assert [row.name for row in rows] == [
        f"{row}, {point}" for row in ("SGD, cosine", "ALI-G") for point in GRIDS[grid]
    ]


def test_the_values_of_a_grid_are_laid_over_the_row(tmp_path):
    grid = 'grid = { momentum = [0.9], data = ["mnist", { train_size = 9 }], training = [{ batch_size = 8 }] }\n'
    *_, string, table = (row.run for row in load(tmp_path, grid + GOOD).rows)
    assert (string.data.name, string.data.augment, table.data.name, table.data.augment) == (
        "mnist",
        False,
        "digits",
        True,
    )
    assert (table.data.train_size, table.training.epochs, table.training.batch_size) == (9, 2, 8)
    assert dict(table.optimizer.options) == {"lr": 1, "momentum": 0.9}


TASKS = """
[[grid.task]]
name = "small"
data = { train_size = 9 }
training = { epochs = 1 }
[[grid.task]]
name = "text"
data = "python-docs"
model = "gpt-small"
schedule = "constant"
"""


def test_a_task_lays_several_sections_over_every_row(tmp_path):
    rows = load(tmp_path, GOOD.replace("paper = 93.5", "") + TASKS).rows
    assert [row.name for row in rows] == ["SGD, cosine, small", "SGD, cosine, text", "ALI-G, small", "ALI-G, text"]
    sgd_small, sgd_text, small, text = (row.run for row in rows)
    assert (sgd_small.data.name, sgd_small.data.train_size, sgd_small.training.epochs) == ("digits", 9, 1)
    assert (sgd_small.schedule.name, sgd_text.schedule.name, sgd_text.training.epochs) == ("cosine", "constant", 3)
    assert (small.data.augment, small.model.name, small.training.batch_size) == (True, "mlp", 64)
    assert (text.data.name, text.data.augment, text.model.name) == ("python-docs", False, "gpt-small")


def test_a_task_is_crossed_with_the_other_keys_of_a_grid(tmp_path):
    rows = load(tmp_path, NAMED + "[grid]\nlr = [0.1, 1.0]\n" + TASKS).rows
    assert [row.name for row in rows][:4] == [
        f"ALI-G, lr {lr}, {task}" for lr in (0.1, 1) for task in ("small", "text")
    ]


def test_a_row_has_a_grid_of_its_own_or_none(tmp_path):
    own = GOOD.replace("paper = 93.5", "grid = { momentum = [0.5, 0.9] }").replace("lr = 1,", "")
    rows = load(tmp_path, "grid = { lr = [0.1, 10] }\n" + own).rows
    assert [row.name for row in rows] == [f"SGD, cosine, momentum {m}" for m in (0.5, 0.9)] + [
        "ALI-G, lr 0.1",
        "ALI-G, lr 10",
    ]
    assert len(load(tmp_path, "grid = { lr = [1] }\n" + GOOD.replace("paper = 93.5", "grid = {}")).rows) == 2


@pytest.mark.parametrize("key", ["l2_ball", "l2_ball_relative"])
def test_none_is_no_ball_in_a_row_a_grid_and_a_search(key, tmp_path):
    rows = load(tmp_path, NAMED + f'[grid]\n{key} = [30.0, "none"]\n').rows
    assert [getattr(row.run.optimizer, key) for row in rows[:2]] == [30.0, None]
    (row,) = load(
        tmp_path, NAMED.split("[[row]]")[0] + f'[[row]]\nname = "A"\noptimizer = {{name="alig", {key} = "none"}}'
    ).rows
    assert getattr(row.run.optimizer, key) is None
    assert [getattr(with_values(row.run, {key: value}).optimizer, key) for value in (3.0, "none")] == [3.0, None]


def test_a_grid_keeps_the_optimizer_of_the_defaults(tmp_path):
    shared = GOOD.replace('data = "digits"\n', 'data = "digits"\noptimizer = "adam"\n').replace(
        'optimizer = { name = "sgd", lr = 0.1 }\n', ""
    )
    first = load(tmp_path, "grid = { lr = [0.5] }\n" + shared).rows[0].run.optimizer
    assert (first.name, dict(first.options)) == ("adam", {"lr": 0.5})


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ("lr = []", r"\[grid\] lr is \[\], but must be a list of numbers, such as \[0.1, 1.0\]"),
        ("lr = 0.1", r"\[grid\] lr is 0.1, but must be a list of numbers"),
        ('lr = ["a"]', r"\[grid\] lr is \['a'\], but must be a list of numbers"),
        ("lr = [1], momentum = 0", r"\[grid\] momentum is 0, but must be a list of values"),
        ('data = "digits"', r"\[grid\] data is 'digits', but must be a list of names or tables"),
        ("model = [1]", r"\[grid\] model is \[1\], but must be a list of names or tables"),
        ('task = ["digits"]', r"\[grid\] task is .*, but must be a list of tables with a name and sections, such as"),
        ('task = { name = "a", data = "mnist" }', r"\[grid\] task is .*, but must be a list of tables with a name"),
        ('task = [{ data = "mnist" }]', r"\[grid\] task: the name is missing, but must be a text, such as"),
        ('task = [{ name = " ", data = "mnist" }]', r"\[grid\] task: the name is ' ', but must be a text, such as"),
        ('task = [{ name = "a" }]', r"\[grid\] task 'a' has no section: write what it trains, such as data = "),
        ('task = [{ name = "a", lr = 0.1 }]', r"\[grid\] task 'a': 'lr' is no section of a task; known: data, model, "),
        ('task = [{ name = "a", optimizer = "sgd" }]', "task 'a': 'optimizer' is no section of a task; known: data, "),
        (
            'task = [{ name = "a", data = "mnist" }, { name = "b", modle = "mlp" }]',
            r"\[grid\] task 'b': 'modle' is no section of a task; did you mean 'model'\?",
        ),
        (
            'task = [{ name = "a", model = 1 }]',
            r"\[grid\] task 'a': model is 1, but must be a name, or a table with keys",
        ),
        (
            'task = [{ name = "a", data = {} }]',
            r"\[grid\] task 'a': data is {}, but must be a name, or a table",
        ),
        (
            'data = ["mnist", "digits"], task = [{ name = "a", data = "cifar10" }]',
            r"\[grid\] data and the data of the task 'a' replace each other: write one of them\.",
        ),
        (
            'task = [{ name = "a", training = { epochs = 2 } }], training = [{ epochs = 3 }]',
            r"\[grid\] training and the training of the task 'a' replace each other",
        ),
        ('task = [{ name = "a", training = { epoch = 1 } }]', "'epoch' is not known"),
        ('task = [{ name = "a", model = "mlp" }, { name = "A", model = "cnn" }]', "would share one folder"),
        ('data = ["mnist", "mnist"]', "would share one folder"),
        (", ".join(f"o{n} = [1, 2, 3, 4, 5, 6, 7]" for n in range(5)), "16807 combinations, but at most 10000 are run"),
    ],
)
def test_grids_that_are_refused(grid, said, tmp_path):
    with pytest.raises(LabError, match=said):
        load(tmp_path, f"grid = {{ {grid} }}\n" + GOOD)


def test_a_task_and_an_axis_may_share_a_section_without_sharing_a_key(tmp_path):
    task = '{ name = "a", training = { epochs = 7 } }'
    axis = "[{ batch_size = 3 }, { batch_size = 4 }]"
    recipe = load(tmp_path, f"grid = {{ task = [{task}], training = {axis} }}\n" + GOOD)
    found = [
        (row.name.partition(", a, ")[2], row.run.training.epochs, row.run.training.batch_size) for row in recipe.rows
    ]
    assert found[:2] == [("batch_size 3", 7, 3), ("batch_size 4", 7, 4)]


@pytest.mark.parametrize("name", ["ALI-G, lr 1", "alig lr 1", "ali-g-lr-1"])
def test_a_number_is_not_the_beginning_of_a_longer_one(name, tmp_path):
    rows = load(tmp_path, NAMED + "[grid]\nlr = [0.1, 1.0, 10.0]\nmomentum = [0.0, 0.9]\n").rows
    chosen = [row.name for row in recipes.select(rows, [name])]
    assert chosen == ["ALI-G, lr 1, momentum 0", "ALI-G, lr 1, momentum 0.9"]


@pytest.mark.parametrize("name", ["ALI", "none of them", "x" * 500, "", "ALI-G, lr 5"])
def test_what_is_said_of_a_name_in_a_large_grid_is_short(name, tmp_path):
    long = GOOD.replace('name = "ALI-G"', f'name = "ALI-G {90 * "w"}"').replace('"SGD, cosine"', f'"ALI {90 * "w"}"')
    rows = load(tmp_path, f"grid = {{ lr = {[*range(1, 100)]} }}\n" + long).rows
    with pytest.raises(LabError) as error:
        recipes.select(rows, [name])
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("axis", ["lr = [nan]", "momentum = [0.5, nan]", "momentum = [1e39]", "betas = [[0.9, nan]]"])
def test_a_number_that_no_option_can_have_is_named_as_one(axis, tmp_path):
    key = axis.partition(" ")[0]
    with pytest.raises(LabError, match=rf"{key} is .*, but must be a list of numbers of at most 3.4e\+38, not NaN"):
        load(tmp_path, f"grid = {{ {axis} }}\n" + GOOD)
