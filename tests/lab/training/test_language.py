"""Text as data, the small transformer, and what belongs to training language models: perplexity, warm-up, clipping."""

import gzip
import json
import math

import pytest
import torch

from lab.runs import call, execute, run
from observe import SMALL_BALLS
from polyak_lab import data, models
from polyak_lab.config import run as config
from polyak_lab.data.text import parse
from polyak_lab.errors import LabError
from polyak_lab.recipes.resolve import resolve
from polyak_lab.report import table
from polyak_lab.runs import stored
from polyak_lab.schedules import build_schedule
from polyak_lab.training import build, step

FABLE = "The fox said: the grapes are sour, and the fox went away. " * 40
SGD = config.Optimizer("sgd", options={"lr": 0.1})


@pytest.fixture
def fable(tmp_path):
    path = tmp_path / "fable.txt"
    path.write_text(FABLE, encoding="utf-8")
    return path


def language(root, context=16, **training):
    wanted = run(data="text", model="gpt-small", **{"epochs": 1, "batch_size": 16, "max_batches": 4, **training})
    return config.Run(
        config.Data("text", root=str(root), context=context), wanted.model, wanted.optimizer, wanted.training
    )


# The data


def test_sequences_do_not_overlap_and_targets_are_one_character_later(fable):
    text = data.load("text", fable, context=16)
    vocabulary = sorted(set(FABLE))
    assert (text.shape, text.outputs, text.loss, text.is_text) == ((16,), len(vocabulary), "next_token", True)

    def spell(codes):
        return "".join(vocabulary[code] for code in codes.flatten().tolist())

    kept = len(FABLE) - len(FABLE) // 10
    for split, part in ((text.train, FABLE[:kept]), (text.test, FABLE[kept:])):
        used = (len(part) - 1) // 16 * 16
        assert spell(split.inputs) == part[:used]
        assert spell(split.targets) == part[1 : used + 1]


def test_characters_beyond_ascii_are_characters(tmp_path):
    path = tmp_path / "poem.txt"
    path.write_text("Öde 浪 🦊 " * 100, encoding="utf-8")
    assert data.load("text", path, context=8).outputs == len(set("Öde 浪 🦊 "))


def test_a_compressed_file_is_read(tmp_path):
    path = tmp_path / "fable.txt.gz"
    path.write_bytes(gzip.compress(FABLE.encode()))
    assert data.load("text", path, context=16).shape == (16,)


def test_the_documentation_of_python_is_a_text_without_repetitions():
    docs = data.load("python-docs")
    assert docs.shape == (128,)
    assert 90 < docs.outputs < 200
    assert docs.train.inputs.numel() > 250_000
    assert "characters" in next(row.kind for row in data.describe() if row.name == "python-docs")
    assert "sequences" not in data.check("python-docs").partition(":")[0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"There is no .*own\.txt"),
        (b"too short", r"own\.txt has 9 characters: a context of 16 needs 170 or more\."),
        (b"", r"own\.txt has 0 characters"),
        (FABLE.encode() + b"\xff", rf"own\.txt is not UTF-8 text \(byte {len(FABLE)} is 0xff\)"),
        ("fähig ".encode("latin1") * 99, r"own\.txt is not UTF-8 text \(byte 1 is 0xe4\).*iconv"),
        (b"a" * 999, r"own\.txt holds nothing but 'a'"),
        (b"\x1f\x8b damaged", r"own\.txt is damaged"),
    ],
)
def test_files_that_are_refused(content, said, tmp_path):
    path = tmp_path / "own.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LabError, match=said) as caught:
        data.load("text", path, context=16)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_text(tmp_path):
    with pytest.raises(LabError, match="is a folder: data 'text' needs a text file"):
        data.load("text", tmp_path)


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (config.Data("text"), r"data 'text' needs root, the place of your own file: data = \{ name = \"text\", root"),
        (config.Data("digits", root="x"), "data 'digits' takes no root, only 'text'"),
        (config.Data("cifar10", context=5), "data 'cifar10' takes no context"),
        (config.Data("digits", sha256="0" * 64), "data 'digits' takes no sha256"),
        (config.Data("python-docs", sha256="0" * 64), r"topics\.py is not the file of data\.sha256"),
        (config.Data("text", root="nowhere.txt"), r"There is no nowhere\.txt"),
    ],
)
def test_options_that_do_not_belong_to_the_data(chosen, said):
    with pytest.raises(LabError, match=said):
        data.resolve(chosen)


@pytest.mark.parametrize("action", [data.load, data.check])
def test_text_without_a_file(action):
    with pytest.raises(LabError, match="data 'text' needs root"):
        action("text")


def test_the_context_is_spelled_out_and_others_keep_their_hashes(fable):
    assert resolve(language(fable, context=None)).data.context == 128
    first = config.as_json(resolve(run(epochs=1)))
    assert not {"root", "context", "sha256"} & first["data"].keys()
    assert "warmup_steps" not in first["schedule"]
    assert "clip_norm" not in first["training"]
    assert config.as_json(resolve(language(fable)))["data"]["context"] == 16


@pytest.mark.filterwarnings(SMALL_BALLS)
def test_a_run_does_not_go_on_with_another_text(fable, tmp_path):
    execute(tmp_path / "run", language(fable))
    fable.write_text(FABLE.replace("fox", "cat"), encoding="utf-8")
    with pytest.raises(LabError, match=r"holds another run: its data\.sha256 is"):
        execute(tmp_path / "run", language(fable))


# The model


def test_gpt_small_has_about_a_million_parameters():
    model = models.build("gpt-small", (128,), 100, text=True)
    assert sum(p.numel() for p in model.parameters()) == 1_020_800


def test_a_position_sees_itself_and_those_before_it():
    torch.manual_seed(0)
    model = models.build("gpt-small", (12,), 20, text=True)
    tokens = torch.randint(20, (2, 12))
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 20
    before, after = model(tokens), model(changed)
    assert before.shape == (2, 12, 20)
    assert torch.allclose(before[:, :7], after[:, :7], atol=1e-6)
    assert not torch.allclose(before[:, 7:], after[:, 7:], atol=1e-3)
    assert torch.allclose(model(tokens[:, :5]), before[:, :5], atol=1e-6)


def test_the_first_loss_is_that_of_guessing():
    torch.manual_seed(0)
    tokens = torch.randint(50, (8, 33))
    logits = models.build("gpt-small", (32,), 50, text=True)(tokens[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(50), rel=0.03)


@pytest.mark.parametrize(
    ("model", "text", "said"),
    [
        ("mlp", True, "'mlp' takes images or vectors, not text; try 'gpt-small'"),
        ("resnet8", True, "'resnet8' takes images or vectors, not text"),
        ("gpt-small", False, "'gpt-small' takes text, not images or vectors; try 'mlp'"),
    ],
)
def test_models_and_data_that_do_not_fit(model, text, said):
    with pytest.raises(LabError, match=said):
        models.build(model, (16,), 4, text=text)


# Training


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_learns_and_its_perplexity_is_recorded(precision, fable, tmp_path):
    adam = config.Optimizer("adamw", options={"lr": 3e-3})
    wanted = language(fable, epochs=2, max_batches=6, precision=precision, batch_size=8)
    held = config.Data("text", root=str(fable), context=16, holdout=5)
    folder = execute(tmp_path / "run", config.Run(held, wanted.model, adam, wanted.training))
    for record in folder.records:
        for part in ("test", "validation"):
            assert record[f"{part}_perplexity"] == pytest.approx(math.exp(record[f"{part}_loss"]))
            assert record[f"{part}_accuracy"] is None
    assert folder.records[-1]["test_loss"] < 0.9 * math.log(len(set(FABLE)))


def test_a_loss_beyond_the_largest_number_has_an_infinite_perplexity():
    from polyak_lab.training.metrics import Scores

    scores = Scores()
    scores.add(torch.tensor(1e4), None, 1)
    assert scores.perplexity() == math.inf


def test_perplexity_in_table_and_terminal(fable, tmp_path, capsys):
    shared = ["--root", fable, "--context", 16, "--epochs", 1, "--batch-size", 64, "--device", "cpu"]
    flags = ["--warmup-steps", 3, "--clip-norm", 1.0, "--out", tmp_path / "run"]
    assert call("train", "--data", "text", "--model", "gpt-small", "--optimizer", "alig", *shared, *flags) == 0
    assert "perplexity" in capsys.readouterr().out
    stored_config = json.loads((tmp_path / "run" / "config.json").read_text())["run"]
    assert (stored_config["schedule"]["warmup_steps"], stored_config["training"]["clip_norm"]) == (3, 1.0)
    head, (line,) = table.cells(table.groups(stored.find_runs([tmp_path])))
    assert head[:3] == ["row", "test perplexity", "test loss, nats"]
    assert float(line[1]) == pytest.approx(math.exp(float(line[2])), rel=0.01)


@pytest.mark.parametrize("augment", [{"augment": True}, {"kernel_width": 1.0}])
def test_text_has_no_pixels(augment, fable):
    wanted = language(fable)
    chosen = config.Data("text", root=str(fable), context=16, **augment)
    with pytest.raises(LabError, match="holds text"):
        build.build_session(resolve(config.Run(chosen, wanted.model, wanted.optimizer, wanted.training)))


# Warm-up and clipping


@pytest.mark.parametrize("name", ["constant", "cosine"])
def test_lr_rises_over_the_first_steps_under_any_schedule(name):
    def rates(warmup):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
        schedule = build_schedule(config.Schedule(name, warmup_steps=warmup), optimizer, 2, 5)
        found = []
        for _ in range(10):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if schedule is not None:
                schedule.step()
        return found

    expected = [rate * min(1, (step + 1) / 4) for step, rate in enumerate(rates(0))]
    assert rates(4) == pytest.approx(expected)
    assert rates(1) == rates(0)


def test_a_rise_to_infinity_is_refused():
    wanted = run(config.Optimizer("sps"))
    schedule = config.Schedule(warmup_steps=10)
    with pytest.raises(LabError, match="schedule 'warmup_steps' needs a finite lr, but sps has lr = inf"):
        resolve(config.Run(wanted.data, wanted.model, wanted.optimizer, wanted.training, schedule))


@pytest.mark.parametrize("method", ["momo", "sign-sps", "iam-adam"])
def test_a_method_that_needs_the_whole_gradient_refuses_to_be_clipped(method):
    with pytest.raises(LabError, match=f"training.clip_norm does not go with {method}, which needs"):
        resolve(run(config.Optimizer(method), clip_norm=1.0))


@pytest.mark.parametrize("method", ["alig", "sps"])
def test_a_clipped_step_is_divided_by_the_norm_from_before(method):
    taken = {}
    for limit in (None, 0.01, 1e9):
        wanted = run(config.Optimizer(method, options={"lr": 1e6}), max_batches=1, clip_norm=limit)
        session = build.build_session(resolve(wanted))
        before = torch.nn.utils.parameters_to_vector(session.model.parameters()).detach().clone()
        batch = next(session.training_batches(0))
        size = step.train_step(session, batch, 1.0).info.step_size
        moved = before - torch.nn.utils.parameters_to_vector(session.model.parameters()).detach()
        taken[limit] = float(size), moved
    plain, clipped, loose = taken.values()
    assert clipped[0] == pytest.approx(plain[0], rel=1e-4) == pytest.approx(loose[0], rel=1e-4)
    assert clipped[1].norm() == pytest.approx(clipped[0] * 0.01, rel=1e-3)
    assert torch.allclose(loose[1], plain[1], rtol=1e-4, atol=1e-6)


def test_clipping_bounds_the_step_of_other_methods_too(tmp_path):
    clipped = execute(tmp_path / "clipped", run(SGD, epochs=1, clip_norm=1e-6)).records[-1]
    plain = execute(tmp_path / "plain", run(SGD, epochs=1)).records[-1]
    assert clipped["train_loss"] > plain["train_loss"]


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.inf, math.nan])
def test_clipping_norms_that_are_refused(wrong):
    with pytest.raises(LabError, match=r"training\.clip_norm is .*, but must be a positive number"):
        run(clip_norm=wrong)


def test_a_negative_number_of_steps_to_rise_is_refused():
    with pytest.raises(LabError, match=r"schedule\.warmup_steps is -1, but must be 0 or more"):
        config.Schedule(warmup_steps=-1)


def test_the_vocabulary_is_that_of_the_whole_file(tmp_path):
    content = {"own.txt": ("ab" * 500 + "c" * 10).encode()}
    assert parse(content, tmp_path / "own.txt", context=4).outputs == 3
