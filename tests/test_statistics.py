"""Axes, statistics and thresholds: how a result becomes heads, rows and columns, and what chance may reach there."""

import math

import pytest
import torch

from linverify import registry
from linverify.budget import NEAR, judged, profiled, scale
from linverify.dtype import FP32
from linverify.ensemble import Member
from linverify.judge import Judge
from linverify.location import _index
from linverify.statistics import CHANCE, TILE, Axes, coherent, implied, ratio, statistics, thresholds

SIZES = {"B": 2, "N": 2, "T": 5, "H": 6, "G": 3, "K": 4, "V": 7, **dict.fromkeys("ACDEFLMPRS", 3)}
RESULTS = [
    (name, result)
    for name, operator in registry.operators().items()
    for result in (
        *("o", *(("state", "dinitial_state") if operator.state_axes else ())),
        *(f"d{i.name}" for i in operator.inputs),
    )
]


@pytest.mark.parametrize(("name", "result"), RESULTS)
def test_positions_survive_the_view(name: str, result: str) -> None:
    axes = Judge(registry.operator(name), "cpu").axes(result)
    shape = [SIZES[a] for a in axes.letters]
    numbered = torch.arange(math.prod(shape)).reshape(shape)
    view = axes.view(numbered)
    assert view.dim() == 3
    assert sorted(view.flatten().tolist()) == list(range(math.prod(shape)))
    for h, r, c in view.new_ones(view.shape).nonzero().tolist():
        assert int(numbered[_index(axes, shape, h, r, c)]) == int(view[h, r, c])
    # tokens (or the state's key axis) are rows and the feature axis is the column
    letters = axes.letters
    for role, axis in (("T", 1), ("V", 2)):
        if role in letters and (role == "T" or letters[-1] == "V"):
            assert view.shape[axis] == SIZES[role]
            for i in range(SIZES[role]):
                one = numbered.select(letters.index(role), i).flatten().tolist()
                assert sorted(view.select(axis, i).flatten().tolist()) == sorted(one)
    if letters == "NHKV":
        assert torch.equal(view, numbered.flatten(0, 1))


@pytest.mark.parametrize("letters", ["BTHV", "NHKV", "BTH", "H", "HK", "BTGK"])
def test_leading_axes_are_kept(letters: str) -> None:
    axes = Axes(letters)
    x = torch.randn(3, 2, *(SIZES[a] for a in letters), generator=torch.Generator().manual_seed(1))
    view = axes.view(x)
    assert view.shape[:2] == (3, 2)
    assert torch.equal(view[2, 1], axes.view(x[2, 1]))


def test_chance_allows_small_groups_more() -> None:
    large = thresholds((8, 4096, 128), {})
    assert large == CHANCE
    tiny = thresholds((1, 1, 1), {})
    assert all(tiny[k] == 6 for k in ("rms", "head", "row", "column"))
    assert tiny["maximum"] == tiny["row filter"] == CHANCE["maximum"]
    narrow = thresholds((4, 512, 1), {})
    assert narrow["row"] == 6  # one element a row
    assert narrow["column"] == CHANCE["column"]
    assert narrow["tile"] == CHANCE["tile"] == thresholds((4, 512, 64), {})["tile"]
    assert thresholds((2, 8, 8), {})["head"] == CHANCE["head"]
    assert thresholds((2, 2, 2), {})["head"] == 3
    found = thresholds((8, 4096, 128), {"rms": 1.3, "maximum": 2.0})
    assert (found["rms"], found["maximum"]) == (1.3, CHANCE["maximum"])


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 1), (2, 1, 3), (3, 5, 2), (2, 33, 20), (2, 64, 64)])
def test_correct_errors_stay_below_the_thresholds(shape: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(4)
    errors = torch.randn(200, *shape, generator=generator, dtype=torch.float64)
    ref = 100 * torch.randn(shape, generator=generator, dtype=torch.float64)
    sigma = torch.ones(shape, dtype=torch.float64)
    found = statistics(errors, sigma, ref, 0.0)
    assert len(found) == 200
    worst = [ratio(f, thresholds(shape, {}))[0] for f in found]
    assert 0.3 < max(worst) < NEAR / 1.5
    # with few elements the total may exceed its own threshold by chance; what is a group of few must not
    others = {k: v for k, v in thresholds(shape, {}).items() if k != "rms"}
    assert max(ratio(f, others)[0] for f in found) < 1


ONES = torch.ones(2, 40, 24, dtype=torch.float64)


def noisy(scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(ONES.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def decided(error: torch.Tensor, ref: torch.Tensor = ONES * 0, bias: float = 0.0) -> tuple[float, str]:
    return ratio(statistics(error[None], ONES, ref, bias)[0], thresholds((2, 40, 24), {}))


@pytest.mark.parametrize(
    ("where", "excess", "statistic"),
    [
        ((1, 39, 23), 6.5, "maximum"),
        ((slice(None), slice(None), slice(None)), 1.2, "rms"),
        ((1, slice(None), slice(None)), 1.6, "head"),
        ((1, 7, slice(None)), 3.3, "row"),
        ((0, slice(None), 5), 3.3, "column"),
        ((0, slice(16, 32), slice(0, 16)), 2.7, "tile"),
    ],
)
def test_each_energy_finds_its_own(where: tuple[object, ...], excess: float, statistic: str) -> None:
    error = noisy().sign()  # no element stands out
    assert decided(error)[0] < 1
    error[where] *= excess
    found, allowed = statistics(error[None], ONES, ONES * 0, 0.0)[0], thresholds((2, 40, 24), {})
    beyond = {k for k in CHANCE if found[k] > allowed[k]}
    # a louder head or tile also raises what holds it
    assert statistic in beyond <= {statistic, *({"rms", "head"} if statistic in ("head", "tile") else ())}


def test_a_ragged_tile_counts_its_own_elements() -> None:
    error = ONES * 0
    error[1, 32:, 16:] = 3.0  # 8 x 8 of a 16 x 16 tile
    found = statistics(error[None], ONES, ONES * 0, 0.0)[0]
    assert found["tile"] == pytest.approx(3.0)
    assert TILE == 16
    single = torch.full((1, 1, 1, 1), 5.9, dtype=torch.float64)
    share, _ = ratio(statistics(single, single[0] * 0 + 1, single[0] * 0, 0.0)[0], thresholds((1, 1, 1), {}))
    assert share < 1  # one element may be 6 units off, whatever it is called


def test_a_filter_finds_an_error_along_the_result() -> None:
    ref = noisy(50.0)
    error = 0.01 * ref  # no element, row or tile stands out
    found = statistics((error + noisy(0.5))[None], ONES, ref, 0.0)[0]
    assert found["maximum"] < CHANCE["maximum"]
    assert found["rms"] < 1.2
    assert found["head filter"] > CHANCE["head filter"]
    assert decided(error, ref)[1] == "head filter"
    assert decided(error, ref, bias=0.011)[0] < 1


def test_what_is_not_finite_counts_as_huge() -> None:
    for value in (math.nan, math.inf, -math.inf):
        error = noisy()
        error[0, 0, 0] = value
        assert decided(error)[0] > 1e6


def test_coherent_bias_grows_with_the_sequence() -> None:
    assert coherent(0) == 4 * FP32.unit_roundoff
    assert coherent(1024) - coherent(512) == 64 * FP32.unit_roundoff


def test_the_profile_steadies_few_samples() -> None:
    scale = torch.linspace(1, 30, 40, dtype=torch.float64)[:, None] * torch.linspace(1, 4, 24, dtype=torch.float64)
    draws = torch.randn(2, 1, 40, 24, generator=torch.Generator().manual_seed(6), dtype=torch.float64) * scale
    plain = draws.square().mean(0)[0] / scale.square()
    steadied = profiled(draws)[0] / scale.square()
    assert float(steadied.log().std()) < 0.5 * float(plain.log().std())
    assert float(steadied.mean()) == pytest.approx(1.0, abs=0.2)


def test_one_row_as_far_off_as_the_nulls_passes_in_its_head_and_more_rows_do_not() -> None:
    ref, sigma = ONES.clone(), ONES
    heavy = torch.zeros_like(ONES)
    heavy[0, 7] = 60.0  # a row whose normaliser nearly vanishes, in one realisation of a correct kernel
    null = statistics(heavy[None], sigma, ref, 0.0)[0] | {"head filter": 1.0, "column filter": 1.0, "tile": 1.0}
    allowed = {k: max(v, implied(null, sigma, ref)[k]) for k, v in null.items() if k != "maximum"}
    seen = statistics(torch.stack([heavy.roll(3, 1), heavy + heavy.roll(3, 1)]), sigma, ref, 0.0)
    assert all(seen[0][k] <= v * (1 + 1e-12) for k, v in allowed.items())
    assert seen[1]["head filter"] > 1.9 * allowed["head filter"]


def test_an_ordinary_null_implies_nothing() -> None:
    noise = torch.randn(1, 2, 40, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    null = statistics(noise, ONES, ONES, 0.0)[0]
    chance = thresholds((2, 40, 24), {})
    assert all(v <= chance[k.partition(",")[0]] for k, v in implied(null, ONES, ONES).items())


def test_what_truncation_takes_is_no_reason_to_let_a_gain_pass() -> None:
    ref, noise = noisy(50.0), noisy().roll(7, 1)
    lost = torch.stack([0.9 * noise - 0.02 * ref, 0.5 * noise - 0.022 * ref])
    apart = torch.stack([0.2 * noise, -0.2 * noise])
    share, which, _ = judged(0.8 * noise + 0.02 * ref, lost, apart, ONES, ref, 0.0)
    assert which == "head filter"
    assert share > 3
    assert judged(0.8 * noise - 0.02 * ref, lost, apart, ONES, ref, 0.0)[0] < 1
    # what realisations of a member have apart has no sign
    assert judged(0.8 * noise + 0.02 * ref, lost, apart - 0.02 * ref, ONES, ref, 0.0)[0] < 1.2


def test_realisations_stand_apart_from_their_members_mean_as_far_as_they_scatter() -> None:
    generator = torch.Generator().manual_seed(6)
    means = torch.tensor([3.0, -3.0], dtype=torch.float64)
    drawn = [m + torch.randn(4, *ONES.shape, generator=generator, dtype=torch.float64) for m in means]
    members = [Member("", {"o": x[:2]}, {"o": x[2:3]}, {"o": x[3:]}, frozenset({"o"})) for x in drawn]
    _, samples, apart = scale(members, lambda errors: errors["o"], Axes("HTV"), ONES)
    assert torch.equal(samples, torch.cat([x[2:] for x in drawn]))
    assert apart.shape == (8, *ONES.shape)
    assert float(apart.std()) == pytest.approx(1.0, abs=0.05)
    assert float(apart.mean().abs()) < 0.05
