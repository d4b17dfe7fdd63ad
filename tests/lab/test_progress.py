"""The live bar reads the device a few times a second, and a pipe sees plain lines."""

import io
import re

import pytest
from rich.console import Console

from lab.runs import run
from polyak_lab import progress
from polyak_lab.console import decimals
from polyak_lab.recipes.resolve import resolve
from polyak_lab.runs.folder import RunFolder
from polyak_lab.runs.stored import Label
from polyak_lab.training.loop import train


def show(path, *, terminal, epochs, name="ALI-G", width=120):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=width)
    wanted = resolve(run())
    with progress.showing(console, epochs=epochs) as shown:
        shown.run_named(name)
        train(wanted, RunFolder(path, wanted, Label("row")), shown)
    return screen.getvalue()


def test_a_terminal_sees_loss_accuracy_and_step_size(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "READ_EVERY", 0.0)
    seen = show(tmp_path, terminal=True, epochs=False)
    assert all(text in seen for text in ("ALI-G", "loss ", "accuracy ", "step size "))


def test_the_device_is_read_at_a_bounded_rate(tmp_path, monkeypatch):
    reads = []
    monkeypatch.setattr(progress, "monotonic", lambda: 100.0)  # a clock that stands still
    monkeypatch.setattr(progress, "numbers", lambda *read: reads.append(read) or "")
    show(tmp_path, terminal=True, epochs=False)
    assert len(reads) == 1


def test_a_pipe_sees_a_line_per_epoch_or_per_run(tmp_path):
    assert show(tmp_path / "one", terminal=False, epochs=True).count("\n") == 3
    assert show(tmp_path / "other", terminal=False, epochs=False).startswith("ALI-G: train loss ")
    assert "\x1b" not in show(tmp_path / "third", terminal=False, epochs=True)


@pytest.mark.parametrize("width", [20, 120])
@pytest.mark.parametrize("name", ["[/]", "a[/b]", ":x:", "{task}", "sgd:x:0.9"])
def test_a_name_in_the_bar_is_shown_as_it_was_written(name, width, tmp_path):
    seen = show(tmp_path, terminal=True, epochs=False, name=name, width=width)
    assert seen.count(name) >= 2  # beside the bar, and in the line that stays
    assert " %" in seen


def test_a_name_in_the_bar_has_no_control_characters(tmp_path):
    seen = show(tmp_path, terminal=True, epochs=False, name="a\x1b]0;title\x07b\x9bc")
    assert "a\\x1b]0;title\\x07b\\x9bc" in seen
    assert not {"\x07", "\x9b"} & set(seen)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_name_does_not_split_a_line(terminal, tmp_path):
    seen = show(tmp_path, terminal=terminal, epochs=False, name="one\ntwo")
    assert "one\\ntwo: train loss " in seen
    assert "one\n" not in seen


def test_a_long_name_keeps_its_start(tmp_path):
    assert "cifar-10-al…" in show(tmp_path, terminal=True, epochs=False, name="cifar-10-ali-g-momentum-0.9", width=70)


def test_a_long_run_without_a_terminal_gives_a_sign_of_life_now_and_then(tmp_path, monkeypatch):
    clock = iter(range(0, 10**6, 45))  # 45 seconds go by between two looks at the clock
    monkeypatch.setattr(progress, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(progress.Progress, "step", lambda *_: None)
    *signs, last = show(tmp_path / "slow", terminal=False, epochs=False).splitlines()
    assert 1 <= len(signs) < 3
    assert all(line.startswith("ALI-G: epoch ") and "train loss" in line for line in signs)
    assert last.startswith("ALI-G: train loss ")


@pytest.mark.parametrize(("epochs", "name"), [(True, ""), (False, "ALI-G: ")])
def test_a_long_epoch_without_a_terminal_gives_a_sign_of_life_now_and_then(epochs, name, tmp_path, monkeypatch):
    clock = iter(range(0, 10**6, 25))
    monkeypatch.setattr(progress, "monotonic", lambda: float(next(clock)))
    *signs, last = show(tmp_path / "slow", terminal=False, epochs=epochs).splitlines()
    within = [line for line in signs if re.search(r", step \d", line)]
    assert within
    assert all(re.fullmatch(rf"{name}epoch [1-3]/3, step \d+ of \d+: loss \S+  accuracy .*", line) for line in within)
    assert not re.search(r", step \d", last)


@pytest.mark.parametrize(
    ("numbers", "form", "written"),
    [
        ([10.834], ".2f", ["10.83"]),
        ([3.1e97], ".2f", ["3.10e+97"]),
        ([-2e6], "+.2f", ["-2.00e+06"]),
        ([2.28e6, 15756.3], ".2f", ["2.28e+06", "1.58e+04"]),
    ],
)
def test_a_huge_number_and_those_beside_it_are_written_as_powers_of_ten(numbers, form, written):
    assert decimals(form, *numbers) == written


def test_a_number_that_is_not_there_is_left_out():
    record = {"train_loss": 1.0, "test_accuracy": 0.5, "step_size": 0.1, "test_perplexity": None, "capped": None}
    assert progress.sentence(record) == "train loss 1.00e+00, test accuracy 50.00 %, step size 1.00e-01"
