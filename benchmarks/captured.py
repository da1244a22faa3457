"""Results of real kernels, captured on a GPU, as problems and results of linverify (format: tests/data/README.md)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from linverify import registry
from linverify.dtype import format_of
from linverify.operator import Operator
from linverify.problem import Problem

# Kernel of flash-linear-attention 0.6.0: the operator, and its recipe as read in its source.
KERNELS = {
    "none": ("linear_attention", "native,backward=separate"),
    "scalar": ("simple_gla", "native,backward=separate,folded_query=native"),
    "diag": ("gla", "native,backward=separate,blocks=tf32,backward_scores=fp32"),
    "diagrec": ("gla", "fp32,recurrent"),
    "delta": ("delta_rule", "native,backward=separate,strong_key=native,partials=native,key_partials=native"),
    "gdelta": (
        "gated_delta_rule",
        "fp32:tf32,backward=separate,u=fp32;native,backward=separate,folded_query=tf32,strong_key=native,partials=native,key_partials=native",
    ),
    "kda": (
        "kda",
        "fp32:tf32,backward=separate,blocks=tf32,u=fp32;native,backward=separate,blocks=tf32,partials=native,strong_key=native",
    ),
}


@dataclass(frozen=True, slots=True, eq=False)
class Captured:
    """One case: what was asked, and what the kernel gave.

    Attributes:
        name: "gdelta|bfloat16|33|64|64|nodecay".
        kernel, dtype, regime: parts of it; the dtype by its short name.
        operator: what the kernel computes.
        problem: inputs and upstream gradients.
        results: by name.
        precision: class without a declaration.
        recipe: the kernel's declaration.
    """

    name: str
    kernel: str
    dtype: str
    regime: str
    operator: Operator
    problem: Problem
    results: dict[str, Tensor]
    precision: str
    recipe: str

    @property
    def sums_in_16_bits(self) -> bool:
        """The gate gradient of gdelta and kda in 16 bits under weak decay: a sum in the input's dtype, a real loss."""
        return self.kernel in ("gdelta", "kda") and self.dtype != "fp32" and self.regime == "nodecay"


def captured(folder: Path, *, prefix: str = "", kernels: tuple[str, ...] = ()) -> Iterator[Captured]:
    """Yield every case of a folder of safetensors files."""
    for path in sorted(folder.glob(f"{prefix}*.safetensors")):
        found: dict[str, dict[str, Tensor]] = {}
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118  # no mapping
                name, _, tensor = key.rpartition("|")
                if not kernels or name.split("|")[0] in kernels:
                    found.setdefault(name, {})[tensor] = file.get_tensor(key)
        for name, tensors in sorted(found.items()):
            yield _case(name, tensors)


def _case(name: str, tensors: dict[str, Tensor]) -> Captured:
    kernel, *_, regime = name.split("|")
    operator_name, recipe = KERNELS[kernel]
    operator = registry.operator(operator_name)
    inputs = {i.name: tensors[f"in_{i.name}"] for i in operator.inputs}
    problem = Problem(
        inputs,
        initial_state=tensors["in_h0"],
        scale=0.125,
        final_state=True,
        cotangents={"o": tensors["do"], "state": tensors["ds"]},
        wrt=(*inputs, "initial_state"),
    )
    results = {"o": tensors["o"], "state": tensors["s"], **{f"d{n}": tensors[f"d_{n}"] for n in inputs}}
    results["dinitial_state"] = tensors["d_h0"]
    dtype = format_of(tensors["o"].dtype).name
    precision = "tf32" if dtype == "fp32" and kernel != "diagrec" else dtype
    return Captured(name, kernel, dtype, regime, operator, problem, results, precision, recipe)


def one_thread() -> None:
    """Small tensors: threads would only wait for each other."""
    torch.set_num_threads(1)
