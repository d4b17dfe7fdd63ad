"""On every rank: hold other parameters than the others, with and without the norm of the whole gradient."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

import polyak
from distributed import training


def main(rank: int, world: int, folder: Path) -> None:
    """Store what step() says on each rank, and the step sizes when the norm is given."""
    training.join(rank, world, folder)
    parts = [torch.nn.Parameter(torch.full((size,), 2.0)) for size in (3, 4)]
    mine = parts[rank]
    mine.grad = torch.ones_like(mine)
    optimizer = polyak.ALIG([mine], lr=10.0, eps=0.0)
    try:
        optimizer.step(loss=1.0)
        said = ""
    except RuntimeError as error:
        said = str(error)
    before = mine.detach().clone()
    optimizer.step(loss=float(rank), grad_sq_norm=7.0)
    result = {"said": said, "before": before, "step_size": float(optimizer.last_step().step_size)}
    torch.save(result, folder / f"result-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
