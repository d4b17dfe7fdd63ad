"""The live bar reads the device a few times a second, and a pipe sees plain lines."""

import io

from rich.console import Console

from lab.runs import run
from polyak_lab import progress
from polyak_lab.record import RunFolder
from polyak_lab.resolve import resolve
from polyak_lab.stored import Label
from polyak_lab.train import train


def show(path, *, terminal, epochs):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=120)
    wanted = resolve(run())
    with progress.showing(console, epochs=epochs) as shown:
        shown.run_named("ALI-G")
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
