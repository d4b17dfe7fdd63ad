"""Lines that methods follow instead of the gradient's: along an average, from an average, in another norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._backend.general import average_all_
from .._backend.moves import MOMENTUM, Preconditioner
from .._backend.scalars import TINY, Scalar, as_tensor, bias_correction, maximum, number, store_, where
from .._backend.vector import AVERAGE, add_, add_up, dots, local_real_view, rescale_
from .decision import NONE, Line, store
from .parts import Group, Part, part_of
from .state import LAST_MOMENTUM, check_training

if TYPE_CHECKING:
    from .optimizer import PolyakOptimizer

MODEL: dict[str, float] = {"steps": 0, "loss_average": 0.0, "dot_average": 0.0, "bound_average": 0.0}
MODEL |= {"learned_lower_bound": -math.inf}


def measure(method: PolyakOptimizer, line: Line, parts: list[Part], groups: list[Group], norm: Any) -> Line:
    """Return the line that the method follows; RuntimeError if ‖g‖² was given as `norm`, but more is needed.

    A batch that is not finite leaves every buffer and scalar as it was, and makes a line that is NaN.
    """
    if norm is not None and not method.takes_norm:
        raise RuntimeError(
            f"{type(method).__name__} needs more of the whole gradient than grad_sq_norm: leave it out, and give this "
            "optimizer all parameters with gradients that are not clipped."
        )
    names = [*method.averages()]
    scalars: dict[str, Any] = {}
    if not any([part.params for part in parts]):
        return line
    if all([part.numbers for part in parts]):
        line, skip = line.as_numbers(), None
        if not all(map(math.isfinite, line)):  # a slope that is not needed may not have been measured
            return line._replace(value=math.nan, slope=line.slope if method.needs_norm else math.nan)
        for name in names:
            scalars[name] = groups[0][name].item() if groups[0][name].dim() == 0 else groups[0][name]
    else:
        line = line.on(groups[0]["step_size"])
        skip = ~torch.isfinite(line.value + line.slope * 0.0 + line.lower_bound)
        for name in names:
            scalars[name] = groups[0][name].to(line.value.dtype)  # counts, too: β ** count would be float32
    for part in parts:
        part.skip, part.state = skip, method.state
    line = method.linearize(line, parts, scalars)
    if skip is None and forget_unless_finite(parts):
        return line._replace(value=math.nan)
    for name in names:
        store(groups, name, scalars[name], skip)
    return line if skip is None else line._replace(value=torch.where(skip, math.nan, line.value))


def forget_unless_finite(parts: list[Part]) -> bool:
    """Drop averages that a move would store if ‖g‖², measured together with them, is not finite; return whether."""
    refused = not math.isfinite(sum([part.gradient_squares for part in parts]))
    for part in parts if refused else ():
        part.forget_averages()
        part.apart = None
    return refused


def count_steps(self: PolyakOptimizer) -> dict[str, float]:
    """The number of steps, for methods that average nothing else."""
    return {"steps": 0}


def dampened(self: PolyakOptimizer, line: Line, parts: list[Part], averages: dict[str, Any]) -> Line:
    """Return the line along the gradient; the heavy ball takes (1 − μ)γ, so that one gradient moves x by γ in all."""
    for part in parts:
        part.divisor = 1.0 / (1.0 - part.mu)
    return line


# Methods that average their iterates keep no z: after a step it is z = x + av, where `extrapolation(group)` is a.


def iterate_average(line: Line, parts: list[Part], t: Scalar = 0) -> Line:
    """Return the line from z where x ← (λx + z) / (1 + λ) is a moving average of z, with λ = μ / (1 − μ), or t.

    x moves as a heavy ball v does, since z − x = λv with the λ of the step before.
    """
    for part in parts:
        before, now = part.group[LAST_MOMENTUM], part.group["momentum"]
        part.apart = weight_of_x(number(before) if part.numbers else before, t - 1)
        part.divisor = 1.0 + weight_of_x(now, t)
        part.mu = part.apart / part.divisor
    return line._replace(value=line.value + along_momentum(parts, [part.apart for part in parts]))


def weight_of_x(momentum: Any, t: Scalar) -> Any:
    """Return the weight λ of x in x ← (λx + z) / (1 + λ): μ / (1 − μ), or t without a momentum."""
    return t if momentum is None else momentum / (1.0 - momentum)


def weight_after(group: Group) -> Any:
    """Return the λ of the last step."""
    t = group["steps"].to(group["step_size"].dtype) if "steps" in group else 0.0
    return weight_of_x(group[LAST_MOMENTUM], t)


def after_move(self: Any, parts: list[Part], decisions: Sequence[Any]) -> None:
    """Learn the bound, and keep what z of methods that average their iterates is computed from."""
    if "learn_lower_bound" in self.shared and parts[0].group["learn_lower_bound"]:
        learn(self.param_groups, parts, decisions)
    for part in parts:
        if part.apart is None:
            continue
        note_momentum(part)
        if len(part.params) < len(part.group["params"]):
            keep_idle(part, self.extrapolation(part.group))


def note_momentum(part: Part) -> None:
    """Keep the momentum with which a step averages, since the option may change before z is asked for again."""
    group = part.group
    last, now = group[LAST_MOMENTUM], group["momentum"] if part.next_beta is None else part.next_beta
    if part.skip is None or not (isinstance(last, Tensor) or isinstance(now, Tensor) or last != now):
        group[LAST_MOMENTUM] = now
        return
    like = group["step_size"]
    t = group["steps"].to(like.dtype) if "steps" in group else 0.0
    before, now = (as_tensor(t / (1.0 + t) if beta is None else beta, like) for beta in (last, now))
    now = torch.where(part.skip.to(like.device), before, now)
    if isinstance(last, Tensor):
        store_(last, now)  # a captured graph reads this very tensor
    else:
        group[LAST_MOMENTUM] = now


def keep_idle(part: Part, a: Scalar) -> None:
    """Keep x and z of what has no gradient, although z − x = av and y = x + (1 − β)(z − x) have another a and β."""
    idle = [p for p in part.group["params"] if p.grad is None and p in part.state and MOMENTUM in part.state[p]]
    if not idle:
        return
    v, beta = [local_real_view(part.state[p][MOMENTUM]) for p in idle], part.group[LAST_MOMENTUM]
    a, beta = (number(a), number(beta)) if part.numbers else (a, beta)
    if part.form.holds_y and (isinstance(beta, Tensor) or beta != part.beta):
        add_([local_real_view(p) for p in idle], v, (part.beta - beta) * part.apart, foreach=part.group["foreach"])
    ratio = where(a > 0, part.apart / where(a > 0, a, 1.0), 0.0)
    if isinstance(ratio, Tensor) or ratio != 1.0:
        rescale_(v, ratio)


def along_momentum(parts: Sequence[Part], factors: Sequence[Any]) -> Scalar:
    """Return Σ a⟨g, v⟩ with a factor a for each part that has a momentum buffer v."""
    pairs = [(part, a) for part, a in zip(parts, factors, strict=True) if MOMENTUM in part.buffers]
    having = [part for part, _ in pairs]
    products = dots(having, [part.g for part in having], [part.buffers[MOMENTUM] for part in having])
    return add_up([a * dot for (_, a), dot in zip(pairs, products, strict=True)], parts[0].group["step_size"])


def schedule_free(line: Line, parts: list[Part], c_before: Scalar, c: Scalar) -> Line:
    """Return the line from z where x ← (1 − c)x + cz averages, and gradients are taken at y = βx + (1 − β)z.

    The parameters hold y. One buffer v is enough, from which z − x = (1 − c)v after a step.
    """
    for part in parts:
        check_training(part.group)
        last = part.group[LAST_MOMENTUM]
        part.beta = number(last) if part.numbers else last * 1.0  # a copy, since `note_momentum` changes the tensor
        part.mu = 1.0 - c_before
        part.apart, part.ahead = part.mu, part.group["momentum"] * (1.0 - c)
    return line._replace(value=line.value + along_momentum(parts, [part.beta * part.mu for part in parts]))


def any_time(line: Line, parts: list[Part], averages: dict[str, Any]) -> Line:
    """Return the same with c = 1/(t + 1), so that x is the mean of all z; count t."""
    t = averages["steps"] = averages["steps"] + 1
    return schedule_free(line, parts, 1.0 / t, 1.0 / (t + 1))


def share_before_last(group: Group) -> Scalar:
    """Return the 1 − c of the last step of `any_time`."""
    t = group["steps"].to(group["step_size"].dtype)
    share: Scalar = t / (t + 1)
    return share


def adam(group: Group, correction: Any, steps: Any = 0) -> Preconditioner:
    """Return Adam's D; ε = 0 becomes the smallest number, so that a coordinate whose gradients are all 0 stays."""
    return Preconditioner(correction, max(group["eps"], TINY[torch.float32]), steps)


def precondition(line: Line, parts: list[Part], k: Scalar, beta2: float) -> Line:
    """Average the squares of the gradients, and return the line along D⁻¹g."""
    for part in parts:
        part.preconditioner = adam(part.group, bias_correction(beta2, k), k)
    squares = [products.sum_squares for products in average_all_(parts, None, beta2, deferred=True)]
    return line._replace(slope=add_up(squares, parts[0].group["step_size"]))


def averaged(
    line: Line,
    parts: list[Part],
    averages: dict[str, Any],
    beta: Scalar,
    rho: Scalar,
    beta2: float | None = None,
) -> Line:
    """Return the line of an average of linear models, along the average d of the gradients.

    At y, the average of f + ⟨g, y − x⟩ over the batches is f̄ + ⟨d, y⟩ − p̄, where p̄ is the average of ⟨g, x⟩. Weight
    decay λ makes its minimiser start from x / s, where s = 1 + lr·λ (MoMo, section 4). All is divided by ρ. Decoupled
    weight decay is AdamW's.
    """
    like, rows = parts[0].group["step_size"], []
    measured = average_all_(parts, beta, beta2, with_x=True, deferred=True)
    for part, products in zip(parts, measured, strict=True):
        decay = number(decay_of(part.group)) if part.numbers else decay_of(part.group)
        s, decoupled = 1.0 + decay, beta2 is not None and part.group["decoupled_weight_decay"]
        part.u, part.squares = part.buffers[AVERAGE], products.sum_squares / rho**2
        part.divisor = rho if decoupled else rho * s
        if part.group["weight_decay"]:
            part.decay = 1.0 - decay if decoupled else 1.0 / s
        g_x, d_x, absent = products.gradient_dot_x, products.direction_dot_x, absent_dot_x(part)
        rows.append((g_x + absent, d_x / s + absent, d_x + absent, part.squares))
    g_x, d_x, d_x_undecayed, squares = (add_up(column, like) for column in zip(*rows, strict=True))
    loss = averages["loss_average"] = beta * averages["loss_average"] + (1.0 - beta) * line.value
    dot = averages["dot_average"] = beta * averages["dot_average"] + (1.0 - beta) * g_x
    parts[0].model = (loss + d_x_undecayed - dot) / rho
    return Line((loss + d_x - dot) / rho, squares, average_bound(line, parts, averages, beta, rho))


def mean_model(line: Line, parts: list[Part], averages: dict[str, Any], beta: Scalar, beta2: Any = None) -> Line:
    """Return the value at x of the average of linear models, in one scalar h = f̄ − p̄; its slope is the method's own.

    The direction is the average m of the gradients; weight decay is AdamW's.
    """
    like, measured = parts[0].group["step_size"], average_all_(parts, beta, beta2, with_x=True)
    for part, products in zip(parts, measured, strict=True):
        part.u, part.squares = part.buffers[AVERAGE], products.sum_squares
        if part.group["weight_decay"]:
            part.decay = 1.0 - decay_of(part.group)
    absent = [absent_dot_x(part) for part in parts]
    g_x, d_x = (add_up([*[products[i] for products in measured], *absent], like) for i in (0, 1))
    h = averages["model_average"] = beta * averages["model_average"] + (1.0 - beta) * (line.value - g_x)
    return line._replace(value=h + d_x, lower_bound=average_bound(line, parts, averages, beta))


def absent_dot_x(part: Part) -> Scalar:
    """Return ⟨d, x⟩ of the parameters that have no gradient in this step, whose average d stands for it and stays."""
    if len(part.params) == len(part.group["params"]):
        return 0.0
    absent = [p for p in part.group["params"] if p.grad is None and p in part.state and AVERAGE in part.state[p]]
    others = part_of(part.group, absent, absent, {AVERAGE: [part.state[p][AVERAGE] for p in absent]})
    return others.dot(others.x, others.buffers[AVERAGE]) if absent else 0.0


def average_bound(line: Line, parts: list[Part], averages: dict[str, Any], beta: Scalar, rho: Scalar = 1.0) -> Scalar:
    """Average the bounds of calls as a model averages their losses; a bound that is an option stays as it is."""
    bound = line.above(parts[0]).lower_bound
    average = averages["bound_average"] = beta * averages["bound_average"] + (1.0 - beta) * bound
    return line.lower_bound if line.lower_bound is NONE else average / rho


def learned(line: Line, parts: list[Part], averages: dict[str, Any]) -> Line:
    """Return the line above the learned bound, which a model below it halves (MoMo*, section 4.2)."""
    floor = parts[0].floor = line.above(parts[0]).lower_bound
    bound = maximum(averages["learned_lower_bound"], floor)
    bound = where(line.value < bound, maximum(line.value / 2, floor), bound)
    averages["learned_lower_bound"] = bound
    return line._replace(lower_bound=bound)


def learn(groups: list[Group], parts: list[Part], decisions: Sequence[Any]) -> None:
    """Raise the learned bound to what the model can fall to: model − Σ γ‖d‖² / 2 (MoMo*, section 4.2)."""
    skip = decisions[0].skip
    if skip is not True:
        like = groups[0]["step_size"]
        falls = [decided.gamma * part.squares for decided, part in zip(decisions, parts, strict=True)]
        bound = maximum(parts[0].model - add_up(falls, like) / 2, parts[0].floor)
        store(groups, "learned_lower_bound", bound, None if skip is False else skip)


def growth(group: Group) -> Any:
    """Return s = 1 + lr·λ."""
    return 1.0 + decay_of(group)


def decay_of(group: Group) -> Any:
    """Return lr·λ, the share of x that decays in a step; 0 without weight decay, even without a cap."""
    return group["lr"] * group["weight_decay"] if group["weight_decay"] else 0.0


def after_first(beta: float, k: Scalar) -> Any:
    """Return β, or 0 in the first step, from which averages begin."""
    return beta * (k > 1).to(k.dtype) if isinstance(k, torch.Tensor) else beta if k > 1 else 0.0
