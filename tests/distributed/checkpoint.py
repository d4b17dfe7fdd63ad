"""On every rank: save after ten steps with torch.distributed.checkpoint, or load and make the other ten."""

import sys
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import polyak
from distributed import training


def main(rank: int, world: int, folder: Path, saved: str, verb: str) -> None:
    """Save or go on."""
    training.join(rank, world, folder)
    model, share, shares = training.sharded(training.network())
    optimizer = polyak.SmoothSPS(
        model.parameters(), steps_per_epoch=3, momentum=0.9, lr=0.1, constraint=polyak.L2Ball(2.0)
    )
    if verb == "save":
        training.advance(model, optimizer, share, shares, last=10)
        dcp.save(_state(model, optimizer), checkpoint_id=saved)
    else:
        state = _state(model, optimizer)
        dcp.load(state, checkpoint_id=saved)
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        training.advance(model, optimizer, share, shares, first=10)
    weights = training.whole(model)
    if rank == 0:
        torch.save(weights, folder / "weights.pt")
    training.leave()


def _state(model, optimizer) -> dict:
    of_model, of_optimizer = get_state_dict(model, optimizer)
    return {"model": of_model, "optimizer": of_optimizer}


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
