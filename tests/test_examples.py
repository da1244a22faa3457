"""The examples of the README say what they are said to say."""

import difflib
import importlib.util
from pathlib import Path

import pytest

from linverify.plan import Plan
from linverify.session import check
from linverify.silence import Silence

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
RIGHT, WRONG = EXAMPLES / "my_gla.py", EXAMPLES / "my_gla_without_tail_mask.py"


def code(path: Path) -> list[str]:
    text = path.read_text()
    return text[text.index("import torch") :].splitlines()


def test_only_the_tail_mask_is_missing() -> None:
    changed = [line[1:].strip() for line in difflib.ndiff(code(RIGHT), code(WRONG)) if line[0] in "+-"]
    assert len(changed) == 6
    assert all(line.startswith("real = ") for line in changed)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is for Linux")
@pytest.mark.parametrize(("path", "verdict"), [(RIGHT, "pass"), (WRONG, "violation")])
def test_the_verdicts(path: Path, verdict: str) -> None:
    plan = Plan(f"{path}::my_gla", profile="quick", dtypes=("fp32",), properties=("agreement", "gradients"))
    (result,) = check(plan, Silence())
    assert result.verdict == verdict
    assert (result.operator, result.form, result.backend) == ("gla", "chunkwise", "triton")
