"""What the tests of the worker share: an operator, problems, and a runner for each function of a kernel file."""

from pathlib import Path

import torch

from linverify.binding import bind
from linverify.operator import Canonical, Input, Operator
from linverify.problem import Call, Problem, Program
from linverify.runner import Runner
from linverify.target import parse

_AXES = ("B", "T", "H")
OPERATOR = Operator(
    "linear_attention",
    summary="",
    equations="",
    source="",
    inputs=(
        Input("q", (*_AXES, "K"), "query"),
        Input("k", (*_AXES, "K"), "key"),
        Input("v", (*_AXES, "V"), "value"),
    ),
    canonical=lambda x, _: Canonical(x["q"], x["k"], x["v"]),
    identities=frozenset(),
)
KERNELS = Path(__file__).with_name("worker_kernels.py")


def problem(**changes) -> Problem:
    generator = torch.Generator().manual_seed(1)
    q, k = torch.randn(2, 2, 5, 3, 8, generator=generator).unbind(0)
    v = torch.randn(2, 5, 3, 16, generator=generator)
    return Problem({"q": q, "k": k, "v": v}).with_(**changes)


def with_gradients(**changes) -> Problem:
    return problem(cotangents={"o": torch.ones(2, 5, 3, 16)}, wrt=("q", "k", "v")).with_(**changes)


class Everything:
    """All functions of the kernel file behind one runner per function, started when needed."""

    def __init__(self, file: Path = KERNELS, device: str = "cpu") -> None:
        self.file, self.device = file, device
        self._runners: dict[str, Runner] = {}

    def runner(self, name: str, **settings) -> Runner:
        if name not in self._runners:
            runner = self._runners[name] = Runner(parse(f"{self.file}::{name}"), device=self.device)
            runner.bind(bind(OPERATOR, runner.describe().functions[0], settings=settings), OPERATOR)
        return self._runners[name]

    def ask(self, name: str, *calls: Call | Problem, time_limit: float = 30.0, **flags):
        program = Program(tuple(c if isinstance(c, Call) else Call(c) for c in calls or (problem(),)), **flags)
        return self.runner(name).run(program, time_limit=time_limit)

    def close(self) -> None:
        for runner in self._runners.values():
            runner.close()
