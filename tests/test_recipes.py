"""Declared recipes: read from words, exact without rounding, sharper than the usual rule, and as strict as they say."""

import dataclasses

import pytest
import torch

from linverify import budget, draw, registry
from linverify.case import Case
from linverify.cli import main
from linverify.declared import declared
from linverify.dtype import BF16, FP16, FP32, FP64, TF32, TF32_NEAREST, round_to, ulp
from linverify.ensemble import run, simulated
from linverify.errors import UsageError
from linverify.judge import Judge
from linverify.noise import Noise
from linverify.operator import GATE_KINDS
from linverify.recipe import FURTHER, GATE_GRADIENTS, POINTS, Recipe, exact
from linverify.reference import stepwise
from linverify.reference.question import pose
from linverify.rule import DECLARED, GENERIC
from linverify.score import Answer
from tests.kinds import PLAIN

ALL = PLAIN


def recipe(text: str, dtype: str = "bf16", precision: str = "") -> Recipe:
    declaration = declared(text)
    assert declaration is not None
    found = declaration.recipe(dtype, precision or dtype)
    assert found is not None
    return found


# Words


def test_words_name_rounding_points() -> None:
    found = recipe("bf16,C=32,state=fp32,scores=tf32,sub=32,output=bf16")
    assert (found.chunk, found.sub, found.state, found.scores, found.output) == (32, 32, FP32, TF32, BF16)
    assert (found.query, found.operands, found.format("carry")) == (BF16, BF16, FP32)
    assert recipe("recurrent").chunk == 0
    assert recipe("quadratic").chunk > 2**20
    assert recipe("tf32rn").scores is TF32_NEAREST
    separate = recipe("native,backward=separate")
    assert (separate.cotangents, separate.decay, separate.gate_gradient) == (FP32, "result", "chunk")


def test_native_is_the_class_of_the_case() -> None:
    text = "native,state=fp32"
    assert recipe(text, "fp32", "tf32").query is TF32
    assert recipe(text, "fp16").query is FP16
    assert recipe(text, "fp32", "fp32").precision == "fp32"
    assert recipe("native,carry=bf16", "fp16").precision == "bf16"


def test_one_recipe_a_dtype() -> None:
    found = declared("fp32:tf32,C=16;bf16")
    assert found is not None
    assert found.recipe("fp32", "tf32") == recipe("tf32,C=16", "fp32", "tf32")
    assert found.recipe("fp16", "fp16") == recipe("bf16")
    assert found.recipe("fp64", "fp64") is None
    only = declared("fp32:tf32")
    assert only is not None
    assert only.recipe("bf16", "bf16") is None
    assert declared(None) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bf61", "did you mean 'bf16'"),
        ("bf16,sate=fp32", "did you mean 'state'"),
        ("bf16,state=fp23", "did you mean 'fp32'"),
        ("bf16,C=40", "multiple of sub=16"),
        ("bf16,C=four", "a number of tokens"),
        ("bf16,sub=0", "a number of tokens"),
        ("bf16,state=fp32,state=bf16", "given twice"),
        ("recurrent,C=16", "given twice"),
        ("bf16,fp16", "expected one format"),
        ("bf16;fp16", "all dtypes is given twice"),
        ("fp23:bf16", "did you mean"),
        ("bf16,gate_gradient=forward", "unknown gate_gradient"),
        ("", "unknown word"),
    ],
)
def test_a_wrong_word_is_named(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        declared(text)


def test_tf32_to_nearest() -> None:
    x = torch.exp2(8 * torch.rand(4096, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 4)
    once = round_to(x, TF32_NEAREST)
    assert torch.equal(round_to(once, TF32_NEAREST), once)
    assert bool(((once - x).abs() <= ulp(x, TF32_NEAREST) * (0.5 + FP32.unit_roundoff / TF32.unit_roundoff)).all())
    assert float((once - x).mean().abs()) < float((round_to(x, TF32) - x).mean().abs()) / 20
    assert torch.isinf(round_to(torch.tensor([torch.inf]), TF32_NEAREST)).all()


# The model


class Silent(Noise):
    """A noise that rounds nowhere, in float64."""

    def __init__(self, one: Recipe, rows: int) -> None:
        super().__init__((one,), 1, rows, dither=False, generator=None, device=torch.device("cpu"))
        self.carrier = torch.float64


def every_point(chunk: int, sub: int, gate_gradient: str) -> Recipe:
    """A recipe that names every point, and rounds at none of them."""
    plain = dataclasses.replace(exact(chunk), sub=sub, decay="result", gate_gradient=gate_gradient)
    return dataclasses.replace(plain, **dict.fromkeys((*POINTS, *FURTHER), FP64))


@pytest.mark.parametrize("gate_gradient", GATE_GRADIENTS)
@pytest.mark.parametrize("name", ALL)
def test_a_declared_recipe_without_rounding_is_the_mathematics(name: str, gate_gradient: str) -> None:
    operator = registry.operator(name)
    for T, chunk, sub, gate in ((1, 16, 16, "mild"), (70, 32, 16, "production"), (45, 64, 32, "strong")):
        case = Case(name, 1, T, 2, 6, 5, dtype="fp64", state="normal", final_state=True, cotangent="both", seed=3)
        case = case.with_(gate=gate) if operator.gated else case
        problem = draw.problem(case, operator)
        question, reference = pose(problem, operator, "cpu"), stepwise(problem, operator)
        gates = tuple(i.name for i in operator.of_kind(*GATE_KINDS))
        noise = Silent(every_point(chunk, sub, gate_gradient), question.rows.q.shape[0])
        forms = run(question, noise, 1, gates)
        every = max(float(t.abs().max()) for n, t in reference.items() if n[0] == "d")
        for form in forms:
            for n, t in form.items():
                size = every if n[0] == "d" else float(reference[n].abs().max())
                assert float((t[0] - reference[n]).abs().max()) < 64 * (T + 11) * FP64.unit_roundoff * size, (n, T)


def answered(name: str, dtype: str, **changes: object) -> tuple[Judge, Answer]:
    operator = registry.operator(name)
    case = Case(name, 1, 100, 2, 16, 20, dtype=dtype, state="normal", final_state=True, cotangent="both", seed=5)
    case = case.with_(gate="production" if operator.gated else "none", **changes)
    judge = Judge(operator, "cpu")
    return judge, judge.answer(draw.problem(case, operator))


def emulated(answer: Answer, one: Recipe) -> dict[str, torch.Tensor]:
    """What a bf16 kernel of this recipe gives."""
    found = simulated(answer.question, one, ())[0]
    keep = {"state", "dinitial_state", "dg", "dw", "dA", "ddt"}
    return {n: t.float() if n in keep else t.bfloat16() for n, t in found.items()}


# Judgement


@pytest.mark.parametrize("name", ["linear_attention", "simple_gla", "gla", "delta_rule", "kda", "rwkv7"])
def test_a_declared_recipe_passes_and_is_sharper(name: str) -> None:
    judge, answer = answered(name, "bf16")
    own = recipe("bf16,C=32,state=fp32", "bf16")
    results = emulated(answer, own)
    for n, value in results.items():
        assert judge.score(answer, n, value, "bf16", own).outcome == "pass", n
    # the same kernel with the usual rounding of the stored state breaks the promise of a float32 state, and nothing else
    broken = emulated(answer, recipe("bf16,C=32"))
    generic = judge.score(answer, "o", broken["o"], "bf16")
    assert generic.outcome == "pass"
    sharp = max(judge.score(answer, n, broken[n], "bf16", own).share for n in ("o", "dq"))
    assert sharp > 1 or name != "linear_attention"  # elsewhere decay and solving add errors of the same size
    answer.variances["bf16"] = {}  # of the realisations, not of the screen before them
    generic = judge.score(answer, "o", broken["o"], "bf16")
    assert float(judge.score(answer, "o", broken["o"], "bf16", own).sigma.median()) <= float(generic.sigma.median())


def test_a_coarser_kernel_breaks_a_finer_promise() -> None:
    judge, answer = answered("gla", "fp32")
    cut = {n: t.float() for n, t in simulated(answer.question, recipe("tf32", "fp32"), ())[0].items()}
    for n in ("o", "state", "dq", "dk", "dv"):
        assert judge.score(answer, n, cut[n], "fp32", recipe("fp32,C=64", "fp32")).outcome == "reject"
        assert judge.score(answer, n, cut[n], "fp32", recipe("tf32,C=64", "fp32")).outcome == "pass"


def test_exact_values_are_left_exact() -> None:
    one = recipe("bf16,C=16")
    x = torch.arange(-64, 64, dtype=torch.float64)[:, None]
    both = [
        Noise((one,), 1, 128, dither=True, generator=torch.Generator().manual_seed(1), device=x.device, careful=careful)
        for careful in (False, True)
    ]
    assert not torch.equal(both[0].round(x, "scores"), x)
    assert torch.equal(both[1].round(x, "scores"), x)
    assert not torch.equal(both[1].round(x * 1.001, "scores"), x * 1.001)


def test_the_declared_rule_needs_agreement_nearer_to_the_line() -> None:
    assert (DECLARED.line, DECLARED.train) == (2.5, 8)
    assert budget.settled([1.7], DECLARED) == "more"
    assert budget.settled([1.7], GENERIC) == "pass"
    assert budget.settled([2.6, 2.6], DECLARED) == "reject"
    assert budget.settled([2.6, 2.6], GENERIC) == "more"


def test_relations_are_judged_by_the_recipe_too() -> None:
    judge, answer = answered("gla", "bf16")
    own = recipe("bf16,C=32")
    o = emulated(answer, own)["o"]
    parts = [(answer, {"o": o}), (answer, {"o": (answer.reference["o"] * 1.1).bfloat16()})]
    assert judge.relation(parts, lambda r: r[0]["o"] - r[1]["o"], "bthv", "bf16", own).outcome == "reject"
    parts[1] = (answer, {"o": answer.reference["o"].bfloat16()})
    assert judge.relation(parts, lambda r: r[0]["o"] - r[1]["o"], "bthv", "bf16", own).outcome == "pass"
    assert {len(m.train["o"]) for members in answer.members.values() for m in members if "o" in m.train} == {
        DECLARED.train
    }


def test_the_command_line_takes_a_recipe_and_names_a_wrong_word(capsys: pytest.CaptureFixture[str]) -> None:
    target = "linverify.impls.torch_chunkwise:linear_attention"
    assert main(["check", target, "--recipe", "bf61"]) == 2
    assert "did you mean 'bf16'" in capsys.readouterr().err
    assert main(["check", target, "--recipe", "bf16", "--claims", "recipe=fp16"]) == 2
    assert "given twice" in capsys.readouterr().err
    quick = ["--device", "cpu", "--profile", "quick", "--property", "agreement", "--dtype", "fp32"]
    assert main(["check", target, "--recipe", "fp32,quadratic;bf16:native", *quick]) == 0
    assert "judged by its declared recipe, fp32,quadratic;bf16:native" in " ".join(capsys.readouterr().out.split())
