"""Two processes: the same steps as one process with all the data, whether parameters are replicated or sharded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock

import polyak
import processes
import sharing
from catalogue import METHODS
from messages import MESSAGES
from observe import SMALL_BALLS
from polyak._backend import distributed

pytestmark = pytest.mark.filterwarnings(SMALL_BALLS)
HERE = Path(__file__).parent
each_row = pytest.mark.parametrize("row", processes.rows(), ids="-".join)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what each of two processes saw in all the checks; they start once, however many workers pytest has."""
    shared = tmp_path_factory.getbasetemp()
    folder = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "two processes"
    folder.mkdir(exist_ok=True)
    files = [folder / f"{rank}.json" for rank in range(processes.SIZE)]
    with FileLock(folder / "lock"):
        if not all(file.exists() for file in files):
            start(folder)
    return [json.loads(file.read_text()) for file in files]


def start(folder: Path) -> None:
    """Let two processes run all the checks."""
    source = Path(polyak.__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(source), str(HERE)]), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-W", "ignore", str(HERE / "processes.py")]
    running = [
        subprocess.Popen([*command, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(processes.SIZE)
    ]
    errors = [process.communicate(timeout=180)[1] for process in running]
    assert [process.returncode for process in running] == [0] * processes.SIZE, "\n".join(errors)


@pytest.mark.filterwarnings(SMALL_BALLS)
@each_row
@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_two_processes_make_the_steps_of_one_with_all_the_data(seen, kind, row):
    first, second = (found[f"{kind} {row}"] for found in seen)
    assert first == second
    np.testing.assert_allclose(first, processes.alone(*row), rtol=1e-9, atol=1e-12)


def test_without_synchronisation_every_process_steps_on_its_own_loss(seen):
    first, second = (found["not synchronised"] for found in seen)
    assert not np.allclose(first, second, rtol=1e-3)


def test_gradients_are_brought_into_the_layout_of_their_parameter(seen):
    assert seen[0]["another layout"] == seen[1]["another layout"] == [1.0, 0.5, 0.0, -0.5]


def test_processes_that_hold_a_part_each_can_be_told_the_whole_norm(seen):
    expected = processes.alone("ALIG", "nesterov", "none")
    for found in seen:
        np.testing.assert_allclose(found["a part each"], expected, rtol=1e-9, atol=1e-12)


def test_processes_that_hold_different_parameters_are_told_what_to_write(seen):
    for found in seen:
        assert found["disagreement"].startswith("ALIG: the processes hold different parameters")
        assert "write step(loss=loss, grad_sq_norm=n)" in found["disagreement"]
        assert "sync_loss=False" in found["disagreement"]
        assert len(found["disagreement"]) < 300
        assert "\n" not in found["disagreement"]


def test_shards_of_equal_numbers_are_told_so_too(seen):
    for found in seen:
        assert found["equal shards"] == found["disagreement"]


def test_replicas_that_drift_in_a_single_number_are_told_so(seen):
    for found in seen:
        assert found["drift of one number"] == found["model per process"]


def test_a_model_per_process_is_told_to_switch_the_averaging_off_once_they_differ(seen):
    for found in seen:
        steps, sentence = found["model per process"]
        assert steps == 1
        assert sentence.startswith("ALIG: the replicas have drifted apart")
        assert "write sync_loss=False if every process trains a model of its own." in sentence
        assert found["model per process, told so"] == [12, ""]


@pytest.mark.parametrize("context", ["first epoch", "second epoch", "Join"])
def test_unequal_numbers_of_batches_inside_join_are_refused_before_a_step(seen, context):
    for found in seen:
        sentence = found[f"join {context}"]
        assert sentence.startswith("ALIG: step() averages the loss over all processes, but inside join()")
        assert sentence.endswith("give every process equally many batches.")


def test_the_loss_is_shared_within_a_process_group_only(seen):
    assert [found["groups of one"] for found in seen] == [[-1.0], [-2.0]]


def test_the_loss_is_on_its_way_while_the_norm_is_measured(seen):
    assert [found["overlap"] for found in seen] == [[False, True]] * 2


def test_a_step_of_sharded_groups_sends_few_messages(seen):
    expected = {" ".join(cell): count for cell, count in MESSAGES.items()}
    assert seen[0]["messages"] == seen[1]["messages"] == expected


def test_a_ball_over_sharded_groups_takes_one_message_more(seen):
    expected = {" ".join(cell): count + 1 for cell, count in MESSAGES.items()}
    assert seen[0]["with a ball"] == seen[1]["with a ball"] == expected


def test_a_constraint_on_the_whole_vector_is_refused_where_each_process_holds_a_part(seen):
    for found in (each["constraints on parts"] for each in seen):
        sentences = [value for name, value in found.items() if isinstance(value, str)]
        assert len(sentences) == 8
        for sentence in sentences:
            assert sentence.startswith(
                ("ALIG: L2Ball holds for all parameters", "ALIG: L1Ball holds for all parameters")
            )
            assert sentence.endswith("polyak.Box, or shard the model with FSDP2.")
            assert len(sentence) < 300


def test_constraints_on_coordinates_and_replicas_are_allowed_where_the_norm_is_given(seen):
    for found in (each["constraints on parts"] for each in seen):
        assert found["stages, allowed"] == ["no error"] * 2
        assert found["clipped replicas"] <= 1.0 + 1e-6
        assert np.linalg.norm(found["ball, one process"]) <= 1.0 + 1e-6
        for where in ("optimizer", "group", "later"):
            assert max(map(abs, found[f"box, {where}"])) <= 0.5
        assert found["box, optimizer"] == seen[0]["constraints on parts"]["box, later"]


@pytest.mark.parametrize(("kind", "order", "accumulate"), processes.SEVERAL)
def test_each_of_several_optimizers_sees_what_reaches_its_parameters(seen, kind, order, accumulate):
    for found in seen:
        assert found[f"several {(kind, order, accumulate)}"] <= 1e-5


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("kind", ["replicated", "sharded"])
def test_the_mean_is_taken_of_a_bound_as_of_the_loss(seen, kind, method):
    first, second = (found["shared"][f"{kind} {method.name}"] for found in seen)
    assert first == second
    np.testing.assert_allclose(first, sharing.alone(method), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("step", [0, 3])
def test_a_bound_on_some_processes_alone_is_refused_on_all(seen, step):
    for found in seen:
        sentence, moved = found["shared"][f"bound on one, step {step}"]
        assert sentence.startswith("ALIG: some processes give lower_bound to step() and others do not")
        assert sentence.endswith("give it on all of them or on none.")
        assert moved == step


@pytest.mark.parametrize("given", [(), (0,), (0, 1)], ids=str)
def test_where_the_host_may_not_read_it_such_a_loss_is_nan(given, monkeypatch):
    """So the step is skipped on all processes."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    loss, bound = torch.tensor(3.0), torch.tensor(1.0)
    sent = [distributed._message(loss * i, bound * i if i in given else 0.0) for i in range(2)]
    mean, mean_bound = distributed.Processes("ALIG", None).receive(sum(sent) / 2, loss, bound)
    assert bool(mean.isnan()) == (len(given) == 1)
    if len(given) != 1:
        assert mean == 1.5
    if len(given) == 2:
        assert mean_bound == 0.5


@pytest.mark.parametrize("kind", sharing.RADII)
def test_a_relative_ball_has_one_radius_on_all_processes(seen, kind):
    """DDP sends the weights of rank 0 to all, so the radius is a multiple of their norm."""
    for found in seen:
        radius, norm, kept = found["shared"][f"ball {kind}"]
        assert kept == pytest.approx(1.5 * norm, rel=1e-12)
        assert radius == (3.0 if kind == "replaced" else kept)


def test_batches_of_unequal_size_are_refused_on_all_processes(seen):
    for found in seen:
        first, second, third, steps = found["shared"]["unequal batches"]
        assert (first, third, steps) == ("no error", "no error", 2)
        assert second.startswith("ALIGPlus: the processes have batches of [2, 3] samples")
        assert second.endswith("DataLoader(..., drop_last=True), or pad it.")


def test_a_process_without_parameters_shares_a_loss_in_float64(seen):
    first, second = (found["shared"]["without parameters"] for found in seen)
    assert first[0] == pytest.approx(second[0], rel=1e-6) == pytest.approx(0.2, rel=1e-6)
    assert first[1:] == pytest.approx([0.9, 0.9], rel=1e-5)


@pytest.mark.parametrize(
    "case",
    ["heads", "skipped DistributedDataParallel", "skipped fully_shard", "reduced later DDP", "reduced later FSDP2"],
)
def test_a_watched_loss_is_that_of_the_gradients_that_are_there(seen, case):
    for found in seen:
        loss, watched = found["shared"][case]
        assert watched == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("door", ["loss", "closure", "samples"])
def test_a_number_that_is_spread_over_processes_is_read_whole(seen, door):
    for found in seen:
        loss, gamma = found["shared"][f"partial {door}"]
        assert loss == 5.0
        assert gamma == pytest.approx(5.0 / 4.0 if door == "samples" else (5.0 - 1.0) / 4.0, rel=1e-6)


@pytest.mark.parametrize("method", [m for m in METHODS if hasattr(m.cls, "eval")], ids=lambda method: method.name)
@pytest.mark.filterwarnings(SMALL_BALLS)
def test_a_forward_pass_alone_changes_no_training_of_shards(seen, method):
    """FSDP2 keeps the root gathered after it, so that the next forward pass would miss what moved in between."""
    for found in seen:
        without, after = found["shared"][f"forward passes {method.name}"]
        assert without == after
