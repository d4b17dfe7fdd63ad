"""On every rank: hold other parameters than the others, with and without the norm of the whole gradient."""

import sys
from pathlib import Path

import torch
from torch.distributed.optim import ZeroRedundancyOptimizer

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
    result = {"said": said, "before": before, "step_size": float(optimizer.last_step().step_size), "zero": zero()}
    torch.save(result, folder / f"result-{rank}.pt")
    training.leave()


def zero() -> tuple[str, float]:
    """Step under ZeroRedundancyOptimizer, whose ranks hold tensors of equal shapes: without and with the norm."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(4)) for _ in range(2)]
    sharded = ZeroRedundancyOptimizer(params, polyak.ALIG, lr=10.0, eps=0.0)
    for p in params:
        p.grad = torch.ones_like(p)
    try:
        sharded.step(loss=1.0)
        said = ""
    except RuntimeError as error:
        said = str(error)
    sharded.step(loss=1.0, grad_sq_norm=8.0)
    return said, float(sharded.optim.last_step().step_size)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
