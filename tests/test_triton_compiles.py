"""The built-in Triton kernels compile for GPUs that are not here: the interpreter accepts what the compiler does not."""

import importlib
from typing import Any

import pytest
import torch

from linverify import draw
from linverify.case import Case
from linverify.registry import operator

triton = pytest.importorskip("triton")

# Compute capability to the shared memory that a block may take, in bytes.
# https://docs.nvidia.com/cuda/cuda-c-programming-guide/, table of technical specifications
SHARED = {80: 163 * 1024, 90: 227 * 1024}
TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
}


def compiled(kernel: Any, arguments: dict[str, Any], options: dict[str, Any], capability: int) -> Any:
    """Compile one launch as it would be on such a GPU."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, constants, facts = {}, {}, {}
    for position, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            types[parameter.name], constants[position,] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            types[parameter.name] = f"*{TYPES[value.dtype]}"
            if not parameter.do_not_specialize:
                facts[position,] = [["tt.divisibility", 16]]
        else:
            types[parameter.name] = "fp32" if isinstance(value, float) else "i32"
    source = ASTSource(kernel, types, constants, facts)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
@pytest.mark.parametrize(
    ("module", "name", "dtype", "capability"),
    [
        ("triton_chunkwise", "gla", "bf16", 90),
        ("triton_chunkwise", "simple_gla", "fp32", 80),
        ("triton_recurrent", "rwkv7", "fp32", 90),
        ("triton_delta", "kda", "bf16", 90),
        ("triton_delta", "gated_delta_rule", "fp32", 90),
    ],
)
def test_forward_and_backward_compile(
    module: str, name: str, dtype: str, capability: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: dict[str, int] = {}
    code: list[str] = []

    def launch(self: Any, *args: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        assert grid
        assert not warmup
        named = dict(zip(self.arg_names, args, strict=False))
        options = {n: x for n, x in keywords.items() if n not in self.arg_names}
        arguments = {**named, **{n: x for n, x in keywords.items() if n in self.arg_names}}
        found = compiled(self, arguments, options, capability)
        taken[self.__name__] = max(int(found.metadata.shared), taken.get(self.__name__, 0))
        code.append(found.asm["ptx"])

    monkeypatch.setattr(importlib.import_module("triton.runtime.jit").JITFunction, "run", launch)
    op = operator(name)
    sizes = {"T": 70, "H": 2, "K": 128, "V": 128, "dtype": dtype, "cotangent": "both", "final_state": True}
    problem = draw.problem(Case(name, gate="mild", **sizes), op)  # type: ignore[arg-type]
    inputs = {n: x.requires_grad_() for n, x in problem.tensors.items()}
    function = getattr(importlib.import_module(f"linverify.impls.{module}"), name)
    o, state = function(**inputs, output_final_state=True)
    torch.autograd.grad([o, state], list(inputs.values()), [problem.cotangents["o"], problem.cotangents["state"]])
    assert len(taken) > 1
    assert max(taken.values()) <= SHARED[capability], taken
    if module == "triton_delta":
        assert any("mma.sync" in text for text in code)
        assert not [text for text in code if "wgmma" in text], "the assembler makes wrong code around wgmma"
