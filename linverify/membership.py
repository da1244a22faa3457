"""Whether a case lies in a property's space: cases written by hand, and replayed ones, may not."""

from linverify.case import Case
from linverify.long_cases import WHOLE
from linverify.operator import Operator
from linverify.property import Space
from linverify.regime import gate_regimes, operand_regimes


def outside(case: Case, space: Space, operator: Operator) -> str:
    """Return why a property does not ask such a case; "" where it does.

    A property that asks about a final state leaves the choice of the upstream gradient's pattern to what a target offers, so
    "o" lies in a space that has "both".
    """
    cotangents = (*space.cotangents, *(("o",) if "both" in space.cotangents else ()))
    # Every exact regime and gate is drawn only where a property names it.
    regimes = space.regimes or operand_regimes(operator)
    gates = space.gates or (*gate_regimes(operator), *(("exact",) if case.regime in space.regimes else ()))
    checks = (
        ("length", space.streamed or case.T <= WHOLE),
        ("T", space.min_T <= case.T and (not space.max_T or space.max_T >= case.T)),
        ("B", space.min_B <= case.B),
        ("H", space.min_H <= case.H),
        ("sequences", not case.lengths or space.min_sequences <= len(case.lengths)),
        ("initial state", not space.states or case.state in space.states),
        ("final state", space.final_state is None or case.final_state == space.final_state),
        ("upstream gradient", case.cotangent in cotangents),
        ("packing", space.packed is None or bool(case.lengths) == space.packed),
        ("layout", case.layout in space.layouts),
        ("regime", case.regime in regimes),
        ("gate", case.gate in gates),
        ("dtype", not space.dtypes or case.dtype in space.dtypes),
        ("scale", not space.scales or case.scale in space.scales),
        ("single input", space.one_input or case.wrt == "all"),
        ("mixture of dtypes", space.mixed or case.mixture == "usual"),
    )
    wrong = [name for name, holds in checks if not holds]
    return f"asks no such case ({', '.join(wrong)})" if wrong else ""
