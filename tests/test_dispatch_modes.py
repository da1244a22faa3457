"""Modes that see every operation of torch do not bring in its compiler, which takes seconds to import in each process."""

import subprocess
import sys
from pathlib import Path

import pytest

EMULATED = """
from linverify.dtype import BF16
from linverify.emulation import Emulation
from linverify.recipe import uniform
with Emulation(uniform("bf16", 0, BF16), torch.Generator()):
    x = torch.ones(2, 3, dtype=torch.float64) * 3
"""
NOTED = """
from linverify.stability.weights import Softmaxes
with Softmaxes() as seen:
    torch.ones(2, 3, 3).softmax(-1)
assert len(seen.found) == 1
"""


@pytest.mark.parametrize("code", [EMULATED, NOTED], ids=["emulation", "softmaxes"])
def test_a_mode_imports_no_compiler(code: str) -> None:
    program = f"import sys, torch\n{code}\nassert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[1], check=True)
