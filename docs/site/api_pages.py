"""The pages of the API, one for every public name, so that a new method needs no line here."""

import inspect
from pathlib import Path

import polyak
from polyak_lab.config.names import method_name

MEMBERS = {polyak.PolyakOptimizer: "step, watch, last_step, zero_grad, add_param_group, state_dict, load_state_dict"}
MEMBERS[polyak.PolyakOptimizer] += ", step_size, memory, averages, buffers, form"
HOOKS = "step_size, memory, averages, buffers, linearize"
INTRODUCTION = Path(__file__).parents[1] / "api" / "index.md"
COMMON = """
It also has the methods of {py:class}`~polyak.PolyakOptimizer`: {py:meth}`~polyak.PolyakOptimizer.step`,
{py:meth}`~polyak.PolyakOptimizer.watch`, {py:meth}`~polyak.PolyakOptimizer.last_step`
and those of every torch optimizer.
"""
DICTS = "\nThe option types are for the signatures of [your own methods](../design.md#a-method-of-your-own).\n"


def page(name: str) -> str:
    """Return the page of a public name."""
    thing, lines = getattr(polyak, name), [f"# {name}", ""]
    if not inspect.isclass(thing):
        return "\n".join([*lines, _directive("autofunction", name)])
    members = MEMBERS.get(thing)
    if issubclass(thing, polyak.Constraint):
        members = "project_"
    elif thing is polyak.Line:
        members = "gap"
    text = [*lines, _directive("autoclass", name, members)]
    if issubclass(thing, polyak.PolyakOptimizer) and thing is not polyak.PolyakOptimizer:
        text.append(COMMON)
    return "\n".join([*text, DICTS] if issubclass(thing, dict) else text)


def _directive(kind: str, name: str, members: str | None = None) -> str:
    option = f"   :members: {members}\n" if members else ""
    return f"```{{eval-rst}}\n.. {kind}:: polyak.{name}\n{option}```\n"


def kinds() -> dict[str, list[str]]:
    """Sort the public names: methods, constraints, and the rest."""
    sorted_names: dict[str, list[str]] = {"Methods": [], "Constraints": [], "More": []}
    for name in polyak.__all__:
        thing = getattr(polyak, name)
        is_method = inspect.isclass(thing) and issubclass(thing, polyak.PolyakOptimizer)
        is_set = inspect.isclass(thing) and issubclass(thing, polyak.Constraint)
        sorted_names["Methods" if is_method else "Constraints" if is_set else "More"].append(name)
    return sorted_names


def index() -> str:
    """Return the page that lists all of them, each with its first sentence."""
    text = [INTRODUCTION.read_text(encoding="utf-8")]
    for kind, names in kinds().items():
        more = ["in a recipe", "default `lr`"] if kind == "Methods" else []
        columns = ["name", "what it is", *more]
        text += [f"## {kind}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        text += [f"| {' | '.join(_row(name)[: len(columns)])} |" for name in names]
        text += ["", "```{toctree}", ":hidden:", "", *names, "```", ""]
    return "\n".join([*text, *INTEGRATIONS])


INTEGRATIONS = ["## Frameworks", "", "```{toctree}", ":maxdepth: 1", "", "integrations", "```", ""]


def _row(name: str) -> list[str]:
    """Return the cells of a name: its page, what it is and, of a method, its name in a recipe and its default lr."""
    thing, cells = getattr(polyak, name), [f"[`{name}`]({name}.md)", _first_sentence(name)]
    if not thing.__module__.startswith("polyak.methods."):
        return [*cells, "", ""]
    lr = inspect.signature(thing).parameters["lr"].default
    return [*cells, f"`{method_name(thing.__module__)}`", f"{lr:g}"]


def _first_sentence(name: str) -> str:
    return inspect.cleandoc(getattr(polyak, name).__doc__).splitlines()[0].replace("|", "\\|")


def pages() -> dict[str, str]:
    """Return every page below api/ by its name."""
    return {"index": index(), **{name: page(name) for name in polyak.__all__}}
