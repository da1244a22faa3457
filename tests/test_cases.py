"""Cases: their text, and the tensors drawn from them."""

import pytest
import torch

from linverify import draw, registry
from linverify.case import Case, parse_case
from linverify.dtype import FORMATS
from linverify.errors import UsageError
from linverify.headroom import LARGEST
from linverify.layout import place
from linverify.reference import chunkwise, solve
from linverify.regime import GATES, OPERANDS, exact, exact_regime, fits, gate_regimes, operand_regimes
from tests.kinds import ALL, PLAIN, suited


def everything(name: str) -> list[Case]:
    """A small case for each regime and each gate of an operator, in each dtype."""
    operator = registry.operator(name)
    exactly = exact_regime(operator)
    regions = [(r, gate_regimes(operator)[-1]) for r in operand_regimes(operator)]
    regions += [("normal", g) for g in gate_regimes(operator, on_request=True)]
    regions += [(exactly, "none"), (exactly, "exact" if operator.gated else "none")] if exactly else []
    return [
        suited(
            Case(
                *(name, 2, 23, 3, 16, 6),
                dtype=d,
                regime=r,
                gate=g,
                state="normal",
                final_state=True,
                cotangent="both",
                seed=7,
            ),
            operator,
        )
        for d in ("fp64", "fp32", "tf32", "bf16", "fp16")
        for r, g in regions
        if fits(r, d)
    ]


def same(first: object, second: object) -> bool:
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return first is None and second is None


def test_a_wrong_id_is_a_usage_error() -> None:
    for text in ("", "gla", "gla/B1/fp32/seed=x", "gla/B1.T2/fp32/nonsense=1", "gla/Bx/fp32"):
        with pytest.raises(UsageError, match="not a case id"):
            parse_case(text)


@pytest.mark.parametrize("name", ALL)
def test_drawing_depends_on_the_case_alone(name: str) -> None:
    case = Case(name, B=2, T=9, H=3, K=5, V=4, state="normal", final_state=True, cotangent="both", seed=11)
    operator = registry.operator(name)
    first = draw.problem(case, operator)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = draw.problem(case, operator)
    assert torch.equal(before, torch.get_rng_state())
    assert all(same(first.tensors[n], again.tensors[n]) for n in first.tensors)
    assert same(first.initial_state, again.initial_state)
    assert all(same(first.cotangents[n], again.cotangents[n]) for n in first.cotangents)
    other = draw.problem(case.with_(seed=12), operator)
    value = operator.value_name
    assert not torch.equal(first.tensors[value], other.tensors[value])
    assert not torch.equal(first.cotangents["o"], other.cotangents["o"])


@pytest.mark.parametrize("name", ALL)
def test_tensors_do_not_repeat_each_other(name: str) -> None:
    drawn_ = draw.problem(
        Case(name, T=9, K=6, V=6, gate=gate_regimes(registry.operator(name))[-1]), registry.operator(name)
    )
    shaped = [t.double() for t in drawn_.tensors.values() if t.shape == (1, 9, 1, 6)]
    assert all(not torch.equal(a, b) for i, a in enumerate(shaped) for b in shaped[:i])


@pytest.mark.parametrize("name", ALL)
def test_shapes_and_dtypes(name: str) -> None:
    operator = registry.operator(name)
    for case in everything(name):
        p = draw.problem(case, operator)
        wide = torch.float64 if case.dtype == "fp64" else torch.float32
        for i in operator.inputs:
            assert p.tensors[i.name].shape == tuple(operator.all_sizes(case.sizes)[a] for a in i.axes)
            assert p.tensors[i.name].dtype == (wide if i.keeps_float32 else FORMATS[case.dtype].torch_dtype)
            assert p.tensors[i.name].is_contiguous()
        assert (p.initial_state is not None) == bool(operator.state_axes)
        if p.initial_state is not None:
            sizes = operator.all_sizes(case.sizes)
            assert p.initial_state.shape == tuple(sizes[a] for a in operator.state_axes)
            assert p.initial_state.dtype == p.cotangents["state"].dtype == wide == draw.default_state_dtype(case.dtype)
        assert p.cotangents["o"].shape == tuple(operator.all_sizes(case.sizes)[a] for a in operator.o_axes)
        assert p.cotangents["o"].dtype == FORMATS[case.dtype].torch_dtype
        assert p.wrt == (*(i.name for i in operator.inputs), *(["initial_state"] if operator.state_axes else []))


@pytest.mark.parametrize("name", ALL)
def test_domains(name: str) -> None:
    operator = registry.operator(name)
    for case in everything(name):
        p = draw.problem(case, operator)
        t = {n: x.double() for n, x in p.tensors.items()}
        for i in operator.of_kind("log_gate"):
            assert (t[i.name] <= 0).all()
            assert torch.isfinite(t[i.name]).all() or case.gate == "inf"
            assert case.gate != "none" or (t[i.name] == 0).all()
        if operator.of_kind("step_size"):
            assert (t["dt"] >= 0).all()
            assert (t["A"] <= 0).all()
            assert (t["dt"] > 0).all() or case.regime == "integers"
        for i in operator.of_kind("strength"):
            assert (t[i.name] >= 0).all()
            assert (t[i.name] * t["k"].square().sum(-1) <= 2).all()
            assert (t[i.name] <= 1).all() or case.regime == "reflecting"
        # rounding moves a norm by no more than a few units in the last place
        slack = 4 * FORMATS[case.dtype].unit_roundoff
        norms = t["k"].norm(dim=-1) if operator.unit_keys else t["a"].norm(dim=-1) if "a" in t else None
        if norms is not None and case.regime not in ("offnorm", "zeros"):
            assert ((norms - 1).abs() <= slack).all()
        if "a" in t:
            eta = t["b"].abs() - t["a"].abs()
            assert (eta <= 0).all()
            assert (t["a"] * t["b"] <= 0).all()


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16", "fp16"])
@pytest.mark.parametrize("norm", [0.2, 1.0, 1.3, 1.414, 7.0])
def test_strength_is_bounded_by_the_key(dtype: str, norm: float) -> None:
    key = torch.zeros(1, 1, 1, 4, dtype=torch.float64)
    key[..., 0] = norm
    beta = torch.tensor([[[1.999]]], dtype=torch.float64)
    got = draw.bounded_strength(beta, key, FORMATS[dtype])
    assert got.item() * norm**2 <= 2.0
    assert got.item() > 0.9 * min(1.999, 2.0 / norm**2)


@pytest.mark.parametrize("name", [n for n in ALL if exact(registry.operator(n))])
def test_nothing_rounds_in_the_exact_regimes(name: str) -> None:
    operator = registry.operator(name)
    regime = exact_regime(operator)
    assert regime is not None
    for T, gate in ((48, "none"), (200, "exact" if operator.gated else "none")):
        case = Case(name, T=T, H=2, K=16, V=24, dtype="bf16", regime=regime, gate=gate, state="normal", scale="one")
        p = draw.problem(suited(case.with_(final_state=True, cotangent="both", seed=3), operator), operator)
        assert (p.initial_state is not None) is bool(operator.state_axes)
        state = {} if p.initial_state is None else {"state": p.initial_state}
        for n, t in {**p.tensors, **state, **p.cotangents}.items():
            assert torch.equal(t, t.round())
            assert set(t.unique().tolist()) <= {-256.0, -1.0, 0.0, 1.0}, n
        exactly = solve(p, operator)
        for n, t in exactly.items():
            whole = t.masked_fill(t.abs() < 2.0**-60, 0.0)  # exp(-256) is zero in float32, not in float64
            assert torch.equal(whole, whole.round()), n
            assert t.abs().max() < 2**24
        assert exactly["o"].abs().max() > 0


def test_retention_has_no_exact_regime() -> None:
    assert not exact(registry.operator("retention"))
    assert "retention" not in [n for n in PLAIN if exact(registry.operator(n))]


@pytest.mark.parametrize("name", PLAIN)
def test_half_precision_has_headroom(name: str) -> None:
    operator = registry.operator(name)
    for regime in operand_regimes(operator):
        if not fits(regime, "fp16"):
            continue
        case = Case(name, T=200, H=2, K=16, V=24, dtype="fp16", regime=regime, state="large", scale="one", seed=3)
        p = draw.problem(case.with_(final_state=True, cotangent="both"), operator)
        for n, t in chunkwise(p, operator).items():
            half = n in ("o", "state") or not operator.input(n[1:]).keeps_float32 if n != "dinitial_state" else True
            assert not half or t.abs().max() <= 2 * LARGEST, (regime, n)
        assert p.tensors[operator.value_name].abs().max() > 0


@pytest.mark.parametrize("name", ALL)
def test_expanded_cases_can_be_expanded(name: str) -> None:
    operator = registry.operator(name)
    for B, H in ((2, 3), (1, 3)):
        case = Case(
            name, B=B, T=9, H=H, K=5, V=4, layout="expanded", state="normal", final_state=True, cotangent="expanded"
        )
        case = suited(case, operator)
        p = draw.problem(case, operator)
        for i in operator.inputs:
            if i.axes[0] == "B" and (B > 1 or "H" in operator.axes):
                view = place(p.tensors[i.name], "expanded", device=torch.device("cpu")).view
                assert view.stride(i.axes.index("B" if B > 1 else "G" if "G" in i.axes else "H")) == 0
        assert (p.cotangents["o"] == 1).all()
        assert draw.call_layouts(case) == ("expanded", "expanded")


def test_flags() -> None:
    gla = registry.operator("gla")
    case = Case("gla", T=5, K=9)
    assert draw.problem(case, gla).scale is None
    assert draw.problem(case.with_(scale="one"), gla).scale == 1.0
    assert draw.problem(case.with_(scale="sqrt"), gla).scale == 9**-0.5
    assert draw.problem(case.with_(scale="other"), gla).scale not in (None, 1.0, 9**-0.5)
    assert draw.problem(case, gla).cotangents == {}
    assert draw.problem(case, gla).wrt == ()
    assert draw.problem(case.with_(cotangent="o", wrt="g"), gla).wrt == ("g",)
    assert list(draw.problem(case.with_(cotangent="state", final_state=True), gla).cotangents) == ["state"]
    assert draw.problem(case.with_(state="zero"), gla).initial_state.abs().max() == 0  # type: ignore[union-attr]
    packed = draw.problem(case.with_(lengths=(2, 0, 3), state="normal"), gla)
    assert packed.lengths == (2, 0, 3)
    assert packed.initial_state is not None
    assert packed.initial_state.shape == (3, 1, 9, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"regime": "norml"}, "did you mean 'normal'"),
        ({"regime": "onehot"}, "unknown regime of gla"),
        ({"gate": "milde"}, "did you mean 'mild'"),
        ({"layout": "strid"}, "did you mean 'strided'"),
        ({"wrt": "x"}, "unknown input"),
        ({"T": 0}, "at least 1"),
        ({"G": 1}, "operator that has groups"),
        ({"lengths": (1, 1)}, "must sum to T=4"),
        ({"cotangent": "state"}, "add final_state=1"),
        ({"wrt": "initial_state"}, "add state=normal"),
        ({"regime": "range", "dtype": "fp16"}, "does not fit"),
        ({"regime": "integers", "gate": "mild"}, "must be one of none, exact"),
    ],
)
def test_contradictions_are_usage_errors(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        draw.problem(Case("gla", T=4).with_(**changes), registry.operator("gla"))


def test_regimes_differ_in_what_they_are_named_for() -> None:
    gla, delta = registry.operator("gla"), registry.operator("delta_rule")

    def k(regime: str, name: str = "gla", T: int = 64) -> torch.Tensor:
        operator = registry.operator(name)
        return draw.problem(Case(name, T=T, K=32, V=32, regime=regime, seed=4), operator).tensors["k"][0, :, 0].double()

    assert (k("positive") >= 0).all()
    assert k("unit").norm(dim=-1).sub(1).abs().max() < 2.0**-20
    assert (k("zeros").norm(dim=-1) == 0).any()
    assert (k("zeros").norm(dim=-1) > 0).any()
    assert k("outlier").abs().max() > 8 * k("normal").abs().max()
    row = k("range").norm(dim=-1)
    assert row.max() / row.min() > 2**8
    unit = k("collinear", "delta_rule")
    assert (unit @ unit.T).min() > 0.9
    norms = k("offnorm", "delta_rule").norm(dim=-1)
    assert norms.min() < 0.6
    assert norms.max() > 1.2
    beta = draw.problem(Case("delta_rule", T=64, regime="reflecting"), delta).tensors["beta"]
    assert beta.max() > 1.2
    g = {n.name: draw.problem(Case("gla", T=256, gate=n.name), gla).tensors["g"] for n in GATES}
    assert -0.2 < g["mild"].mean() < -0.02
    assert -1.1 < g["production"].mean() < -0.5
    assert g["production"].min() > -5
    assert -4.5 <= g["strong"].min() <= g["strong"].max() <= -0.5
    assert set(g["reset"].unique().tolist()) == {-256.0, -60.0, 0.0}
    assert set(g["exact"].unique().tolist()) == {-256.0, 0.0}
    assert torch.isinf(g["inf"]).any()
    assert g["tiny"].abs().max() < 0.001


def test_names_of_regimes_are_unique() -> None:
    for group in (OPERANDS, GATES):
        assert len({r.name for r in group}) == len(group)
        assert all(r.what and r.why for r in group)
