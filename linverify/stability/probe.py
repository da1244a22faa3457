"""The probe: asks a kernel, in a process of its own, for outputs and gradients, and reads derivatives by scores off them.

A score's derivative is not among a kernel's results, but a key's gradient is: when a gradient comes back to one row only, a key
takes part in one score only, so dk_j = (dL/ds_j) (ds_j/dk_j), and the second factor follows from the operator's statement.
"""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from linverify.bench import Bench
from linverify.case import Case
from linverify.draw import input_format, problem
from linverify.dtype import FORMATS, FP32, FP64
from linverify.mechanism import Mechanism
from linverify.problem import Call, Problem
from linverify.recipe import precision_class
from linverify.regime import gate_regimes
from linverify.rows import Row, last_row, mechanism_of

WIDTH = 16
# A float64 kernel whose error is beyond this, relative to o, computed in float32 somewhere.
_SINGLE = 2.0**-40
# What a score's derivative by its key has to be, for float64 and for float32 to hold its terms in full.
_LEAST_OF_64, _LEAST_OF_32 = 2.0**-960, 2.0**-100
# Rounding steps on the way from a score's derivative to a key's gradient that are each as large as the output format's.
STEPS = 10


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """Results in float64, on the CPU: o [B, T, H, V], and gradients by input."""

    o: Tensor
    grads: Mapping[str, Tensor]

    @property
    def finite(self) -> bool:
        """Whether every number is one."""
        return all(bool(t.isfinite().all()) for t in (self.o, *self.grads.values()))


class Probe:
    """One kernel in one dtype.

    Attributes:
        operator: what it computes.
        facts: its mechanism, or None.
        dtype: short name of the format of its operands.
        unit: unit roundoff of what it computes with.
        notes: what was found out on the way.
    """

    def __init__(self, bench: Bench, dtype: str, seed: int) -> None:
        self.bench, self.operator, self.dtype, self.seed = bench, bench.operator, dtype, seed
        self.facts: Mechanism | None = mechanism_of(self.operator)
        self.notes: list[str] = []
        self.query, self.key = (self._one(kind) for kind in ("query", "key"))
        self.value = self.operator.value_name
        self.unit = FORMATS[precision_class(dtype, bench.device, dict(bench.claims))].unit_roundoff
        if dtype == "fp64":
            self._look_for_single()

    @property
    def smallest(self) -> float:
        """Smallest normal number of the format of gradients."""
        return math.ldexp(1.0, FORMATS[self.dtype].min_exponent)

    @property
    def least(self) -> float:
        """What a score's derivative by its key, and a divisor, have to be for the kernel's arithmetic to hold them in full."""
        return _LEAST_OF_64 if self.unit == FP64.unit_roundoff else _LEAST_OF_32

    @property
    def by_token(self) -> bool:
        """Whether values and outputs are laid out token by token, head by head, channel by channel."""
        axes = self.operator.input(self.value).axes
        return self.operator.o_axes == ("B", "T", "H", "V") and axes in (("B", "T", "H", "V"), ("B", "T", "G", "V"))

    def _one(self, kind: str) -> str:
        found = [i.name for i in self.operator.inputs if i.kind == kind]
        return found[0] if found else ""

    def generator(self, label: str) -> torch.Generator:
        """A generator that depends on the seed and the label."""
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{label}".encode()))

    def allowance(self, tokens: int) -> float:
        """How far above a bound rounding may carry a derivative by a score, relative to it.

        Ten roundings of the output's format, and the sums over channels and tokens behind a score and its divisor.
        """
        sums = min(self.unit, FP32.unit_roundoff)  # sums are float32 where operands are narrower
        return 1 + STEPS * self.unit + (WIDTH + tokens) * sums

    def inputs(self, B: int, T: int, *, V: int = WIDTH, K: int = WIDTH) -> dict[str, Tensor]:
        """All inputs in float64 (one head), drawn as for a check: normal operands, mild gates."""
        gates = gate_regimes(self.operator)
        case = Case(
            self.operator.name,
            B,
            T,
            1,
            K,
            V,
            dtype="fp64",
            gate="mild" if "mild" in gates else gates[0],
            seed=self.seed,
        )
        found = dict(problem(case, self.operator).tensors)
        for i in self.operator.inputs:
            # gates before their map are drawn without their extremes: an exponential rounds by the size of its argument
            if i.kind == "parameter" and {"B", "T"} <= set(i.axes):
                drawn = torch.randn(found[i.name].shape, generator=self.generator(i.name), dtype=torch.float64)
                found[i.name] = drawn
        return found

    def given(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inputs as the kernel will see them, in its formats."""
        return {i.name: tensors[i.name].to(input_format(i, self.dtype).torch_dtype) for i in self.operator.inputs}

    def posed(self, tensors: Mapping[str, Tensor], upstream: Tensor | None) -> Problem:
        """The problem of these inputs, with an upstream gradient of o or without."""
        given = self.given(tensors)
        if upstream is None:
            return Problem(tensors=given)
        cotangents = {"o": upstream.to(given[self.value].dtype)}
        return Problem(tensors=given, cotangents=cotangents, wrt=tuple(given))

    def ask(self, tensors: Mapping[str, Tensor], upstream: Tensor | None = None) -> Asked:
        """Have the kernel compute.

        Raises:
            Refused, Fault: as of a check.
            TypeError: no gradients came back.
        """
        result = self.bench.solve(Call(self.posed(tensors, upstream)), None)
        if result.o is None or (upstream is not None and self.key and self.key not in result.grads):
            why = result.breaches[0].message if result.breaches else "o carries no gradient"
            raise TypeError(f"no gradient came back: {why}")
        return Asked(result.o.double(), {n: g.double() for n, g in result.grads.items()})

    def reference(self, tensors: Mapping[str, Tensor], upstream: Tensor | None = None) -> Mapping[str, Tensor]:
        """Float64 results of the same rounded inputs, by name."""
        found = self.bench.judge.answer(self.posed(tensors, upstream)).reference
        return {n: t.cpu() for n, t in found.items()}

    def row(self, tensors: Mapping[str, Tensor]) -> Row:
        """The last token's row at these inputs, as the kernel sees them."""
        return last_row(self.operator, self.given(tensors))

    def score_gradients(self, tensors: Mapping[str, Tensor], upstream: Tensor) -> tuple[Row, Tensor, Asked]:
        """Derivatives by the scores of the last row [B, H, N] under upstream gradients [B, H, V] of that row.

        Keys that cannot move their score (a rectifier's dead ones) count as zero.
        """
        row = self.row(tensors)
        whole = torch.zeros(self._shape_of_o(tensors), dtype=torch.float64)
        whole[:, -1] = upstream
        asked = self.ask(tensors, whole)
        return row, read_off(asked.grads[self.key][:, row.seen], row, self.smallest, self.least), asked

    def _shape_of_o(self, tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
        sizes = self.operator.all_sizes(self.operator.sizes_of({n: t.shape for n, t in tensors.items()}))
        return tuple(sizes[a] for a in self.operator.o_axes)

    def _look_for_single(self) -> None:
        """A kernel that computes in float32 inside is told so and judged by that."""
        tensors = self.inputs(2, 8)
        o, exact = self.ask(tensors).o, self.reference(tensors)["o"]
        if float((o - exact).abs().max()) > _SINGLE * float(exact.abs().max()):
            self.unit = FP32.unit_roundoff
            self.notes.append("from float64 inputs come results of float32's accuracy: judged by that")
        else:
            self.unit = FP64.unit_roundoff


def read_off(key_gradients: Tensor, row: Row, smallest: float, least: float = _LEAST_OF_64) -> Tensor:
    """Derivatives by scores [B, H, N] from gradients of keys [B, N, H, K] in a format whose smallest normal number is that.

    Zero where a key moves its score by less than `least` (a rectifier's dead one not at all), or where what it gets is
    subnormal and so not precise.
    """
    largest = row.lever.abs().amax(-1, keepdim=True)  # squares of what a faded query leaves may underflow
    able = (largest > least) & (key_gradients.abs().amax(-1, keepdim=True) >= smallest)
    scaled = row.lever / largest.where(able, torch.ones_like(largest))
    found = (key_gradients * scaled).sum(-1, keepdim=True) / scaled.square().sum(-1, keepdim=True) / largest
    lost = key_gradients.isfinite().all(-1, keepdim=True) & ~able
    return found.where(~lost, torch.zeros_like(found))[..., 0].transpose(1, 2)
