"""Framework × precision × accumulation: the loss that reached the step is the objective whose gradient it used."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest

import loops

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore")]

PAGE = Path(__file__).parent.parent.parent / "docs" / "loss-table.md"
LIMIT = 1e-6


class Cell(NamedTuple):
    """One loop in one setting."""

    loop: str
    run: Callable[[str, int], float]
    precision: str
    accumulate: int
    on_gpu: bool = False


def cells() -> Iterator[Cell]:
    def row(loop: str, run: Callable[..., float], *precisions: str, gpu: tuple[str, ...] = ()) -> Iterator[Cell]:
        for precision in (*precisions, *gpu):
            for accumulate in (1, 4):
                yield Cell(loop, run, precision, accumulate, precision in gpu)

    yield from row("own loop, `watch`", loops.plain, "32", "bf16")
    yield from row("own loop, `GradScaler`, `watch`", loops.grad_scaler, "16")
    yield from row("own loop, `GradScaler`, `loss=`", loops.grad_scaler_keyword, "16")
    yield from row("DDP, 2 processes, `watch`", loops.over_processes("ddp"), "32")
    yield from row("FSDP2, 2 processes, `watch`", loops.over_processes("fsdp2"), "32")
    yield from row("Lightning Trainer", loops.lightning, "32", "bf16", "16")
    yield from row("Lightning Trainer, `watch`", partial(loops.lightning, by_hand=True), "32", "bf16", "16")
    yield from row("Fabric", loops.fabric, "32", "bf16", "16")
    yield from row("Fabric, `watch`", partial(loops.fabric, by_hand=True), "32", "bf16", "16")
    yield from row("HF Trainer", loops.hf_trainer, "32", "bf16", gpu=("16",))
    yield from row("HF Trainer, label smoothing", loops.hf_trainer_smoothed, "32", "bf16", gpu=("16",))
    yield from row("HF Trainer, 2 processes", loops.over_processes("hf_trainer"), "32")
    yield from row("HF Trainer, `watch`", partial(loops.hf_trainer, by_hand=True), "32", "bf16", gpu=("16",))
    yield from row("Accelerate", loops.accelerate, "32", "bf16", gpu=("16",))
    yield from row("Accelerate, `watch`", partial(loops.accelerate, by_hand=True), "32", "bf16", gpu=("16",))


CELLS = list(cells())
MARKS = {False: (), True: (pytest.mark.gpu,)}
found: dict[Cell, float] = {}


@pytest.mark.parametrize(
    "cell",
    [pytest.param(c, id=f"{c.loop}-{c.precision}-{c.accumulate}", marks=MARKS[c.on_gpu]) for c in CELLS],
)
def test_the_loss_that_reached_the_step_is_the_objective(cell):
    run = partial(cell.run, device="cuda") if cell.on_gpu else cell.run
    found[cell] = run(cell.precision, cell.accumulate)
    assert found[cell] <= LIMIT


def test_the_page_shows_what_was_measured():
    if missing := [cell for cell in CELLS if not cell.on_gpu and cell not in found]:
        pytest.skip(f"the page is written when all cells were measured in one process, but {len(missing)} were not")
    page = render()
    before = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    PAGE.write_text(page, encoding="utf-8")
    assert skeleton(before) == skeleton(page), f"{PAGE.name} was out of date and is written anew: commit it"


def skeleton(page: str) -> str:
    """Leave out what another machine may round to another power of ten."""
    return re.sub(r"< 1e-\d", "<", page)


def render() -> str:
    packages = ("torch", "lightning", "transformers", "accelerate")
    lines = [HEAD.format(versions=", ".join(f"{name} {version(name).split('+')[0]}" for name in packages))]
    rows = dict.fromkeys((cell.loop, cell.precision) for cell in CELLS)
    for loop, precision in rows:
        shown = [said(cell) for cell in CELLS if (cell.loop, cell.precision) == (loop, precision)]
        lines.append(f"| {loop} | {PRECISIONS[precision]} | {' | '.join(shown)} |")
    return "\n".join([*lines, "", NOTE, ""])


HEAD = """\
# The loss that reached the step

`make test-frameworks` writes this page. A cell is the largest relative error, over five steps, of the loss that reached
the step against the true objective of that step: the mean over all its samples (in the HF rows over all its tokens) of
all micro-batches and processes, computed by other code at the same weights. The gradient of that objective is checked
to be the one that the step used.

Measured with {versions}; float32 rounds at 6e-8.

| loop | precision | 1 micro-batch | 4 micro-batches |
|---|---|---|---|"""
PRECISIONS = {"32": "float32", "bf16": "bfloat16 mixed", "16": "float16 mixed"}
NOTE = (
    "On the CPU the HF Trainer and Accelerate stay in float32 when they are asked for float16: `make test-gpu` holds\n"
    "those cells, and fails above 1e-6."
)


def said(cell: Cell) -> str:
    """Say an error so that rounding on another machine seldom changes it: as the power of ten that it is below."""
    if cell.on_gpu:
        return "on a GPU"
    return f"< 1e{math.ceil(math.log10(max(found[cell], 9e-9)))}"
