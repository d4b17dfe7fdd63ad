"""Time the step of this version against another version's, by turns in one process, and print the ratios.

    python benchmarks/versions.py CHECKOUT [--model resnet34] [--rounds 15] [--threads 2] [--device cpu] [--out FILE]

CHECKOUT is a worktree of the other version (`git worktree add ../before COMMIT`); its package is imported under another
name. Both move the same parameters. A ratio is the median over rounds of our time over theirs in the same round; the
quartiles stand behind it.
"""

import importlib.util
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import polyak
from contestants import MOMENTUM, Parameters, fill, parameters
from models import SHAPES
from timing import Step, by_turns, headline, parser

CELLS: dict[str, tuple[dict[str, Any], float | None]] = {
    f"{momentum}{ball}{path}": ({**moving, **chosen}, radius)
    for momentum, moving in (
        ("no momentum", {}),
        ("momentum", MOMENTUM),
        ("adjusted", {**MOMENTUM, "adjusted_momentum": True}),
    )
    for ball, radius in (("", None), (", ball inactive", 1e6), (", ball active", 1.0))
    for path, chosen in (
        ("", {}),
        (", fused", {"fused": True}),
        (", foreach", {"foreach": True}),
        (", loop", {"foreach": False}),
    )
}


def other_version(checkout: Path) -> ModuleType:
    """Import the package of another checkout under a name of its own."""
    folder = checkout / "src" / "polyak"
    if not (folder / "__init__.py").is_file():
        raise SystemExit(f"{checkout} has no src/polyak: give a checkout of another version.")
    spec = importlib.util.spec_from_file_location(
        "polyak_before", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    sys.modules["polyak_before"] = module
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def maker(package: ModuleType, options: dict[str, Any], radius: float | None) -> Callable[[Parameters], Step]:
    """Return what makes ALI-G's step with one version of the package."""

    def make(own: Parameters) -> Step:
        constraint = None if radius is None else package.L2Ball(radius)
        optimizer = package.ALIG(own, lr=0.1, constraint=constraint, **options)
        loss = torch.ones((), device=own[0].device)
        return lambda: optimizer.step(loss=loss)

    return make


def measure(before: ModuleType, model: str, rounds: int, device: str) -> Table:
    """Time both versions in every cell."""
    own = parameters(model, device)
    table = Table(
        "ALI-G", "this / that", "quartiles", title=f"{model}: {sum(p.numel() for p in own) / 1e6:.2f} million numbers"
    )
    for name, (options, radius) in CELLS.items():
        fill(own)
        steps = [maker(package, options, radius)(own) for package in (polyak, before)]
        ratios = [ours / theirs for ours, theirs in zip(*by_turns(steps, rounds, device), strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        table.add_row(name, f"{middle:.2f}", f"{low:.2f} to {high:.2f}")
    return table


def main() -> None:
    """Time the chosen models."""
    options = parser(__doc__)
    options.add_argument("checkout", type=Path)
    options.add_argument("--model", action="append", choices=list(SHAPES), help="default: all of them")
    chosen = options.parse_args()
    before, console = other_version(chosen.checkout), Console(record=True, width=120)
    console.print(f"{headline(chosen)} (20 times as many for the mlp)", highlight=False)
    for model in chosen.model or SHAPES:
        console.print(measure(before, model, chosen.rounds * (20 if model == "mlp" else 1), chosen.device))
    if chosen.out is not None:
        chosen.out.write_text(console.export_text())


if __name__ == "__main__":
    main()
