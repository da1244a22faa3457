"""Exact: where every number is a small integer, rounding has no say and the result must be right to the last bit.

With integer operands, gates of 0 or -256 and a scale that is a power of two, all products and sums fit the operand
format and the float32 accumulator, in any order and on any unit. What is left to differ is an index, a mask or an
order: an integer, never a rounding. Only a gate's gradient may be off its integer: where the decay is exp2(g log2(e)), as GPUs
take it, every term comes home through that constant and ln(2), which round in float32. It is held to the budget then.
"""

import torch

from linverify.operator import GATE_KINDS, Operator
from linverify.problem import Problem
from linverify.properties._problems import asked
from linverify.properties._results import equal, letters, solved
from linverify.property import Property, Space, Trial


def exact_scale(problem: Problem, operator: Operator) -> bool:
    """Whether the scale in force is a power of two."""
    sizes = {"K": problem.tensors[operator.of_kind("query")[0].name].shape[-1]}
    scale = operator.scale_for(sizes) if problem.scale is None else problem.scale
    return float(torch.frexp(torch.tensor(scale, dtype=torch.float64))[0]) == 0.5  # the mantissa of every power of two


def check(trial: Trial) -> None:
    """Compare every result with the rounded float64 reference, bit by bit; gates' gradients within the budget, if need be."""
    problem = trial.problem
    _, result = solved(trial)
    if not exact_scale(problem, trial.operator):
        trial.agree(result)
        return
    reference = trial.reference(problem)
    gates = {f"d{i.name}" for i in trial.operator.of_kind(*GATE_KINDS)}
    for name in sorted(asked(problem), key=gates.__contains__):  # the budget judges all results: it comes last
        got = result.named()[name]
        expected = reference[name].to(got)
        if equal(expected, got):
            continue
        if name in gates:
            trial.agree(result)
        else:
            trial.identical(f"{name} and the exact result", expected, got, letters(trial, name))


PROPERTY = Property(
    name="exact",
    law="Where all operands are small integers the results are exact.",
    check=check,
    applies=lambda operator: "X1" in operator.identities,
    space=Space(
        regimes=("integers", "onehot"),
        gates=("none", "exact"),
        dtypes=("fp32", "tf32", "bf16", "fp16"),  # exp(-256) is 0 there, and not in float64
        scales=("one", "default"),
        packed=None,
        cotangents=("none", "both"),
        max_T=256,
    ),
    weight=1.5,
    why="An index, a mask or a transposition that hides inside a tolerance is off by a whole number here.",
    against="a wrong index, mask or transposition",
)
