"""The mpmath reference: the step in as many digits as asked for, gradients through the tape of `linverify.arithmetic`.

Slow (about 1e5 times float64): for small cases, to certify the float64 oracles and to judge float64 kernels.
"""

from typing import Any

import mpmath
import numpy as np

from linverify.arithmetic import MpArray
from linverify.formulas import stack
from linverify.operator import Canonical, Operator
from linverify.problem import Problem
from linverify.reference.question import sizes_of, state_shape


def _segments(problem: Problem, B: int, T: int, steps: int) -> list[tuple[int, int, int]]:
    """(batch row, first step, one past the last step) of every sequence."""
    if not problem.lengths:
        return [(row, 0, T) for row in range(B)]
    ends = steps * np.cumsum(problem.lengths)
    return [(0, int(end - steps * n), int(end)) for n, end in zip(problem.lengths, ends, strict=True)]


def _at(x: MpArray, row: int, t: int) -> MpArray:
    """The [H, D] slice of token t; size-1 axes are broadcast."""
    return x[row if x.shape[0] > 1 else 0, t if x.shape[1] > 1 else 0]


def _step(c: Canonical, state: MpArray, row: int, t: int) -> tuple[MpArray, MpArray]:
    """One token of one sequence: (unscaled o [H, V], new state [H, K, V])."""
    q, k, v = (_at(x, row, t) for x in (c.q, c.k, c.v))
    kept = state if c.log_decay is None else _at(c.log_decay, row, t)[:, :, None].exp() * state
    if c.beta is not None:
        missing = v - (k[:, :, None] * kept).sum(1)
        new = kept + (_at(c.beta, row, t) * k)[:, :, None] * missing[:, None, :]
    else:
        new = kept + k[:, :, None] * v[:, None, :]
    if c.a is not None and c.b is not None:
        seen = state if c.low_rank_on == "undecayed" else kept
        new = new + _at(c.b, row, t)[:, :, None] * (_at(c.a, row, t)[:, :, None] * seen).sum(1)[:, None, :]
    if c.read == "inclusive":
        return (q[:, :, None] * new).sum(1), new
    read = state if c.bonus is None else state + (c.bonus * k)[:, :, None] * v[:, None, :]
    return (q[:, :, None] * read).sum(1), new


def _read(outs: dict[tuple[int, int], MpArray], B: int, T: int) -> MpArray:
    """What was read, [B, T, H, V]."""
    found: MpArray = stack([stack([outs[b, t] for t in range(T)], 0) for b in range(B)], 0)
    return found


def _loss(problem: Problem, o: MpArray, finals: list[MpArray]) -> MpArray:
    """<o, do> + <S_T, dS_T>."""
    loss = MpArray(np.asarray(0))
    for name, found in (("o", [o]), ("state", finals)):
        if name not in problem.cotangents:
            continue
        upstream = problem.cotangents[name].double().numpy()
        for part, cotangent in zip(found, [upstream] if name == "o" else upstream, strict=True):
            loss = loss + (part * cotangent.reshape(part.shape)).reshape(cotangent.size).sum(0)
    return loss


def highprecision(problem: Problem, operator: Operator, *, digits: int = 50) -> dict[str, np.ndarray]:
    """Compute o, state and d<input> of a problem with `digits` decimal digits, as object arrays of mpf.

    Shapes: o [B, T, H, V]; state [N, H, K, V]; gradients as their inputs.
    """
    with mpmath.workdps(digits):
        sizes = sizes_of(problem, operator)
        leaves = {n: MpArray(t.double().numpy()) for n, t in problem.tensors.items()}
        start = problem.initial_state
        initial = MpArray(np.asarray(0) if start is None else start.double().numpy())
        if operator.default_scale is None and problem.scale is None:
            scale: Any = 1 / mpmath.sqrt(sizes["K"])
        else:
            scale = mpmath.mpf(operator.scale_for(sizes) if problem.scale is None else problem.scale)
        if operator.forms:
            given = leaves if start is None else {**leaves, "initial_state": initial}
            o, finals = _definition(problem, operator, given, sizes, scale)
        else:
            o, finals = _stepped(problem, operator, leaves, sizes, scale, None if start is None else initial)
        results = {"o": o.value}
        if problem.final_state:
            results["state"] = np.stack([s.value for s in finals]).reshape(state_shape(operator, problem))
        if problem.cotangents:
            _loss(problem, o, finals).backward()
            for name in problem.wrt:
                leaf = initial if name == "initial_state" else leaves[name]
                zero = np.full(leaf.shape, mpmath.mpf(0), dtype=object)
                results[f"d{name}"] = zero if leaf.grad is None else leaf.grad
        return results


def _stepped(
    problem: Problem,
    operator: Operator,
    leaves: dict[str, MpArray],
    sizes: dict[str, int],
    scale: Any,
    initial: MpArray | None,
) -> tuple[MpArray, list[MpArray]]:
    """O and the final states [H, K, V] of a recurrence, sequence by sequence."""
    canonical = operator.recurrence(leaves, sizes)
    T, H, V = canonical.v.shape[1:]
    segments = _segments(problem, sizes["B"], T, T // sizes["T"])
    shape = len(segments), H, canonical.q.shape[-1], V
    begin = MpArray(np.zeros(shape)) if initial is None else initial.reshape(*shape)
    outs: dict[tuple[int, int], MpArray] = {}
    finals: list[MpArray] = []
    for n, (row, first, last) in enumerate(segments):
        state = begin[n]
        for t in range(first, last):
            found, state = _step(canonical, state, row, t)
            outs[row, t] = scale * found
        finals.append(state)
    o = _read(outs, sizes["B"], T)
    return o if operator.readout is None else operator.readout(o, leaves, sizes), finals


def _definition(
    problem: Problem, operator: Operator, leaves: dict[str, MpArray], sizes: dict[str, int], scale: Any
) -> tuple[MpArray, list[MpArray]]:
    """O, and the final states where they are asked for, of an operator that states its forms, dense."""
    if problem.lengths:
        raise ValueError("expected a dense problem: packed sequences of a stated operator are asked one by one")
    o, state = operator.stated(operator.form_names[0], leaves, sizes, scale, final_state=problem.final_state)
    return o, [] if state is None else [state[n] for n in range(sizes["B"])]
