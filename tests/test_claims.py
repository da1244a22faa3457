"""Claims: those that exist are taken in any spelling of their values, all others are refused."""

from pathlib import Path

import pytest

from linverify.claims import claimed, values
from linverify.errors import UsageError
from linverify.plan import Plan
from linverify.registry import properties
from linverify.session import check
from linverify.silence import Silence
from linverify.verdict import Status


def test_what_a_command_line_says_goes_before_what_a_kernel_says() -> None:
    assert claimed({"fp32": "ieee", "deterministic": False}, {"deterministic": "true"}) == {
        "fp32": "ieee",
        "deterministic": "true",
    }
    assert claimed({}, {"recipe": "bf16,C=64"}) == {"recipe": "bf16,C=64"}
    assert claimed({"gva": True}) == {"gva": "true"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"determinstic": "true"}, "unknown claim 'determinstic'; did you mean 'deterministic'"),
        ({"deterministic": "yes"}, "claim deterministic=yes: expected deterministic=false or deterministic=true"),
        ({"batch_invariant": "true"}, "expected batch_invariant=bitwise or batch_invariant=rounding"),
        ({"xyzzy": "1"}, "known: batch_invariant, deterministic, fp32, gva, recipe, state_dtype"),
    ],
)
def test_a_claim_that_nobody_knows_is_refused(given: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        claimed(given)


def test_every_claim_of_a_law_can_be_made() -> None:
    laws = [law for law in properties().values() if law.claim]
    assert len(laws) >= 3
    for law in laws:
        key, _, value = law.claim.partition("=")
        assert value in values()[key]


KERNEL = """
import linverify

@linverify.kernel("gla", claims=CLAIMS)
def gla(q, k, v, g, scale=None):
    raise ValueError("refused")
"""


def test_a_claim_in_a_decorator_is_held_to_the_same_words(tmp_path: Path) -> None:
    path = tmp_path / "claims.py"
    path.write_text(KERNEL.replace("CLAIMS", "{'determinstic': 'true'}"))
    with pytest.raises(UsageError, match="did you mean 'deterministic'"):
        check(Plan(str(path), profile="quick", properties=("contract",)), Silence())
    path.write_text(KERNEL.replace("CLAIMS", "{'deterministic': True}"))
    (result,) = check(Plan(str(path), profile="quick", properties=("bitwise_repeatable",)), Silence())
    (law,) = result.properties
    assert (law.required, law.status) == (True, Status.REFUSED)  # Python's True makes the law required, too
