"""For tests over all operators: which kind each is of, and cases that suit it."""

import pytest

from linverify import draw, emulated, registry
from linverify.case import Case
from linverify.judge import Judge
from linverify.operator import Operator
from linverify.score import Answer

ALL = sorted(registry.operators())
# Linear recurrences whose reads are o, with a state of [N, H, K, V]: what the hand-written rounding model serves.
PLAIN = [n for n, o in sorted(registry.operators().items()) if o.canonical and not o.readout and o.state_axes]
OTHERS = [n for n in ALL if n not in PLAIN]


def suited(case: Case, operator: Operator) -> Case:
    """The case without what the operator does not have."""
    if not operator.state_axes:
        cotangent = "o" if case.cotangent in ("state", "both") else case.cotangent
        case = case.with_(state="absent", final_state=False, cotangent=cotangent)
    if "H" not in operator.axes:
        case = case.with_(H=1)
    if "M19" not in operator.identities:
        case = case.with_(lengths=())
    if operator.grouped and case.H % 2 == 0:
        case = case.with_(G=2)
    return case.with_(gate=case.gate if operator.gated else "none")


def answered(name: str, precision: str, *, T: int, K: int, V: int, gate: str) -> tuple[Judge, Answer]:
    """A judge, and its answer to a case in which everything is asked, as far as the operator has it."""
    operator = registry.operator(name)
    dtype = "fp32" if precision == "tf32" else precision
    case = Case(name, 1, T, 2, K, V, dtype=dtype, gate=gate, state="normal", final_state=True, cotangent="both", seed=2)
    by = Judge(operator, "cpu")
    return by, by.answer(draw.problem(suited(case, operator), operator))


def withhold(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """Emulate no kernel of this form any more."""
    every = emulated.stacks
    monkeypatch.setattr(emulated, "stacks", lambda *x: tuple(s for s in every(*x) if s[0] != form))
