"""The analytic variance: how rounding of operands reaches every result, from a few passes over squared values.

A chunkwise kernel rounds operands of products: scores, queries and keys with their decay, written values, the stored state.
Each such error is relative and independent, so the variance of a result is a sum of squares: of scores times values, of queries
times states, forward, and of the same with cotangents, backward. Scores and states are those of the exact recurrence, so a sum
that cancels is small here as it is in a kernel. Everything follows from the folded recurrence: its diagonal decay, what it
writes (keys and values; of a delta operator, what it solved for) and what reads it (queries; of a delta operator, keys too,
with the cotangent of what was solved for; a general low-rank term writes what its a read, with b).

It is a lower bound of the budget's scale, not the budget: a result within it needs no realisations, one beyond it is judged by
them. What a low-rank term does to errors that came before is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from linverify import budget
from linverify.analytic_inputs import by_input
from linverify.analytic_passes import Passes, Read, Write, forward, reader, writer
from linverify.analytic_states import States
from linverify.dtype import BF16, FP16, FP32, TF32
from linverify.fold import Rows
from linverify.noise import SPREAD
from linverify.recipe import power_of_two
from linverify.reference.chunkwise import solved
from linverify.reference.question import Question

# Largest ratio of a statistic to chance that needs no realisation: half the line, since this is an estimate.
LINE = budget.LINE / 2
# How many roundings a term of a sum meets: in bf16 and fp16 one of two operands is exact, but an fp16 kernel may contain TF32
# products, which err twice as far; in TF32 both operands of both products are truncated.
_ROUNDINGS = {"bf16": (BF16, 1.0), "fp16": (FP16, 2.0), "tf32": (TF32, 4.0), "fp32": (FP32, 2.0)}
# A value that a delta operator solves for carries the rounding of the triangle's inverse, too.
_SOLVED = 2.0
# So many times a variance is more than any bias squared, and 0 where nothing is rounded.
_ANY = 2.0**200
# Sums in float32 of what has been rounded before.
_SUMMED = ("log_decay", "beta")


def units(question: Question, precision: str) -> float:
    """Variance of one term's relative error in kernels of a precision class; 0 for a class that is not served."""
    if precision not in _ROUNDINGS:
        return 0.0
    fmt, count = _ROUNDINGS[precision]
    if fmt is FP32:  # nothing is rounded but what float32 accumulates, over K or V terms at least
        count *= 1 + min(question.rows.state.shape[-2:]) / 2
    # a uniform error's variance; its mean, where operands are truncated, is `truncated`
    return count * (SPREAD * fmt.unit_roundoff) ** 2 / (12 if fmt.truncates else 3)


def truncated(question: Question, result: str, precision: str) -> float:
    """Coherent relative bias of products that truncate.

    In TF32 both operands of every product do: of one product on the way to a plain state, of two to other results. In 16 bits
    an operand does that came from no memory: a score or a state, a solved value, what carries a decay or a scale. A state's
    gradient to which no read adds meets none: decays multiply it in float32.
    """
    rows = question.rows
    plain, stored = rows.beta is None and rows.a is None, result in ("state", "dinitial_state")
    if plain and result == "dinitial_state" and question.do is None:
        return 0.0
    if precision == "tf32":
        return (1 if plain and stored else 2) * budget.coherence(precision)
    made = bool(rows.gate) or (result == "dinitial_state" and not power_of_two(question.scale))
    operands = int(made) if plain and stored else 1 + (rows.gate == "channel") if plain else 2
    return operands * budget.coherence(precision)


def _bonus(rows: Rows, upstream: Tensor, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Variances with those of a bonus, whose weight and its cotangent are rounded like a score."""
    u = rows.bonus.detach()[:, None] if rows.bonus is not None else torch.zeros_like(rows.q[:, :1])
    weight, back = (rows.q * u * rows.k).sum(-1, keepdim=True), (upstream * rows.v).sum(-1, keepdim=True)
    return {
        "q": terms["q"] + (u * rows.k * back).square(),
        "k": terms["k"] + (u * rows.q * back).square(),
        "v": terms["v"] + (weight * upstream).square(),
        "bonus": (rows.q * rows.k * back).square().sum(1),
    }


def variances(question: Question, reference: Mapping[str, Tensor], precision: str) -> dict[str, Tensor]:
    """Variance of each result in kernels of a precision class; results that it cannot tell are missing.

    Args:
        question: the folded recurrence.
        reference: exact results; a delta operator needs dv, or gradients but that of q are missing.
        precision: the class.
    """
    unit = units(question, precision)
    if not unit:
        return {}
    with torch.no_grad():
        found, terms = _variances(question, reference, Passes(question, _ROUNDINGS[precision][0]))
        counted = {n: t / (_ROUNDINGS[precision][1] if n in _SUMMED else 1.0) for n, t in terms.items()}
    every = found | by_input(question, counted)
    return biased(question, every, unit, reference, precision)


def biased(
    question: Question, found: Mapping[str, Tensor], unit: float, reference: Mapping[str, Tensor], precision: str
) -> dict[str, Tensor]:
    """Variances, in TF32 with the squares of the biases of products that truncate: there all of them do.

    In 16 bits a result may owe its size to terms that are exact, and it does not tell how
    much of it leans. Filters forgive what does; whatever else it shows in is left to the realisations.
    In few calls, over all results at once: on a GPU each call costs as much as its work.

    Args:
        question: the folded recurrence.
        found: variances in units of one rounding's.
        unit: variance of one term's relative error.
        reference: exact results.
        precision: the class.
    """
    names = list(found)
    variances = torch._foreach_mul(list(found.values()), unit)
    if precision == "tf32":
        most = torch._foreach_mul(variances, _ANY)  # what meets no rounding leans nowhere
        leaning = torch._foreach_mul([reference[n] for n in names], [truncated(question, n, precision) for n in names])
        torch._foreach_minimum_(most, torch._foreach_mul(leaning, leaning))
        torch._foreach_add_(variances, most)
    return dict(zip(names, variances, strict=True))


def _pulled_through(rows: Rows, upstream: Tensor | None, dstate: Tensor | None) -> Tensor:
    """Cotangent [N, L, V] of what a general low-rank term's a read: b^T dS, with dS the cotangent of the state after the token.

    The adjoint is a recurrence of the same kind, backwards: dS before a token is D dS + a (b^T dS), where a is decayed if it
    read the decayed state; and queries write their cotangents.
    """
    back = torch.zeros_like(rows.v) if upstream is None else upstream
    g, a, b, q = rows.log_decay, rows.a, rows.b, rows.q
    assert a is not None
    assert b is not None
    last = torch.zeros_like(rows.state) if dstate is None else dstate
    reader = a if g is None or rows.undecayed else a * g.exp()
    nothing = torch.zeros_like(q[:, :1])
    adjoint = Rows(
        q=torch.zeros_like(q),
        k=torch.cat([q.flip(1)[:, 1:], nothing], 1),
        v=torch.cat([back.flip(1)[:, 1:], torch.zeros_like(back[:, :1])], 1),
        log_decay=None if g is None else g.flip(1),
        beta=None,
        a=b.flip(1),
        b=reader.flip(1),
        bonus=None,
        state=last + q[:, -1, :, None] * back[:, -1, None],
        undecayed=True,
        exclusive=False,
    )
    found = solved(adjoint, 1.0)[2]
    assert found is not None
    return found.flip(1)


@dataclass(frozen=True, slots=True, eq=False)
class _System:
    """What reads the state and what is written to it; readers carry their cotangents.

    Attributes:
        reads: the query first, then what a low-rank term reads.
        writes: keys and values (of a delta operator, what it solved for), then what a general low-rank term writes.
        offset: of a delta operator, what is missing from the state, v - S^T k.
        pulled: of a delta operator, the gradient of v.
        whole: whether all cotangents are known.
    """

    reads: tuple[Read, ...]
    writes: tuple[Write, ...]
    offset: Tensor | None = None
    pulled: Tensor | None = None
    whole: bool = True


def _system(question: Question, reference: Mapping[str, Tensor], passes: Passes) -> _System:
    rows = question.rows
    upstream = None if question.do is None else question.scale * question.do
    query = passes.read(rows.q, upstream, own=not rows.exclusive, decayed=not rows.exclusive)
    if rows.beta is None and rows.a is None:
        return _System((query,), (passes.write(rows.k, rows.v),))
    low, seen = {"own": False, "decayed": not rows.undecayed, "low": True}, solved(rows, question.scale)[2]
    assert seen is not None
    if rows.beta is not None:
        offset = (rows.v - seen).detach()
        written = passes.write(rows.k, rows.beta.detach() * offset, solved=True)
        if "dv" not in reference:
            return _System((query, passes.read(rows.k, None, **low)), (written,), whole=False)
        dv = question.folding.tokens(reference["dv"])
        return _System((query, passes.read(rows.k, -dv, **low)), (written,), offset, dv)
    assert rows.a is not None
    assert rows.b is not None
    into = _pulled_through(rows, upstream, question.dstate) if question.problem.cotangents else None
    writes = passes.write(rows.k, rows.v), passes.write(rows.b, seen, solved=True)
    return _System((query, passes.read(rows.a, into, **low)), writes)


def _variances(
    question: Question, reference: Mapping[str, Tensor], passes: Passes
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Variances of o and the state, and of gradients by term of the rows."""
    rows, system = question.rows, _system(question, reference, passes)
    states = passes.states(rows.state, system.writes)
    solving = 1.0 if rows.beta is None else _SOLVED
    read = solving * question.scale**2 * passes.rows(forward(passes, system.reads[0], system.writes, states))
    found = {"o": question.folding.untokens(read)}
    if question.problem.final_state:
        found["state"] = question.unstates(solving * states.last)
    if not question.problem.cotangents:
        return found, {}
    query, terms = system.reads[0], {"q": torch.zeros_like(rows.q)}
    if query.cotangent is not None:
        terms = {"q": passes.rows(reader(passes, query, system.writes, states))}
    if system.whole:
        terms |= _gradients(question, system, passes, states, terms["q"])
    return found, {n: t * (solving if n in ("q", "k", "v") else 1.0) for n, t in terms.items()}


def _gradients(question: Question, system: _System, passes: Passes, states: States, query: Tensor) -> dict[str, Tensor]:
    """Variances of all gradients but the query's, which is given."""
    rows = question.rows
    end = torch.zeros_like(rows.state) if question.dstate is None else question.dstate
    costates = passes.costates(end, system.reads)
    key, value = (passes.rows(x) for x in writer(passes, system.writes[0], system.reads, costates))
    terms = {"q": query, "k": key, "v": value, "state": costates.last}
    energy = rows.q.square() * query + rows.k.square() * key
    if len(system.reads) > 1:
        read = passes.rows(reader(passes, system.reads[1], system.writes, states))
    if rows.beta is not None and system.offset is not None and system.pulled is not None:
        strength = rows.beta.detach()
        terms["k"], terms["v"] = key + read, strength.square() * value
        energy = energy + rows.k.square() * read
        missing = passes.rows(forward(passes, system.reads[1], system.writes, states))
        pull = torch.where(strength == 0, 0.0, system.pulled / strength).square()
        terms["beta"] = (value * system.offset.square() + pull * missing).sum(-1, keepdim=True)
    elif rows.a is not None and rows.b is not None:
        back = passes.rows(writer(passes, system.writes[1], system.reads, costates)[0])
        terms |= {"a": read, "b": back}
        energy = energy + rows.a.square() * read + rows.b.square() * back
    if rows.bonus is not None and question.do is not None:
        terms |= _bonus(rows, question.scale * question.do, terms)
    if rows.log_decay is not None:
        last = (end.square() * states.last).sum(-1)[:, None]
        later = energy.flip(1).cumsum(1).flip(1) + last
        # Summed directly, only what crosses the token counts, about half; and what q dq and k dk share of their errors
        # cancels in the sum over the channels of one gate.
        terms["log_decay"] = later.sum(-1, keepdim=True) / 4 if rows.log_decay.shape[-1] == 1 else later / 2
    return terms
