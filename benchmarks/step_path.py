"""Count the way of one warm step through the library: calls of its functions, distinct functions, and files.

    python benchmarks/step_path.py [--walk]

A step of ALI-G with momentum 0.9 and an l2 ball on a small network on the CPU, counted with `sys.setprofile`: how much
a reader has to follow from `step` to the update. `--walk` prints the calls in their order.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

import polyak

HOME = str(Path(polyak.__file__).parent)


def warm_step(**options: Any) -> Callable[[], object]:
    """Return a step that has run before, of six tensors."""
    model = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.Linear(64, 64), torch.nn.Linear(64, 3))
    optimizer = polyak.ALIG(model.parameters(), lr=0.1, momentum=0.9, constraint=polyak.L2Ball(100.0), **options)
    loss = model(torch.ones(1, 20)).square().sum()
    loss.backward()
    for _ in range(3):
        optimizer.step(loss=loss)
    return lambda: optimizer.step(loss=loss)


def walk(step: Callable[[], object]) -> list[CodeType]:
    """Return the library's functions that a step calls, in their order."""
    called: list[CodeType] = []

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(HOME) and not code.co_name.endswith("comp>"):
            called.append(code)

    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(None)
    return called


def counts(called: list[CodeType]) -> tuple[int, int, int]:
    """Return how many calls, functions and files there are."""
    return len(called), len({*called}), len({code.co_filename for code in called})


def main() -> None:
    """Print the counts of the default step and of the fused one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--walk", action="store_true", help="print every call")
    chosen = parser.parse_args()
    for name, options in {"default": {}, "fused": {"fused": True}}.items():
        called = walk(warm_step(**options))
        calls, functions, files = counts(called)
        print(f"{name}: {calls} calls of {functions} functions in {files} files")
        for code in called if chosen.walk else []:
            print(f"  {Path(code.co_filename).relative_to(HOME)}: {code.co_qualname}")


if __name__ == "__main__":
    main()
