"""What a run does and what it leaves behind."""

import json
import math

import pytest
import torch

import polyak
from lab.runs import ALIG, ROW, execute, run
from polyak_lab.config import run as config
from polyak_lab.config.names import method_names
from polyak_lab.errors import LabError
from polyak_lab.optimizers import METHODS, OPTIMIZERS
from polyak_lab.recipes.resolve import resolve
from polyak_lab.runs import stored
from polyak_lab.runs.stored import Label
from polyak_lab.training import batches, build, loop

SGD = config.Optimizer("sgd", options={"lr": 0.1})
SCORES = ["train_loss", "train_accuracy", "test_loss", "test_accuracy"]
KEYS = ["epoch", *SCORES, "step_size", "capped", "skipped", "gradient_norm", "lr", "weight_norm"]


def test_a_run_folder(tmp_path):
    folder = execute(tmp_path / "run", run(epochs=4))
    names = {entry.name for entry in (tmp_path / "run").iterdir()}
    assert names == {
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "timings.jsonl",
        "checkpoint.pt",
        "summary.json",
    }
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [list(line) for line in lines] == [KEYS] * 4
    assert lines[-1]["test_accuracy"] > 0.8 > 0.3 > lines[0]["test_accuracy"] - 0.5
    assert lines[-1]["weight_norm"] <= 20.0001
    assert lines == folder.records
    timings = [json.loads(line) for line in (tmp_path / "run" / "timings.jsonl").read_text().splitlines()]
    assert all(line["images_per_second"] > 0 for line in timings)


def test_the_configuration_is_spelled_out(tmp_path):
    execute(tmp_path, run(epochs=1, seed=7), Label("ALI-G", "table", 3, 94.5))
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["label"] == {"row": "ALI-G", "table": "table", "position": 3, "paper": 94.5}
    assert content["hash"] == config.content_hash(content["run"])
    assert content["run"]["optimizer"]["options"]["eps"] == 1e-5
    assert content["run"]["training"]["shuffle_seed"] == 7


def test_the_environment(tmp_path):
    execute(tmp_path, run(epochs=1))
    (start,) = json.loads((tmp_path / "environment.json").read_text())["starts"]
    assert start["threads"] == 1
    assert start["packages"]["torch"] == torch.__version__
    assert {"python", "platform", "cpu", "gpu", "commit", "dirty", "command", "started"} <= start.keys()


def test_strict_json_holds_infinity(tmp_path):
    execute(tmp_path, run(config.Optimizer("sps"), epochs=1))

    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads((tmp_path / "config.json").read_text(), parse_constant=refuse)
    assert content["run"]["optimizer"]["options"]["lr"] == "inf"


def test_repeating_a_run_gives_the_same_bytes(tmp_path):
    one = execute(tmp_path / "one", run(augment=True))
    other = execute(tmp_path / "other", run(augment=True))
    assert one.records == other.records
    assert execute(tmp_path / "third", run(augment=True, seed=1)).records != one.records


def test_a_run_leaves_torch_as_it_was(tmp_path):
    execute(tmp_path, run(epochs=1, threads=2))
    assert torch.get_num_threads() == 1
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_finished_run_is_not_run_again(tmp_path, monkeypatch):
    execute(tmp_path, run(epochs=1))
    before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
    monkeypatch.setattr(loop, "build_session", None)
    execute(tmp_path, run(epochs=1))
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before


def test_a_finished_run_takes_a_new_label(tmp_path):
    execute(tmp_path, run(epochs=1))
    execute(tmp_path, run(epochs=1), Label("row", paper=93.0))
    assert json.loads((tmp_path / "config.json").read_text())["label"]["paper"] == 93.0


def test_a_folder_of_another_run(tmp_path):
    execute(tmp_path, run(epochs=1))
    with pytest.raises(LabError, match=r"holds another run: its optimizer.options.lr is 1.0, but 0.5 was"):
        execute(tmp_path, run(config.Optimizer("alig", 20.0, {"lr": 0.5, "momentum": 0.9}), epochs=1))
    with pytest.raises(LabError, match=r"optimizer.name is 'alig', but 'sgd' was requested\. Choose another folder"):
        execute(tmp_path, run(SGD, epochs=1))


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(LabError, match="not empty and not a run folder"):
        execute(tmp_path, run())
    with pytest.raises(LabError, match="is a file: choose a folder"):
        execute(tmp_path / "thesis.tex", run())
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_hidden_files_of_others_are_left_alone(tmp_path):
    others = (".env.local", ".metrics.jsonl.bak", ".metrics.jsonl.original", ".checkpoint.pt.swp", ".polyak-notes.tmp")
    for name in (*others, ".polyak-k1ll3d_0.metrics.jsonl.tmp"):
        (tmp_path / name).write_text("")
    execute(tmp_path, run(epochs=1))
    assert {entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")} == set(others)


def test_a_damaged_configuration(tmp_path):
    execute(tmp_path, run(epochs=1))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(LabError, match=r"config\.json is damaged"):
        execute(tmp_path, run(epochs=1))


def bit_flips(path):
    """The flips of one bit that leave JSON in every line, a few for every byte of a digit or a letter."""
    content = path.read_bytes()
    for place in range(0, len(content), 3):
        for bit in (0, 2, 5):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            try:
                texts = bytes(flipped).decode().splitlines() if path.suffix == ".jsonl" else [bytes(flipped).decode()]
                changed = [json.loads(text) for text in texts]
            except ValueError:
                continue
            yield bytes(flipped), changed


def loaded(folder, name):
    try:
        return stored.load_run(folder)
    except LabError as error:
        if name not in str(error):
            raise


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json"])
def test_a_flipped_bit_of_a_finished_run_is_noticed(name, tmp_path):
    execute(tmp_path, run(epochs=2))
    path = tmp_path / name
    content, before = path.read_bytes(), stored.load_run(tmp_path)
    flips = 0
    for flipped, _ in bit_flips(path):
        path.write_bytes(flipped)
        if (after := loaded(tmp_path, name)) is not None:  # the name of the checksum changed, and nothing that is read
            assert after == before
            assert json.loads(flipped)["final"] == json.loads(content)["final"]
        flips += 1
    assert flips > 100


@pytest.mark.parametrize("lines", [slice(-1), slice(1), slice(1, None), slice(0)])
def test_a_finished_run_without_one_of_its_lines(lines, tmp_path):
    execute(tmp_path, run(epochs=3))
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[lines]))
    with pytest.raises(LabError, match=r"metrics\.jsonl (does not match .*summary\.json|is damaged)"):
        stored.load_run(tmp_path)


def test_an_older_folder_without_a_digest(tmp_path):
    """0.1.0 stored neither: its last line is compared with the summary."""
    execute(tmp_path, run(epochs=3))
    summary, metrics = tmp_path / "summary.json", tmp_path / "metrics.jsonl"
    old = {key: value for key, value in json.loads(summary.read_text()).items() if key not in ("metrics", "checksum")}
    summary.write_text(json.dumps(old, indent=2) + "\n")
    assert stored.load_run(tmp_path).finished
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(LabError, match=r"metrics\.jsonl does not match .*summary\.json"):
        stored.load_run(tmp_path)


def test_alig_reports_its_cap_and_sgd_has_none(tmp_path):
    capped = execute(tmp_path / "capped", run(config.Optimizer("alig", options={"lr": 1e-3}))).records[-1]
    assert (capped["capped"], capped["skipped"]) == (1.0, 0.0)
    assert capped["step_size"] == pytest.approx(1e-3)
    sgd = execute(tmp_path / "sgd", run(SGD)).records[-1]
    assert (sgd["capped"], sgd["skipped"], sgd["step_size"]) == (None, None, pytest.approx(0.1))


def test_the_gradient_norm_is_recorded_where_it_is_measured_anyway(tmp_path):
    """ALI-G divides by it, and clipping compares it; plain SGD would pay for it."""
    norms = {}
    for name, optimizer, limit in (("alig", "alig", None), ("clipped", "sgd", 1e-3), ("sgd", "sgd", None)):
        choice = config.Optimizer(optimizer, options={"lr": 1e-2})
        wanted = run(choice, clip_norm=limit, max_batches=1, epochs=1)
        norms[name] = execute(tmp_path / name, wanted).records[-1]["gradient_norm"]
    assert norms["alig"] > 0.01
    assert norms["alig"] == pytest.approx(norms["clipped"], rel=1e-5)
    assert norms["sgd"] is None


def test_a_low_cap_makes_alig_sgd(tmp_path):
    """A cap that always binds is a learning rate; so both must see the same weights and batches."""
    alig = execute(tmp_path / "alig", run(config.Optimizer("alig", options={"lr": 1e-2}))).records
    sgd = execute(tmp_path / "sgd", run(config.Optimizer("sgd", options={"lr": 1e-2}))).records
    assert alig[-1]["capped"] == 1.0
    assert alig[-1]["train_loss"] == pytest.approx(sgd[-1]["train_loss"], rel=1e-5)


def test_cosine_ends_at_zero(tmp_path):
    records = execute(tmp_path, run(SGD, "cosine", epochs=4)).records
    steps, rate = 24, [0.05 * (1 + math.cos(math.pi * step / 24)) for step in range(24)]
    assert records[-1]["lr"] == pytest.approx(0.0, abs=1e-12)
    means = [sum(rate[start : start + 6]) / 6 for start in range(0, steps, 6)]
    assert [record["step_size"] for record in records] == pytest.approx(means)


def test_step_schedule(tmp_path):
    wanted = resolve(run(SGD, epochs=4))
    wanted = config.Run(
        wanted.data, wanted.model, SGD, wanted.training, config.Schedule("step", milestones=(1, 3), factor=0.5)
    )
    records = execute(tmp_path, wanted, ROW).records
    assert [record["step_size"] for record in records] == pytest.approx([0.1, 0.05, 0.05, 0.025])


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "alig-plus"])
def test_every_optimizer_trains_by_its_name(name, tmp_path):
    records = execute(tmp_path, run(config.Optimizer(name), epochs=2, max_batches=2)).records
    assert all(math.isfinite(record[score]) for record in records for score in SCORES)
    assert records[0]["weight_norm"] != records[1]["weight_norm"]
    assert not any(record["skipped"] for record in records)


@pytest.mark.parametrize("name", ["alig-plus", "polyak:ALIGPlus"])
def test_a_method_that_needs_the_indices_of_samples_is_refused(name):
    with pytest.raises(LabError, match="learns a target for every sample, but batches have no indices: use alig"):
        resolve(run(config.Optimizer(name)))


def test_every_method_of_the_library_has_a_name():
    exported = [getattr(polyak, name) for name in polyak.__all__]
    methods = {cls for cls in exported if isinstance(cls, type) and issubclass(cls, polyak.PolyakOptimizer)}
    assert methods - {polyak.PolyakOptimizer} == {*METHODS.values()}
    assert sorted(METHODS) == method_names()


NAMES = {  # a name in a recipe stays what it is
    **{"alig": "ALIG", "sps": "SPS", "smooth-sps": "SmoothSPS", "momo": "MoMo", "momo-adam": "MoMoAdam"},
    **{"ngn": "NGN", "ngn-md": "NGNMD", "mom-sps": "MomSPS", "smooth-mom-sps": "SmoothMomSPS"},
    **{"safe-sps": "SafeSPS", "dec-sps": "DecSPS", "ada-sps": "AdaSPS", "iam": "IAM", "iam-adam": "IAMAdam"},
    **{"schedule-free-sps": "ScheduleFreeSPS", "schedule-free-adam-sps": "ScheduleFreeAdamSPS"},
    **{"schedule-free-plus": "ScheduleFreePlus", "sign-sps": "SignSPS", "muon-momo": "MuonMoMo"},
}


def test_the_names_of_methods_stay():
    assert NAMES.items() <= {name: cls.__name__ for name, cls in METHODS.items()}.items()


@pytest.mark.parametrize("name", ["smooth-sps", "smooth-mom-sps"])
def test_smooth_methods_learn_the_length_of_an_epoch(name):
    assert build.build_session(resolve(run(config.Optimizer(name)))).optimizer.defaults["steps_per_epoch"] == 6
    given = config.Optimizer(name, options={"steps_per_epoch": 9})
    assert build.build_session(resolve(run(given))).optimizer.defaults["steps_per_epoch"] == 9


def test_augmented_validation_is_named_and_keeps_the_clean_score(tmp_path):
    clean = execute(tmp_path / "clean", run(augment=True)).records[-1]
    both = execute(tmp_path / "both", run(augment=True, eval_protocol="sps-augmented-validation")).records[-1]
    assert "test_accuracy_augmented" not in clean
    assert clean.items() <= both.items()
    assert both["test_accuracy_augmented"] < both["test_accuracy"]


@pytest.mark.parametrize(
    ("data", "model"), [("separable-logistic", "logistic"), ("matrix-factorisation", "deep-linear")]
)
def test_other_losses(data, model, tmp_path):
    records = execute(tmp_path, run(config.Optimizer("sps"), data=data, model=model)).records
    assert records[-1]["train_loss"] < records[0]["train_loss"]
    assert (records[-1]["test_accuracy"] is None) == (data == "matrix-factorisation")


def test_vectors_cannot_be_cropped(tmp_path):
    wanted = run(data="separable-logistic", model="logistic", augment=True)
    with pytest.raises(LabError, match="separable-logistic holds vectors"):
        execute(tmp_path, wanted)


def test_an_epoch_sees_every_sample_once_in_an_order_of_its_own():
    session = build.build_session(resolve(run(batch_size=100)))
    sizes = [len(targets) for _, targets in session.training_batches(0)]
    assert sizes == [100] * 14 + [37]
    epochs = [[targets for _, targets in session.training_batches(epoch)] for epoch in (0, 0, 1)]
    first, again, second = map(torch.cat, epochs)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, session.dataset.train.targets.sort().values)


def test_the_order_does_not_depend_on_the_weights():
    one, other = (build.build_session(resolve(run(seed=seed, shuffle_seed=5))) for seed in (0, 1))
    assert all(
        torch.equal(a, b) for (_, a), (_, b) in zip(one.training_batches(0), other.training_batches(0), strict=True)
    )
    assert not torch.equal(*(next(each.model.parameters()) for each in (one, other)))
    assert batches.derive_seed("shuffle", 0, 1) != batches.derive_seed("shuffle", 1, 0)


def test_a_relative_ball_has_the_radius_of_the_first_weights_after_a_resume_too(tmp_path):
    wanted = run(config.Optimizer("alig", l2_ball_relative=0.5, options={"lr": 1.0}), epochs=2, max_batches=2)
    with pytest.warns(UserWarning, match="rescales the parameters"):
        whole = execute(tmp_path / "whole", wanted).records
    with pytest.warns(UserWarning, match="rescales the parameters"):
        first = build.build_session(resolve(wanted))
    assert whole[-1]["weight_norm"] == pytest.approx(first.optimizer.param_groups[0]["l2_ball_radius"], rel=1e-5)
    assert whole[-1]["ball_radius"] == float(first.optimizer.param_groups[0]["l2_ball_radius"])


WRONG = {
    "optimizer": (run(config.Optimizer("aligg")), "optimizer: 'aligg' is not known; did you mean 'alig'?"),
    "option": (
        run(config.Optimizer("alig", options={"momentun": 1})),
        "'momentun' is not known; did you mean 'momentum'?",
    ),
    "constraint": (run(config.Optimizer("sgd", 3.0)), "The optimizer sgd takes no constraint: leave l2_ball out."),
    "lr": (run(config.Optimizer("alig", options={"lr": -1.0})), "optimizer alig: "),
    "momentum": (run(config.Optimizer("alig", options={"momentum": 1.5})), "optimizer alig: "),
    "a radius": (
        run(config.Optimizer("alig", options={"l2_bal": 1.0})),
        "optimizer alig: 'l2_bal' is not known; did you mean 'l2_ball'?",
    ),
    "two radii": (
        run(config.Optimizer("alig", l2_ball=3.0, l2_ball_relative=1.5)),
        "optimizer alig: l2_ball and l2_ball_relative are one radius: write one of them.",
    ),
    "no ball": (
        run(config.Optimizer("sgd", l2_ball_relative=1.5)),
        "The optimizer sgd takes no constraint: leave l2_ball_relative out.",
    ),
    "relative radius": (run(config.Optimizer("alig", l2_ball_relative=0.0)), "optimizer alig: l2_ball_relative: "),
    "radius": (run(config.Optimizer("alig", l2_ball=-1.0)), "optimizer alig: "),
    "torch's lr": (run(config.Optimizer("sgd", options={"lr": -1.0})), "optimizer sgd: Invalid learning rate"),
    "model": (run(model="resnet9"), "model: 'resnet9' is not known; did you mean 'resnet8'?"),
    "data": (run(data="digit"), "data: 'digit' is not known; did you mean 'digits'?"),
    "device": (run(device="gpu"), "The device 'gpu' cannot be used"),
    "schedule": (run(SGD, "cosin"), "schedule: 'cosin' is not known; did you mean 'cosine'?"),
    "milestones": (run(SGD, "step"), "schedule 'step' needs milestones"),
    "infinite lr": (
        run(config.Optimizer("sps"), "cosine"),
        "schedule 'cosine' needs a finite lr, but sps has lr = inf.",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_refused_before_anything_trains(case, tmp_path):
    wanted, message = WRONG[case]
    with pytest.raises(LabError) as caught:
        execute(tmp_path / "run", wanted)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_protocol_is_checked():
    with pytest.raises(LabError, match="'sps' is not known"):
        run(ALIG, eval_protocol="sps")
