"""What two processes measure together; started by `launch`, prints the errors as the last line."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import language
from loops import GRADIENT, sequential_trainer
from truth import ROWS, STEPS, Witness, autocast, mean_loss, network, optimizer_for, samples


def ddp(precision: str, accumulate: int) -> float:
    model = DistributedDataParallel(network())
    return own_loop(model, precision, accumulate, lambda last: nullcontext() if last else model.no_sync())


def fsdp2(precision: str, accumulate: int) -> float:
    model: Any = network()
    fully_shard(model[0])
    fully_shard(model)

    def synchronise(last: bool) -> Any:
        model.set_requires_gradient_sync(last)
        return nullcontext()

    return own_loop(model, precision, accumulate, synchronise)


def own_loop(model: nn.Module, precision: str, accumulate: int, synchronise: Any) -> float:
    """Train on every second micro-batch; `watch` is all that is written for the optimizer's sake."""
    size, rank = dist.get_world_size(), dist.get_rank()
    optimizer, twin = optimizer_for(model), network()
    witness = Witness(optimizer, mean_loss(twin, accumulate, precision, size), twin)
    inputs, targets = samples(accumulate, size).tensors
    for i in range(STEPS * accumulate):
        part = slice((i * size + rank) * ROWS, (i * size + rank + 1) * ROWS)
        last = (i + 1) % accumulate == 0
        with synchronise(last):
            with autocast(precision):
                loss = optimizer.watch(F.cross_entropy(model(inputs[part]), targets[part]))
            (loss / accumulate).backward()
        if last:
            optimizer.step()
            optimizer.zero_grad()
    return witness.worst(gradient=GRADIENT[precision])


def hf_trainer(precision: str, accumulate: int) -> float:
    """The HF Trainer, which averages over the tokens of all processes."""
    size = int(os.environ["WORLD_SIZE"])
    model = language.tiny()
    optimizer, twin = optimizer_for(model), language.tiny()
    witness = Witness(optimizer, language.token_mean(twin, accumulate, 0.0, precision, size), twin)
    data = language.sequences(accumulate, size)
    options = {"average_tokens_across_devices": True, "ddp_timeout": 60}
    sequential_trainer(model, data, optimizer, precision, accumulate, **options).train()
    return witness.worst(gradient=GRADIENT[precision])


KINDS = {"ddp": ddp, "fsdp2": fsdp2, "hf_trainer": hf_trainer}


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    cells = [(kind, accumulate) for kind in KINDS for accumulate in (1, 4)]
    found = {f"{kind} 32 {accumulate}": KINDS[kind]("32", accumulate) for kind, accumulate in cells}
    dist.destroy_process_group()
    print(json.dumps(found), flush=True)
    os._exit(0)  # torch sometimes aborts on gloo's threads when the interpreter ends (pytorch/pytorch#190489)


if __name__ == "__main__":
    main()
