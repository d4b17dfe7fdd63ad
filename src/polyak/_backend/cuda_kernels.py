"""fused=True on CUDA: Triton kernels that take all tensors of a kind in one launch.

A kernel finds its tensors in a table of addresses, so that the number of tensors does not matter. A program takes one
span of one tensor, and leaves the sum of squares of its span in a place of its own: nothing depends on the order in
which programs run. γ and the mask `skip` are read on the device, so the host never waits.
"""

from __future__ import annotations

import triton
import triton.language as tl

SPAN = tl.constexpr(4096)  # numbers per program
BLOCK = tl.constexpr(1024)  # numbers at a time


@triton.jit
def _load(x, i, size, FULL: tl.constexpr, ACC: tl.constexpr):
    # A full span needs no mask, which lets the compiler load 16 bytes at a time.
    if FULL:
        return tl.load(x + i).to(ACC)
    return tl.load(x + i, mask=i < size, other=0.0).to(ACC)


@triton.jit
def _store(x, i, value, size, FULL: tl.constexpr, TYPE: tl.constexpr):
    """Store numbers in the tensor's type, and return what can be read there now."""
    rounded = value.to(TYPE)
    if FULL:
        tl.store(x + i, rounded)
    else:
        tl.store(x + i, rounded, mask=i < size)
    return rounded.to(value.dtype)


@triton.jit
def _pointer(table, tensor, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = tl.load(table + tensor).to(tl.pointer_type(TYPE))
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer


@triton.jit
def _measure_span(x, first, size, FULL: tl.constexpr, ACC: tl.constexpr):
    total = tl.zeros((BLOCK,), ACC)
    for start in range(0, SPAN, BLOCK):
        here = _load(x, first + start + tl.arange(0, BLOCK), size, FULL, ACC)
        total += here * here
    return tl.sum(total, 0)


@triton.jit
def measure(sizes, owner, begin, x_table, sums, X: tl.constexpr, ACC: tl.constexpr, ALIGNED: tl.constexpr):
    """Write the Σx² of every span."""
    program = tl.program_id(0)
    tensor, first = tl.load(owner + program), tl.load(begin + program) * SPAN
    size, x = tl.load(sizes + tensor), _pointer(x_table, tensor, X, ALIGNED)
    if first + SPAN <= size:
        tl.store(sums + program, _measure_span(x, first, size, True, ACC))
    else:
        tl.store(sums + program, _measure_span(x, first, size, False, ACC))


@triton.jit
def _scale_span(x, a, first, size, FULL: tl.constexpr, X: tl.constexpr, ACC: tl.constexpr):
    for start in range(0, SPAN, BLOCK):
        i = first + start + tl.arange(0, BLOCK)
        _store(x, i, a * _load(x, i, size, FULL, ACC), size, FULL, X)


@triton.jit
def scale(sizes, owner, begin, x_table, factor, X: tl.constexpr, ACC: tl.constexpr, ALIGNED: tl.constexpr):
    """x ← a·x; programs that find a = 1 touch nothing."""
    a = tl.load(factor).to(ACC)
    if a != 1.0:
        program = tl.program_id(0)
        tensor, first = tl.load(owner + program), tl.load(begin + program) * SPAN
        size, x = tl.load(sizes + tensor), _pointer(x_table, tensor, X, ALIGNED)
        if first + SPAN <= size:
            _scale_span(x, a, first, size, True, X, ACC)
        else:
            _scale_span(x, a, first, size, False, X, ACC)


@triton.jit
def _divided(u, s, root, eps):
    """Return u / (ε + √s / root); float64 has one kind of division, float32 needs the one that rounds correctly."""
    if u.dtype.is_fp64():
        return u / (tl.sqrt(s) / root + eps)
    return tl.div_rn(u, tl.div_rn(tl.sqrt_rn(s), root) + eps)


@triton.jit
def _average_span(
    x, g, d, s, sums, coefficients, first, size, AVERAGED: tl.constexpr, SQUARED: tl.constexpr, WITH_X: tl.constexpr,
    FULL: tl.constexpr, V: tl.constexpr, S: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    beta, w, beta2 = tl.load(coefficients), tl.load(coefficients + 1), tl.load(coefficients + 2)
    w2, root, eps = tl.load(coefficients + 3), tl.load(coefficients + 4), tl.load(coefficients + 5)
    g_x, u_x, squares = tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC), tl.zeros((BLOCK,), ACC)
    for start in range(0, SPAN, BLOCK):
        i = first + start + tl.arange(0, BLOCK)
        g_here = _load(g, i, size, FULL, ACC)
        u_here = g_here
        if AVERAGED:
            kept = (beta * _load(d, i, size, FULL, ACC)).to(V).to(ACC)
            u_here = _store(d, i, kept + w * g_here, size, FULL, V)
        dual = u_here
        if SQUARED:
            kept = beta2 * _load(s, i, size, FULL, ACC)
            divisor = _store(s, i, kept + w2 * g_here * g_here, size, FULL, S)
            dual = _divided(u_here, divisor, root, eps)
            dual = dual if FULL else tl.where(i < size, dual, 0.0)  # 0 / 0 beyond the end if ε is 0
        if WITH_X:
            x_here = _load(x, i, size, FULL, ACC)
            g_x += g_here * x_here
            u_x += u_here * x_here
        squares += u_here * dual
    programs, program = tl.num_programs(0), tl.program_id(0)
    tl.store(sums + program, tl.sum(g_x, 0))
    tl.store(sums + programs + program, tl.sum(u_x, 0))
    tl.store(sums + 2 * programs + program, tl.sum(squares, 0))


@triton.jit
def average(
    sizes, owner, begin, x_table, u_table, v_table, s_table, sums, skip, coefficients,
    AVERAGED: tl.constexpr, SQUARED: tl.constexpr, WITH_X: tl.constexpr,
    X: tl.constexpr, U: tl.constexpr, V: tl.constexpr, S: tl.constexpr, ACC: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Average the gradients and their squares, unless `skip`, and write three sums of every span: see `Products`."""
    program = tl.program_id(0)
    if tl.load(skip):
        for row in range(3):
            tl.store(sums + row * tl.num_programs(0) + program, tl.full((), 0.0, ACC))
    else:
        tensor, first = tl.load(owner + program), tl.load(begin + program) * SPAN
        size, x = tl.load(sizes + tensor), _pointer(x_table, tensor, X, ALIGNED)
        g, d = _pointer(u_table, tensor, U, ALIGNED), _pointer(v_table, tensor, V, ALIGNED)
        s = _pointer(s_table, tensor, S, ALIGNED)
        if first + SPAN <= size:
            _average_span(x, g, d, s, sums, coefficients, first, size, AVERAGED, SQUARED, WITH_X, True, V, S, ACC)
        else:
            _average_span(x, g, d, s, sums, coefficients, first, size, AVERAGED, SQUARED, WITH_X, False, V, S, ACC)


@triton.jit
def _move_span(
    x, u, v, s, a, mu, coefficients, first, size,
    FORM: tl.constexpr, DECAYED: tl.constexpr, DIVIDED: tl.constexpr, FULL: tl.constexpr,
    X: tl.constexpr, V: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Move one span as `_moves` says it, with a = −γ, and return its new Σx²."""
    total = tl.zeros((BLOCK,), ACC)
    for start in range(0, SPAN, BLOCK):
        i = first + start + tl.arange(0, BLOCK)
        x_here, u_here = _load(x, i, size, FULL, ACC), _load(u, i, size, FULL, ACC)
        if DECAYED:
            x_here = (tl.load(coefficients) * x_here).to(X).to(ACC)
        if DIVIDED:
            s_here = _load(s, i, size, FULL, ACC)
            u_here = _divided(u_here, s_here, tl.load(coefficients + 1), tl.load(coefficients + 2))
        moved = x_here + a * u_here
        if FORM != "plain":
            kept = (mu * _load(v, i, size, FULL, ACC)).to(V).to(ACC)
            fresh = -u_here if FORM == "adjusted" else a * u_here
            momentum = _store(v, i, kept + fresh, size, FULL, V)
            if FORM == "heavy_ball":
                moved = x_here + momentum
            else:
                weight = mu if FORM == "nesterov" else -a * mu
                moved = moved.to(X).to(ACC) + weight * momentum
        moved = _store(x, i, moved, size, FULL, X)
        total += moved * moved if FULL else tl.where(i < size, moved * moved, 0.0)
    return tl.sum(total, 0)


@triton.jit
def move(
    sizes, owner, begin, x_table, u_table, v_table, s_table, sums, gamma, keep, skip, coefficients,
    FORM: tl.constexpr, DECAYED: tl.constexpr, DIVIDED: tl.constexpr,
    X: tl.constexpr, U: tl.constexpr, V: tl.constexpr, S: tl.constexpr, ACC: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Move every span, or only let its momentum decay where the step is skipped, and write its new Σx²."""
    program = tl.program_id(0)
    tensor, first = tl.load(owner + program), tl.load(begin + program) * SPAN
    size, x = tl.load(sizes + tensor), _pointer(x_table, tensor, X, ALIGNED)
    full = first + SPAN <= size
    if tl.load(skip):
        tl.store(sums + program, _measure_span(x, first, size, False, ACC))
        if FORM != "plain":
            decay = tl.load(keep).to(ACC)
            if decay != 1.0:
                _scale_span(_pointer(v_table, tensor, V, ALIGNED), decay, first, size, False, V, ACC)
    else:
        u, v = _pointer(u_table, tensor, U, ALIGNED), _pointer(v_table, tensor, V, ALIGNED)
        s = _pointer(s_table, tensor, S, ALIGNED)
        a, mu = -tl.load(gamma).to(ACC), tl.load(keep).to(ACC)  # which is μ, since the step is not skipped
        if full:
            total = _move_span(x, u, v, s, a, mu, coefficients, first, size, FORM, DECAYED, DIVIDED, True, X, V, ACC)
        else:
            total = _move_span(x, u, v, s, a, mu, coefficients, first, size, FORM, DECAYED, DIVIDED, False, X, V, ACC)
        tl.store(sums + program, total)
