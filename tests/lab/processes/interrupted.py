"""The command line, cut short: `interrupted.py stop ...` ends the first process before it stores its third epoch,
`interrupted.py memory ...` lets the second process run out of memory there."""

import sys

import torch

from polyak_lab.cli.app import main
from polyak_lab.processes import torchrun as launched
from polyak_lab.runs import checkpoint
from polyak_lab.training import loop as train

EPOCHS = 2


def stop() -> None:
    save = checkpoint.save

    def save_two(path, this, epochs, *hashes):
        if epochs > EPOCHS:
            raise KeyboardInterrupt
        save(path, this, epochs, *hashes)

    checkpoint.save = save_two


def memory() -> None:
    steps = train.steps

    def steps_that_fit(this, make_step, epoch, progress):
        if epoch == EPOCHS and launched.rank() == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return steps(this, make_step, epoch, progress)

    train.steps = steps_that_fit


if __name__ == "__main__":
    {"stop": stop, "memory": memory}[sys.argv[1]]()
    main(sys.argv[2:])
