"""Built-in kernels judged case by case, as a session would: in a worker of their own, by the judge; and with planted faults."""

import importlib.util
from pathlib import Path

import pytest
import torch

from linverify import draw
from linverify.binding import bind
from linverify.case import Case
from linverify.judge import Judge
from linverify.operator import Operator
from linverify.problem import Call, Program
from linverify.registry import operator
from linverify.runner import Runner
from linverify.target import parse

TIME_LIMIT = 300.0
NEEDS_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is for Linux")
DEVICES = [
    "cpu",
    pytest.param(
        "cuda:0",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
    ),
]
# Puts the faulty helper in the place of the right one before anything imports that.
_PLANTED = """
import importlib.util
import sys
from pathlib import Path

name = "linverify.impls.{helper}"
spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("{helper}.py"))
sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[name])
from linverify.impls.{module} import {function}  # runs on Triton
"""


def rejected(target: str, cases: list[Case], device: str = "cpu", op: Operator | None = None) -> dict[str, list[str]]:
    """Results by case id that the judge does not pass; every result of the reference must be there.

    Fresh memory holds NaN before each call, so what a kernel leaves unwritten is seen.
    """
    op = op or operator(cases[0].operator)
    spec, found = parse(target), dict[str, list[str]]()
    with Runner(spec, device=device) as runner:
        runner.bind(bind(op, runner.describe().functions[0]), op)
        judge = Judge(op, device)
        for case in cases:
            problem = draw.problem(case, op)
            (result,) = runner.run(Program((Call(problem),)), time_limit=TIME_LIMIT)
            answer, got = judge.answer(problem), result.named()
            # A planted target is no part of the project and imports from it all the same, which is a breach of its own.
            breaches = [b for b in result.breaches if spec.kind == "module" or b.kind != "interference"]
            assert not breaches, breaches
            assert set(got) == set(answer.reference)
            precision = "tf32" if case.dtype == "fp32" and device != "cpu" else case.dtype
            scores = {n: judge.score(answer, n, x, precision) for n, x in got.items()}
            wrong = [f"{n}: {s.share:.3g}" for n, s in scores.items() if s.outcome != "pass"]
            found.update({str(case): wrong} if wrong else {})
    return found


def planted(folder: Path, module: str, function: str, helper: str, right: str, wrong: str) -> str:
    """A target: the built-in function with one place of one of its helpers changed."""
    source = importlib.util.find_spec(f"linverify.impls.{helper}")
    assert source is not None
    assert source.origin is not None
    text = Path(source.origin).read_text(encoding="utf-8")
    assert text.count(right) == 1, f"expected {right!r} once in {helper}.py, found it {text.count(right)} times"
    (folder / f"{helper}.py").write_text(text.replace(right, wrong), encoding="utf-8")
    file = folder / "planted.py"
    file.write_text(_PLANTED.format(helper=helper, module=module, function=function), encoding="utf-8")
    return f"{file}::{function}"
