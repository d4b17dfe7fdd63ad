"""Several processes train as one: DDP, FSDP2 and tensor parallelism on gloo, checkpoints that change the world size."""

import pytest
import torch

from distributed.equal_to_one_process import cases
from distributed.launch import launch
from observe import SMALL_BALLS

WORLDS = (2, 4)

pytestmark = [pytest.mark.distributed, pytest.mark.filterwarnings(SMALL_BALLS)]


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    stored = {}

    def of(world):
        if world not in stored:
            folder = tmp_path_factory.mktemp(f"world-{world}")
            launch("equal_to_one_process.py", world, folder, seconds=1800.0)
            stored[world] = torch.load(folder / "results.pt")
        return stored[world]

    return of


@pytest.mark.parametrize(("world", "case"), [(world, case) for world in WORLDS for case in cases(world)])
def test_ranks_with_different_data_equal_one_process_on_the_full_batch(results, world, case):
    result = results(world)[case]
    assert result["moved"] > 1e-2
    assert result["difference"] <= 1e-6
    assert result["identical"]


@pytest.mark.parametrize("world", [1, 4])
def test_a_checkpoint_of_two_ranks_goes_on_exactly_on_another_number(tmp_path, world):
    saved = str(tmp_path / "checkpoint")
    launch("checkpoint.py", 2, tmp_path / "save", saved, "save")
    launch("checkpoint.py", world, tmp_path / "resume", saved, "resume")
    from distributed import training

    alone, _ = training.train(training.alone, _smooth)
    resumed = torch.load(tmp_path / "resume" / "weights.pt")
    assert max(float((a - b).abs().max()) for a, b in zip(alone, resumed, strict=True)) <= 1e-6


def _smooth(params):
    import polyak

    return polyak.SmoothSPS(params, steps_per_epoch=3, momentum=0.9, lr=0.1, constraint=polyak.L2Ball(2.0))


def test_ranks_that_hold_different_parameters_need_the_norm_and_get_one_sentence(tmp_path):
    launch("disagreement.py", 2, tmp_path)
    ranks = [torch.load(tmp_path / f"result-{rank}.pt") for rank in (0, 1)]
    for rank in ranks:
        assert "different parameters" in rank["said"]
        assert "grad_sq_norm" in rank["said"]
        assert torch.equal(rank["before"], torch.full_like(rank["before"], 2.0))
        assert rank["step_size"] == pytest.approx(0.5 / 7.0)
        said, step_size = rank["zero"]
        assert "different parameters" in said
        assert step_size == pytest.approx(1.0 / 8.0)
