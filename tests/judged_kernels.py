"""Built-in kernels judged case by case, as a session would: in a worker of their own, by the judge; and with planted faults."""

import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from linverify import draw
from linverify.binding import bind
from linverify.case import Case
from linverify.judge import Judge
from linverify.operator import Operator
from linverify.problem import Call, Problem, Program
from linverify.registry import operator
from linverify.runner import Runner
from linverify.score import Score
from linverify.target import parse

IMPLS = Path(__file__).resolve().parents[1] / "impls"
TIME_LIMIT = 300.0
NEEDS_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is for Linux")
DEVICES = [
    "cpu",
    pytest.param(
        "cuda:0",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
    ),
]
# Puts helpers of the folder in the place of the built-in ones before anything imports those.
_CHANGED = """
import importlib.util
import sys
from pathlib import Path

for name in {helpers}:
    spec = importlib.util.spec_from_file_location(f"linverify.impls.{{name}}", Path(__file__).with_name(f"{{name}}.py"))
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])
from linverify.impls.{module} import {function}  # runs on Triton
"""
_ROUNDED = """
@triton.jit
def rounded(x):
    bits = x.to(tl.float32).to(tl.int32, bitcast=True)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)


@triton.jit"""


def rejected(target: str, cases: list[Case], device: str = "cpu", op: Operator | None = None) -> dict[str, list[str]]:
    """Results by case that the judge does not pass, with their shares of the budget."""
    judged = {str(c): scores for c, scores in zip(cases, scored(target, cases, device, op), strict=True)}
    wrong = {c: [f"{n}: {s.share:.3g}" for n, s in of.items() if s.outcome != "pass"] for c, of in judged.items()}
    return {c: names for c, names in wrong.items() if names}


def scored(target: str, cases: list[Case], device: str = "cpu", op: Operator | None = None) -> list[dict[str, Score]]:
    """The judge's scores of each case by result; every result of the reference must be there.

    Fresh memory holds NaN before each call, so what a kernel leaves unwritten is seen.
    """
    op = op or operator(cases[0].operator)
    spec, found = parse(target), list[dict[str, Score]]()
    with Runner(spec, device=device) as runner:
        runner.bind(bind(op, runner.describe().functions[0]), op)
        judge = Judge(op, device)
        for case in cases:
            problem = draw.problem(case, op)
            (result,) = runner.run(Program((Call(problem),)), time_limit=TIME_LIMIT)
            answer, got = judge.answer(problem), result.named()
            # A changed target is no part of the project and imports from it all the same, which is a breach of its own.
            breaches = [b for b in result.breaches if spec.kind == "module" or b.kind != "interference"]
            assert not breaches, breaches
            assert set(got) == set(answer.reference)
            precision = "tf32" if case.dtype == "fp32" and device != "cpu" else case.dtype
            found.append({n: judge.score(answer, n, x, precision) for n, x in got.items()})
    return found


def computed(target: str, problem: Problem, op: Operator, device: str = "cpu") -> dict[str, Tensor]:
    """A function's results by name, of one call in a worker of its own."""
    with Runner(parse(target), device=device) as runner:
        runner.bind(bind(op, runner.describe().functions[0]), op)
        (result,) = runner.run(Program((Call(problem),)), time_limit=TIME_LIMIT)
    return result.named()


def changed(folder: Path, module: str, function: str, texts: Mapping[str, str]) -> str:
    """A target: the built-in function with other texts of some of its helpers, by name in the order of their imports."""
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    file = folder / "changed.py"
    file.write_text(_CHANGED.format(helpers=list(texts), module=module, function=function), encoding="utf-8")
    return f"{file}::{function}"


def planted(folder: Path, module: str, function: str, helper: str, right: str, wrong: str) -> str:
    """A target: the built-in function with one place of one of its helpers changed."""
    text = (IMPLS / f"{helper}.py").read_text(encoding="utf-8")
    assert text.count(right) == 1, f"expected {right!r} once in {helper}.py, found it {text.count(right)} times"
    return changed(folder, module, function, {helper: text.replace(right, wrong)})


def rounding_bf16(folder: Path, module: str, function: str, helpers: Sequence[str]) -> str:
    """A target: the built-in function as it would compute in bf16 on a GPU.

    The interpreter cuts numbers to bf16 instead of rounding them, and multiplies bf16 tiles wrongly: here it rounds by hand
    wherever a kernel changes to its inputs' dtype, and multiplies float32.
    """
    texts = {}
    for name in helpers:
        text = (IMPLS / f"{name}.py").read_text(encoding="utf-8")
        text = text.replace("tl.dot(a, b,", "tl.dot(a.to(tl.float32), b.to(tl.float32),")
        places = list(re.finditer(r"\.to\((\w+\.dtype(?:\.element_ty)?)\)", text))
        for place in reversed(places):
            start = _expression(text, place.start())
            value = text[start : place.start()]
            taken = f"(rounded({value}) if {place[1]} == tl.bfloat16 else {value})"
            text = f"{text[:start]}{taken}{text[place.start() :]}"
        texts[name] = text.replace("\n@triton.jit", _ROUNDED, 1) if places else text
    return changed(folder, module, function, texts)


def _expression(text: str, end: int) -> int:
    """Where the name, call or parenthesis begins that a method is called on at `end`."""
    depth = 0
    for i in range(end - 1, -1, -1):
        depth += {")": 1, "(": -1}.get(text[i], 0)
        if depth < 0 or (depth == 0 and not (text[i].isalnum() or text[i] in "_.(")):
            return i + 1
    raise AssertionError("a call on nothing")
