"""The command line, cut short: `interrupted.py stop ...` ends the first process before it stores its third epoch,
`interrupted.py memory ...` lets the second process run out of memory there."""

import sys

import torch

from polyak_lab.cli.app import main
from polyak_lab.processes import torchrun
from polyak_lab.runs import checkpoint
from polyak_lab.training import loop

EPOCHS = 2


def stop() -> None:
    save = checkpoint.save

    def save_two(path, session, epochs, *hashes):
        if epochs > EPOCHS:
            raise KeyboardInterrupt
        save(path, session, epochs, *hashes)

    checkpoint.save = save_two


def memory() -> None:
    train_epoch = loop.train_epoch

    def run_out_of_memory(session, step, epoch, progress):
        if epoch == EPOCHS and torchrun.rank() == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return train_epoch(session, step, epoch, progress)

    loop.train_epoch = run_out_of_memory


if __name__ == "__main__":
    {"stop": stop, "memory": memory}[sys.argv[1]]()
    main(sys.argv[2:])
