"""The command line, in whose runs something breaks after their first epoch: the seed says what."""

import contextlib
import os
import signal
import time

import torch

from polyak_lab.cli.app import main
from polyak_lab.errors import LabError
from polyak_lab.training import loop


def out_of_memory():
    torch.empty(1 << 60)


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def crashed():
    os.kill(os.getpid(), signal.SIGSEGV)


def ended():
    os._exit(7)


def broken():
    raise ValueError("a fault of ours\nin [two] lines.")


def unreadable():
    raise LabError("The file x cannot be read.")


def killed_with_a_child():
    if os.fork():
        killed()
    time.sleep(60)  # meanwhile the child keeps what it inherited open
    os._exit(0)


def hung():
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(1)


FAULTS = {1: out_of_memory, 2: killed, 3: crashed, 4: ended, 5: broken, 6: unreadable, 8: killed_with_a_child, 9: hung}

train_epoch = loop.train_epoch


def faulty_epoch(session, step, epoch, progress):
    if epoch == 1:
        FAULTS.get(session.run.training.seed, int)()
    return train_epoch(session, step, epoch, progress)


loop.train_epoch = faulty_epoch  # in the workers as well: each of them imports this file

if __name__ == "__main__":
    main()
