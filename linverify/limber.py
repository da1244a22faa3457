"""Limber: a process judges something of no target before its first law, while the target is imported.

What torch imports, loads or opens on first use (a backward pass, a GPU and each of its kernels) takes a process of a session a
second or more; importing the target takes longer, and the process would only wait.
"""

import importlib
from contextlib import suppress

from linverify import draw, registry
from linverify.case import Case
from linverify.errors import LinverifyError
from linverify.judge import Judge
from linverify.operator import Operator
from linverify.recipe import precision_class

Sizes = tuple[int, int, int, int, int]  # B, T, H, K, V
# One that a CPU judges, and one beyond what it judges where there is a GPU: as wide as a kernel's.
_SMALL, _LARGE = (1, 20, 2, 8, 6), (2, 200, 2, 64, 32)


def limber(operator: str | None, device: str) -> None:
    """Judge a case of each size.

    Args:
        operator: that will be asked about; None where only the target says which.
        device: of the session.
    """
    importlib.import_module("torch.fx.experimental.symbolic_shapes")  # torch's first backward does, for half a second
    registry.properties()
    if operator is None:
        return
    asked = registry.operator(operator)
    for sizes in (_SMALL, _LARGE) if device.startswith("cuda") else (_SMALL,):
        with suppress(LinverifyError):  # not every operator has such a case
            judged(asked, Judge(asked, device), sizes)


def judged(operator: Operator, judge: Judge, sizes: Sizes) -> None:
    """Judge a case of these sizes by all means that there are.

    Raises:
        UsageError: the operator has no such case.
    """
    gate = "mild" if operator.gated else "none"
    case = Case(operator.name, *sizes, dtype="bf16", gate=gate, cotangent="o", seed=1)
    problem, precision = draw.problem(case, operator), precision_class("bf16", str(judge.device), {})
    answer = judge.answer(problem)
    rounded = {"o": answer.reference["o"].to(problem.tensors[operator.value_name].dtype)}
    rounded |= {f"d{n}": answer.reference[f"d{n}"].to(problem.tensors[n].dtype) for n in problem.wrt}
    judge.rehearse(answer, rounded, precision)
