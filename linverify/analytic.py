"""The analytic variance: how rounding of operands reaches every result, from a few passes over squared values.

A chunkwise kernel rounds operands of products: scores, queries and keys with their decay, written values, the stored state.
Each such error is relative and independent, so the variance of a result is a sum of squares: of scores times values, of queries
times states, forward, and of the same with cotangents, backward. Scores and states are those of the exact recurrence, so a sum
that cancels is small here as it is in a kernel. Everything follows from the folded recurrence: its diagonal decay, what it
writes (keys and values; of a delta operator, what it solved for) and what reads it (queries; of a delta operator, keys too,
with the cotangent of what was solved for; a general low-rank term writes what its a read, with b).

It is a lower bound of the budget's scale, not the budget: a result within it needs no realisations, one beyond it is judged by
them. Values that a low-rank term solves for carry errors of their own; what it does to errors that came before is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from linverify import budget
from linverify.analytic_filters import Parts, Sums, by_rows
from linverify.analytic_inputs import SHARED, by_input
from linverify.analytic_layout import from_rows, term_of, to_rows
from linverify.analytic_passes import Passes, forward, reader, writer
from linverify.analytic_states import States
from linverify.analytic_system import System, system_of
from linverify.dtype import BF16, FP16, FP32, TF32
from linverify.fold import Rows
from linverify.noise import SPREAD
from linverify.recipe import power_of_two
from linverify.reference.question import Question

# Largest ratio of a statistic to chance that needs no realisation: half the line, since this is an estimate.
LINE = budget.LINE / 2
# How many roundings a term of a sum meets: in bf16 and fp16 one of two operands is exact, but an fp16 kernel may contain TF32
# products, which err twice as far; in TF32 both operands of both products are truncated.
_ROUNDINGS = {"bf16": (BF16, 1.0), "fp16": (FP16, 2.0), "tf32": (TF32, 4.0), "fp32": (FP32, 2.0)}
# So many times a variance is more than any bias squared, and 0 where nothing is rounded.
_ANY = 2.0**200
# Sums in float32 of what has been rounded before.
_SUMMED = ("log_decay", SHARED, "beta")


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


@dataclass(frozen=True, slots=True, eq=False)
class Analysis:
    """Variances of results, and how far sums over their rows and columns may reach.

    Attributes:
        question: the folded recurrence.
        unit: variance of one term's relative error.
        variances: by result; those that it cannot tell are missing.
        parts: what they were made of.
    """

    question: Question
    unit: float
    variances: dict[str, Tensor]
    parts: Parts

    def sums(self, result: str, weights: Tensor) -> Sums | None:
        """Variances of sums of a result's errors; None where it is no term of the recurrence as it is.

        Args:
            result: its name.
            weights: of the sums, [heads, rows, columns] as it is judged.
        """
        term, scale = term_of(self.question, result), self.question.scale if result == "o" else 1.0
        if not term:
            return None
        with torch.no_grad():
            weights = weights * (self.unit**0.5 * scale)
            if term in ("last", "first"):
                return self.parts.of_state(term, weights)
            rows = self.parts.of_tokens(term, to_rows(self.question, weights))
            return None if rows is None else by_rows(from_rows(self.question, rows), weights.shape[-1])


def analysis(question: Question, reference: Mapping[str, Tensor], precision: str) -> Analysis | None:
    """Look at all results at once; None for a precision class that is not served.

    Args:
        question: the folded recurrence.
        reference: exact results; a delta operator needs dv, or gradients but that of q are missing.
        precision: the class.
    """
    unit = units(question, precision)
    if not unit:
        return None
    with torch.no_grad():
        found, terms, parts = _variances(question, reference, Passes(question, _ROUNDINGS[precision][0]))
        counted = {n: t / (_ROUNDINGS[precision][1] if n in _SUMMED else 1.0) for n, t in terms.items()}
    every = biased(question, found | by_input(question, counted), unit, reference, precision)
    return Analysis(question, unit, every, parts)


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


def _variances(
    question: Question, reference: Mapping[str, Tensor], passes: Passes
) -> tuple[dict[str, Tensor], dict[str, Tensor], Parts]:
    """Variances of o and the state, and of gradients by term of the rows; and what they were made of."""
    rows, system = question.rows, system_of(question, reference, passes)
    states = passes.states(rows.state, system.writes)
    read = question.scale**2 * passes.rows(forward(passes, system.reads[0], system.writes, states))
    found = {"o": question.folding.untokens(read)}
    if question.problem.final_state:
        found["state"] = question.unstates(states.last)
    if not question.problem.cotangents:
        return found, {}, Parts(passes, system, states, None)
    costates, nothing = None, torch.zeros_like(rows.q)
    query = nothing, nothing
    if system.reads[0].cotangent is not None:
        query = passes.both(reader(passes, system.reads[0], system.writes, states))
    terms = {"q": query[0]}
    if system.whole:
        costates = passes.costates(
            torch.zeros_like(rows.state) if question.dstate is None else question.dstate, system.reads
        )
        terms |= _gradients(question, system, passes, states, costates, query)
    return found, terms, Parts(passes, system, states, costates)


def _gradients(
    question: Question,
    system: System,
    passes: Passes,
    states: States,
    costates: States,
    query: tuple[Tensor, Tensor],
) -> dict[str, Tensor]:
    """Variances of all gradients but the query's, which is given, as is what of it does not come of slips."""
    rows = question.rows
    *parts, value = writer(passes, system.writes[0], system.reads, costates)
    key, value = passes.both((parts[0], parts[1])), passes.rows(value)
    terms = {"q": query[0], "k": key[0], "v": value, "state": costates.last}
    reads, writes, read = [(rows.q, *query)], [(rows.k, *key)], None
    if len(system.reads) > 1:
        read = passes.both(reader(passes, system.reads[1], system.writes, states))
        reads.append((rows.k if rows.a is None else rows.a, *read))
    if rows.beta is not None and system.offset is not None and system.pulled is not None and read is not None:
        strength = rows.beta.detach()
        terms["k"], terms["v"] = key[0] + read[0], strength.square() * value
        missing = passes.rows(forward(passes, system.reads[1], system.writes, states))
        pull = torch.where(strength == 0, 0.0, system.pulled / strength).square()
        terms["beta"] = (value * system.offset.square() + pull * missing).sum(-1, keepdim=True)
    elif rows.b is not None and read is not None:
        back, steady, _ = (passes.rows(x) for x in writer(passes, system.writes[1], system.reads, costates))
        terms |= {"a": read[0], "b": back}
        writes.append((rows.b, back, steady))
    if rows.bonus is not None and question.do is not None:
        terms |= _bonus(rows, question.scale * question.do, terms)
    if rows.log_decay is not None:
        # Summed directly, only what crosses the token counts, about half; and what q dq and k dk share of their errors
        # cancels in the sum over the channels of one gate.
        share = 4 if rows.log_decay.shape[-1] == 1 else 2
        later = _later(question, states, reads, writes, slip=passes.slips is not None)
        terms |= {name: x / share for name, x in zip(("log_decay", SHARED), later, strict=True)}
    return terms


_Energy = tuple[Tensor, Tensor, Tensor]


def _later(
    question: Question, states: States, reads: Sequence[_Energy], writes: Sequence[_Energy], *, slip: bool
) -> tuple[Tensor, Tensor]:
    """Variance of the sum of q dq - k dk (- b db + a da) over later tokens and of the final state's term, [N, L, K or 1].

    What slips between a write and a read is in both of their gradients, and cancels where both are later. Twice: all of it, and
    what does not come of slips, which grows from the last token to the first.

    Args:
        question: the folded recurrence.
        states: of the recurrence.
        reads: what reads, the variance of its gradient, and what of it does not come of slips.
        writes: the same of what is written.
        slip: whether decays do.
    """
    squares = [[x.detach().square() for x, *_ in side] for side in (reads, writes)]

    def summed(which: int) -> list[Tensor]:
        """Of reads and of writes."""
        sides = zip(squares, (reads, writes), strict=True)
        terms = [[s * e[which] for s, e in zip(x, side, strict=True)] for x, side in sides]
        return [sum(x[1:], x[0]) for x in terms]

    def later(x: Tensor) -> Tensor:
        return x.flip(1).cumsum(1).flip(1)

    def gates(x: Tensor) -> Tensor:
        """Of one gate, what its channels are together."""
        assert question.rows.log_decay is not None
        return x.sum(-1, keepdim=True) if question.rows.log_decay.shape[-1] == 1 else x

    steady = summed(2)
    last = states.last.new_zeros((1, 1, 1))
    if question.dstate is not None:
        last = (question.dstate.square() * states.last).sum(-1)[:, None]
    every = later(gates(steady[0] + steady[1]))
    if not slip:
        return every + gates(last), every
    read, written = summed(1)
    crossing = later(read - written - steady[0] + steady[1])
    # what was read later and not written later was written before, but for the first state's: the smaller of both
    last = torch.minimum(last, -crossing[:, :1])
    return every + gates((crossing + last).clamp(min=0)), every
