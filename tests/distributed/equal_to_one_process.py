"""On every rank: train every case in parallel and alone on the full batch; store how far they are apart."""

import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

import polyak
from catalogue import METHODS
from distributed import training

SIZE = sum(p.numel() for p in training.network().parameters())
SETS = {
    "none": None,
    "L2Ball": polyak.L2Ball(2.0),
    "L1Ball": polyak.L1Ball(10.0),
    "LInfBall": polyak.LInfBall(0.2),
    "NonNegative": polyak.NonNegative(),
    "Simplex": polyak.Simplex(3.0),
    "Halfspace": polyak.Halfspace(torch.linspace(-1.0, 1.0, SIZE), -1.0),
    "Affine": polyak.Affine(torch.linspace(-1.0, 1.0, SIZE).cos().reshape(1, SIZE), torch.ones(1)),
}
WRAPS = {
    "DDP": training.replicated,
    "FSDP2": training.sharded,
    "FSDP2 and plain": training.partly_sharded,
    "FSDP2 and TP": training.two_dimensional,
}


def cases(world: int) -> dict[str, dict]:
    """Name every case: each method and momentum form without a set and in a ball, ALI-G in every set, and with AMP."""
    wraps = {name: wrap for name, wrap in WRAPS.items() if world == 4 or name != "FSDP2 and TP"}
    rows = {}
    for name, wrap in wraps.items():
        for method in METHODS:
            for form in method.momenta:
                for chosen in ("none", "L2Ball"):
                    rows[f"{name}, {method.name}, {form}, {chosen}"] = _row(wrap, method, form, chosen)
        for chosen in list(SETS)[2:]:
            rows[f"{name}, {METHODS[0].name}, nesterov, {chosen}"] = _row(wrap, METHODS[0], "nesterov", chosen)
        if name == "FSDP2 and plain":  # torch's GradScaler itself refuses plain tensors beside sharded ones
            continue
        rows[f"{name}, {METHODS[0].name}, nesterov, L2Ball, AMP"] = _row(wrap, METHODS[0], "nesterov", "L2Ball", True)
    return rows


def _row(wrap, method, form, chosen, amp=False) -> dict:
    dtype = torch.float32 if method.rounds_alike else torch.float64
    return {
        "dtype": dtype,
        "wrap": wrap,
        "build": partial(method.build, form=form, lr=0.1, constraint=SETS[chosen]),
        "amp": amp,
    }


def apart(row: dict) -> dict[str, float | bool]:
    """Train a case both ways; return the largest difference, and whether all ranks end with the same bits."""
    torch.set_default_dtype(row["dtype"])
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if row["amp"] else None
    alone, _ = training.train(training.alone, partial(row["build"], sync_loss=False))
    ours, optimizer = training.train(row["wrap"], row["build"], scaler)
    mine = torch.cat([p.flatten() for p in ours] + [optimizer.last_step().step_size.reshape(1)])
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine)
    return {
        "difference": max(float((a - b).abs().max()) for a, b in zip(ours, alone, strict=True)),
        "identical": all(torch.equal(mine, other) for other in everyone),
        "moved": max(float((a - b).abs().max()) for a, b in zip(ours, training.network().parameters(), strict=True)),
    }


if __name__ == "__main__":
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    training.join(rank, world, folder)
    results = {name: apart(row) for name, row in cases(world).items()}
    if rank == 0:
        torch.save(results, folder / "results.pt")
    training.leave()
