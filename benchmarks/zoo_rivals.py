"""What other rules say about the zoo's kernels, each on inputs such as its own library's tests have, in this process.

* flash-linear-attention: float16, B = 2, T = 100, H = 3, D = 60 and the same tokens packed, with states; all results.
* KernelBench: float32, B = 2, T = 128, H = 4, D = 32, two seeds; the output alone.
* torch.autograd.gradcheck: float64, T = 18, H = 2, K = 3, V = 2; all inputs. Not for Triton kernels, which know no float64.
* FlashAttention: bfloat16 (float16 for Triton), B = 2, T = 113, H = 3, D = 32; outputs and gradients. In the place of eager
  torch, which does not exist for most of these operators, stands the bug's correct twin.

Operators whose heads share inputs have four heads in two groups.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rules import beyond_twice, not_close, rms_ratio, rms_ratio_waived
from torch import Tensor

from linverify import draw, registry
from linverify.case import Case
from linverify.judge import Judge
from linverify.operator import Operator
from linverify.problem import Problem
from tests.zoo.record import Entry

Function = Callable[..., Any]
Results = dict[str, Tensor]


@contextmanager
def loaded(entry: Entry) -> Iterator[Function]:
    """The function of an entry, its file's folder on the path."""
    with TemporaryDirectory() as folder:
        path = entry.write(Path(folder))
        sys.path.insert(0, folder)
        try:
            spec = importlib.util.spec_from_file_location(f"zoo_{entry.name}", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            yield getattr(module, entry.function)
        finally:
            sys.path.remove(folder)


def results(function: Function, problem: Problem, *, backward: bool) -> Results:
    """Outputs, and gradients where asked, by name."""
    leaves = {n: x.clone().requires_grad_(backward) for n, x in problem.tensors.items()}
    extra: dict[str, Any] = {}
    if problem.initial_state is not None:
        extra["initial_state"] = problem.initial_state.clone().requires_grad_(backward)
    if problem.final_state:
        extra["output_final_state"] = True
    if problem.lengths:
        extra["cu_seqlens"] = torch.tensor([0, *problem.lengths]).cumsum(0)
    answer = function(**leaves, **extra)
    o, state = answer if isinstance(answer, tuple) else (answer, None)
    found = {"o": o.detach()} | ({} if state is None else {"state": state.detach()})
    if backward:
        loss = (o.double() * problem.cotangents["o"]).sum()
        if state is not None:
            loss = loss + (state.double() * problem.cotangents["state"]).sum()
        loss.backward()
        named = {**leaves, **{n: x for n, x in extra.items() if n == "initial_state"}}
        found |= {f"d{n}": torch.zeros_like(x) if x.grad is None else x.grad for n, x in named.items()}
    return found


def posed(
    operator: Operator, dtype: str, sizes: dict[str, int], *, backward: bool, seed: int = 0, **case: Any
) -> Problem:
    """A typical problem: normal operands, mild gates, and states where the operator has them and gradients are asked."""
    stateful = bool(operator.state_axes) and backward
    if operator.grouped:
        sizes = {**sizes, "H": 4, "G": 2}
    if "H" not in {a for i in operator.inputs for a in i.axes}:
        sizes = {**sizes, "H": 1}
    asked = Case(
        operator.name,
        **sizes,
        dtype=dtype,
        gate="mild" if operator.gated else "none",
        state="normal" if stateful else "absent",
        final_state=stateful,
        cotangent=("both" if stateful else "o") if backward else "none",
        seed=seed,
        **case,
    )
    return draw.problem(asked, operator)


def tolerates(operator: Operator, function: Function) -> bool:
    """Whether gradcheck has nothing to say."""
    problem = posed(operator, "fp64", {"B": 1, "T": 18, "H": 2, "K": 3, "V": 2}, backward=False)
    leaves = tuple(x.double().clone().requires_grad_() for x in problem.tensors.values())

    def of(*inputs: Tensor) -> Tensor:
        answer = function(**dict(zip(problem.tensors, inputs, strict=True)))
        return answer[0] if isinstance(answer, tuple) else answer

    return torch.autograd.gradcheck(of, leaves, raise_exception=False)


@dataclass(frozen=True)
class Subject:
    """A kernel, its correct twin and its operator."""

    operator: Operator
    function: Function
    twin: Function

    def compared(self, problem: Problem, *, backward: bool) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
        """Name, value, reference and twin's value of every result."""
        reference = Judge(self.operator, "cpu").answer(problem).reference
        right = results(self.twin, problem, backward=backward)
        for name, value in results(self.function, problem, backward=backward).items():
            yield name, value, reference[name], right[name]

    def beyond_rms(self, rule: Callable[[Tensor, Tensor, float], bool]) -> bool:
        """Under a rule of RMS ratios, dense and packed."""
        cases: list[tuple[int, dict[str, Any]]] = [(2, {}), (1, {"lengths": (15, 48, 37)})]
        problems = [
            posed(self.operator, "fp16", {"B": B, "T": 100, "H": 3, "K": 60, "V": 60}, backward=True, **case)
            for B, case in cases
        ]
        limits = {"dg": 0.02, "dbeta": 0.02, "dw": 0.02}
        return any(
            rule(value, ref, limits.get(name, 0.005))
            for problem in problems
            for name, value, ref, _ in self.compared(problem, backward=True)
        )

    def beyond_close(self) -> bool:
        """Under KernelBench's rule."""
        sizes = {"B": 2, "T": 128, "H": 4, "K": 32, "V": 32}
        problems = [posed(self.operator, "fp32", sizes, backward=False, seed=seed) for seed in (0, 1)]
        return any(
            not_close(value, ref, 1e-2, 1e-2)
            for problem in problems
            for _, value, ref, _ in self.compared(problem, backward=False)
        )

    def beyond_twin(self, dtype: str) -> bool:
        """Under FlashAttention's rule."""
        problem = posed(self.operator, dtype, {"B": 2, "T": 113, "H": 3, "K": 32, "V": 32}, backward=True)
        return any(beyond_twice(value, ref, right) for _, value, ref, right in self.compared(problem, backward=True))


def objections(entry: Entry) -> dict[str, bool | None]:
    """Which rules object to an entry; None where a rule cannot be asked. A test that raises objects, whatever it raises."""
    twin = replace(entry, name=f"{entry.name}_twin", edits=())
    found: dict[str, bool | None] = {}
    with loaded(entry) as function, loaded(twin) as correct:
        subject = Subject(registry.operator(entry.operator), function, correct)
        asked: dict[str, Callable[[], bool | None]] = {
            "rms ratio": lambda: subject.beyond_rms(rms_ratio),
            "rms ratio with waiver": lambda: subject.beyond_rms(rms_ratio_waived),
            "1e-2": subject.beyond_close,
            "gradcheck": lambda: None if entry.triton else not tolerates(subject.operator, function),
            "2x twin": lambda: subject.beyond_twin("fp16" if entry.triton else "bf16"),
        }
        for rule, ask in asked.items():
            try:
                found[rule] = ask()
            except Exception:
                found[rule] = True
    return found
