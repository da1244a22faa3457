"""One reading of all broken laws: a single wrong line breaks a dozen of them, and what they have in common is where it is.

Nothing is measured here: each sentence follows from verdicts, and leads name the laws they are of. That a law holds on its own
cases excludes nothing; that it holds on the case that fails does.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from linverify.crossing import Crossed
from linverify.leads import listed
from linverify.property import Property
from linverify.verdict import Alike, BudgetUse, Failure, PropertyResult, Status, Synthesis

_NUMBER = re.compile(r"\d[\d.]*")
_LEADS = 4
_ORDER = ("question", "finding", "blocks", "crossing", "relation", "shape")
_TELLING = _ORDER[:4]  # beside these, that two sides differ and what the error looks like say nothing more
_SIXTEEN = ("bf16", "fp16")


def synthesis(
    found: Sequence[PropertyResult],
    budget: Sequence[BudgetUse],
    laws: Mapping[str, Property],
    crossing: Crossed = Crossed(),  # noqa: B008  # it is frozen
) -> Synthesis | None:
    """Return what the verdicts on a target say together; None where no required law is broken.

    Args:
        found: of all laws.
        budget: worst shares by result and dtype.
        laws: the properties by name, for what each one speaks against.
        crossing: which of the laws that hold also hold on the failing case.
    """
    broken = {p.name: p.failure for p in found if p.required and p.status is Status.VIOLATION and p.failure}
    if not broken:
        return None
    results = _results(broken, budget)
    needs, spare = _needs(tuple(broken.values()))
    return Synthesis(
        tuple(broken),
        results.wrong,
        results.right,
        tuple(text for rule in _RULES if (text := rule(results))),
        needs,
        spare,
        _leads(broken, laws, crossing.broken),
        _against(crossing, broken, laws),
    )


@dataclass(frozen=True, slots=True)
class _Results:
    """Which results are wrong and which are right, in which dtypes; `single` has float32's worst shares."""

    wrong: tuple[str, ...]
    right: tuple[str, ...]
    dtypes: frozenset[str]
    single: Mapping[str, float]

    def of(self, *, backward: bool) -> tuple[list[str], list[str]]:
        """Those of the forward, or of the backward: wrong, right."""
        wrong, right = (
            [n for n in names if (n not in ("o", "state")) is backward] for names in (self.wrong, self.right)
        )
        return wrong, right


def _results(broken: Mapping[str, Failure], budget: Sequence[BudgetUse]) -> _Results:
    """Wrong anywhere; right in all cases. NaN that a law puts in spreads on purpose, and counts where nothing else does."""
    valued = [f for f in broken.values() if f.wrong]
    failures = [f for f in valued if f.evidence.kind == "wrong_value"] or valued
    wrong = {name for f in failures for name in f.wrong}
    over = {u.result for u in budget if not u.worst <= 1}
    right = ({u.result for u in budget} | {name for f in failures for name in f.right}) - over
    right -= {name for f in valued for name in f.wrong}
    order = list(dict.fromkeys([*(u.result for u in budget), *(n for f in failures for n in (*f.wrong, *f.right))]))
    return _Results(
        tuple(n for n in order if n in wrong),
        tuple(n for n in order if n in right),
        frozenset(f.case_id.split("/")[2] for f in failures if f.case_id.count("/") > 1),
        {u.result: u.worst for u in budget if u.dtype == "fp32" and u.cases},
    )


def _forward(x: _Results) -> str:
    wrong, right = x.of(backward=False)
    if "o" in wrong and "state" in right:
        return (
            "the state is right, so what is written to it, forgotten and handed on is; look at what o is read with: "
            "q, the scale, the scores inside a block and their mask"
        )
    if "state" in wrong and "o" in right:
        return "o is right, which reads the states on the way; look at what is returned as the final state"
    if set(wrong) >= {"o", "state"}:
        return "o and the final state are wrong; look at what both come from: keys, values, gates, the state handed on"
    return ""


def _backward(x: _Results) -> str:
    wrong, right = x.of(backward=True)
    if not wrong or x.of(backward=False)[0] or "o" not in x.right:
        return ""
    if not right:
        every = "every gradient is" if len(wrong) > 1 else f"{wrong[0]} is"
        return (
            f"the forward is right and {every} wrong; look at what all gradients begin with: the upstream gradient, "
            "the scale, what is recomputed of the forward"
        )
    if len(wrong) == 1:
        return (
            f"{listed(['o', *right])} are right, and so is what they share with {wrong[0]}; "
            f"look at the lines that make up {wrong[0]} alone"
        )
    return (
        f"{listed(['o', *right])} are right; look at what {listed(wrong)} share and {listed(right)} "
        f"{'do' if len(right) > 1 else 'does'} not"
    )


def _despite(x: _Results) -> str:
    """Gradients that do not read what is wrong in the forward."""
    (forward, _), (wrong, right) = x.of(backward=False), x.of(backward=True)
    if not forward or not right:
        return ""
    if not wrong:
        return f"every gradient is right, so none reads what is wrong in {listed(forward)}; look at its last steps"
    several = len(right) > 1
    return f"{listed(right)} {'are' if several else 'is'} right, and {'read' if several else 'reads'} none of what is wrong"


def _format(x: _Results) -> str:
    """Wrong in 16 bits alone."""
    shares = [x.single.get(name, math.inf) for name in x.wrong]
    if not x.wrong or not x.dtypes or not x.dtypes <= set(_SIXTEEN) or not all(s <= 1 for s in shares):
        return ""
    return (
        f"in float32 {listed(x.wrong)} {'are' if len(x.wrong) > 1 else 'is'} right, so the formula is; look at what is "
        f"kept, cast or accumulated in {listed(sorted(x.dtypes))}"
    )


_RULES: tuple[Callable[[_Results], str], ...] = (_format, _forward, _backward, _despite)


def _needs(failures: Sequence[Failure]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What every case that was looked into needs; what some do without, and none needs."""
    asked = [f for f in failures if f.needs or f.spare]
    each = [{_bare(n): n for n in f.needs} for f in asked]
    common = [name for name in (each[0] if each else ()) if all(name in n for n in each)]
    needed = {name for n in each for name in n}
    spare = dict.fromkeys(s for f in asked for s in f.spare if s not in needed)
    return tuple(_same([n[name] for n in each], name) for name in common), tuple(spare)


def _bare(need: str) -> str:
    return need.partition(" (")[0]


def _same(said: Sequence[str], bare: str) -> str:
    """The need as all say it; without the particulars in which they differ."""
    return said[0] if len(set(said)) == 1 else bare


def _leads(broken: Mapping[str, Failure], laws: Mapping[str, Property], crossed: Sequence[str]) -> tuple[Alike, ...]:
    """Leads of the same content together: other questions first, then by the number of laws that say so.

    A law that is broken on the failing case alone, and held on all of its own, says what is special about this one.
    """
    groups: dict[tuple[int, str], list[tuple[str, str]]] = {}
    for name, failure in broken.items():
        for lead in failure.leads:
            text = lead.text
            if lead.kind == "relation":
                text = laws[name].against if name in laws else ""
            if text:
                groups.setdefault((_ORDER.index(lead.kind), _content(text)), []).append((name, text))
    for name in crossed:
        if laws[name].against:
            key = _ORDER.index("crossing"), laws[name].against
            groups.setdefault(key, []).append((name, laws[name].against))
    ranked = sorted(groups.items(), key=lambda item: (item[0][0], -len(item[1])))
    telling = [item for item in ranked if _ORDER[item[0][0]] in _TELLING] or ranked
    return tuple(Alike(said[0][1], tuple(dict.fromkeys(n for n, _ in said))) for _, said in telling[:_LEADS])


def _content(text: str) -> str:
    """What is said, of whichever results and lengths; what follows a colon are particulars."""
    text = text.partition(": ")[0]
    _, verb, rest = text.partition(" are " if " are what" in text else " is ")
    return _NUMBER.sub("#", rest if verb else text)


def _against(crossing: Crossed, broken: Mapping[str, Failure], laws: Mapping[str, Property]) -> tuple[Alike, ...]:
    """What laws that hold on the failing case speak against; nothing that a broken law sees as well."""
    seen = {laws[name].against for name in (*broken, *crossing.broken) if name in laws}
    groups: dict[str, list[str]] = {}
    for name in crossing.held:
        if laws[name].against and laws[name].against not in seen:
            groups.setdefault(laws[name].against, []).append(name)
    return tuple(Alike(text, tuple(names)) for text, names in groups.items())
