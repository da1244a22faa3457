"""The arithmetic behind the diagnostics: exponents, localities and spectra with known answers."""

import math
from pathlib import Path

import pytest
import torch

from linverify.mechanism import BOUNDED, BY_EPS, UNBOUNDED
from linverify.plan import Plan
from linverify.stability.dilution import locality, statistics
from linverify.stability.growth_exponent import NEAR, law
from linverify.stability.records import Finding
from linverify.stability.runner import kernels

ABSCISSAS = [2.0**-n for n in range(40)]
FOUND_WITHIN = 2.0
KERNELS = Path(__file__).with_name("stability_kernels.py")


@pytest.mark.parametrize("eps", [1e-6, 1e-8])
@pytest.mark.parametrize("power", [1, 2])
def test_a_law_with_an_eps_has_its_exponent_and_its_crossover(eps: float, power: int) -> None:
    found = law(ABSCISSAS, [(x + eps) ** -power for x in ABSCISSAS])
    assert abs(found.slope + power) < NEAR
    assert found.low <= found.slope <= found.high
    assert found.verdict == BY_EPS
    assert found.level == pytest.approx(eps**-power, rel=0.05)
    assert found.crossover is not None
    assert 1 / FOUND_WITHIN < found.crossover / eps < FOUND_WITHIN


def test_a_clamp_ends_growth_at_once() -> None:
    found = law(ABSCISSAS, [1 / max(x, 1e-6) for x in ABSCISSAS])
    assert found.slope == pytest.approx(-1)
    assert found.crossover == pytest.approx(1e-6, rel=0.1)


def test_growth_without_end_is_unbounded_and_none_is_bounded() -> None:
    endless = law(ABSCISSAS, [1 / x for x in ABSCISSAS])
    assert (endless.verdict, endless.level, endless.crossover) == (UNBOUNDED, None, None)
    still = law(ABSCISSAS, [0.25] * len(ABSCISSAS))
    assert (still.verdict, still.crossover) == (BOUNDED, None)
    settling = law(ABSCISSAS, [0.25 / (1 + x) for x in ABSCISSAS])  # its level is reached at once
    assert settling.verdict == BOUNDED


def test_a_law_wants_points() -> None:
    with pytest.raises(ValueError, match="at least 8"):
        law([1.0, 0.5], [1.0, 2.0])
    with pytest.raises(ValueError, match="got 0"):
        law(ABSCISSAS, [math.inf] * len(ABSCISSAS))


T = 1024


def decayed(gamma: float) -> torch.Tensor:
    """Weights gamma^(i - j), normalised row by row."""
    apart = (torch.arange(T)[:, None] - torch.arange(T)[None, :]).double()
    p = (gamma**apart).tril()
    return p / p.sum(-1, keepdim=True)


def test_uniform_weights_are_wholly_diluted() -> None:
    found = statistics(torch.ones(T, T, dtype=torch.float64).tril())
    assert found["locality"] == pytest.approx(found["uniform"])
    assert found["entropy"] == pytest.approx(1)
    assert found["support"] == pytest.approx(1)
    assert found["cancellation"] == pytest.approx(1)
    everything = torch.ones(T, T, dtype=torch.float64)
    seen = statistics(everything)
    assert (seen["entropy"], seen["support"]) == (pytest.approx(1), pytest.approx(1))
    assert seen["locality"] == seen["uniform"]
    # half of the window lies on each side; at the ends there is but one side
    assert float(locality(everything, 0.4)) == pytest.approx(0.36, abs=0.01)


def test_a_retention_s_locality_has_its_closed_form() -> None:
    gamma, w = 31 / 32, 64
    last = decayed(gamma)[-1:]
    rows = torch.zeros(T, T, dtype=torch.float64)
    rows[-1] = last
    near = float(locality(rows, w / T)) * T  # the other rows hold nothing
    assert near == pytest.approx((1 - gamma**w) / (1 - gamma**T))
    assert near == pytest.approx(0.869, abs=0.001)


def test_blocks_are_local_beyond_their_size() -> None:
    block = torch.block_diag(*[torch.ones(16, 16).tril()] * (T // 16)).double()
    assert float(locality(block, 16 / T)) == 1.0


def test_signs_that_cancel_are_counted() -> None:
    p = torch.tensor([[1.0, 0.0], [1.0, -0.9]], dtype=torch.float64)
    assert statistics(p)["cancellation"] == pytest.approx(19)


def spectrum(target: str, operator: str) -> Finding:
    (found,) = kernels(Plan(target, operator=operator), (), lambda _: None)
    return next(f for f in found.findings if f.diagnostic == "D3")


def test_an_average_over_the_past_has_the_spectrum_of_cesaro(tmp_path: Path) -> None:
    # the norm of the causal average of 64 values; below 2 for every T (Hardy's inequality)
    average = (torch.ones(64, 64, dtype=torch.float64).tril() / torch.arange(1, 65)[:, None]).double()
    expected = float(torch.linalg.matrix_norm(average, 2))
    assert expected == pytest.approx(1.60, abs=0.005)
    found = spectrum(f"{KERNELS}::right", "normalized_linear_attention")
    assert found.number == pytest.approx(expected, rel=0.02)  # 1 + elu weighs nearly alike
    assert found.figures["adjoint"] < 1e-15
    assert found.holds


@pytest.mark.parametrize("length", [1024])
def test_a_retention_stretches_by_less_than_its_memory(length: int) -> None:
    gamma = 31 / 32
    apart = (torch.arange(length)[:, None] - torch.arange(length)[None, :]).double()
    norm = float(torch.linalg.matrix_norm((gamma**apart).tril(), 2))
    assert norm < 1 / (1 - gamma)
    assert norm == pytest.approx(31.86, abs=0.005)


def test_a_delta_rule_with_unit_keys_is_diagnosed_without_rows() -> None:
    (found,) = kernels(Plan("linverify.impls.torch_recurrent:delta_rule"), (), lambda _: None)
    by_name = {f.diagnostic: f for f in found.findings}
    assert by_name["D2"].verdict == "unchecked"
    assert "no rows of weights" in by_name["D2"].sentence
    assert by_name["D4"].verdict == "bounded"
    assert abs(by_name["D4"].number or 0.0) < NEAR
    assert by_name["D3"].holds
    assert found.verdict == "pass"
