"""changed_borders: every case that is drawn needs chunks that a table of its first borders lacks."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linverify import registry
from linverify.inquiry import draw
from linverify.profile import profile
from linverify.properties.changed_borders import moved
from linverify.strategies import strata

LAW = registry.property_named("changed_borders")
OFFERS = frozenset({"scale", "initial_state", "final_state", "packed", "gradients"})


def table(lengths: tuple[int, ...], chunk: int) -> set[tuple[int, int]]:
    """Of every chunk its sequence and its place there, as kernels keep it beside cu_seqlens."""
    return {(n, i) for n, length in enumerate(lengths) for i in range(-(-length // chunk))}


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6).map(tuple))
def test_as_many_sequences_of_as_many_tokens(lengths: tuple[int, ...]) -> None:
    found = moved(lengths)
    assert (len(found), sum(found)) == (len(lengths), sum(lengths))
    assert found != lengths or len(lengths) == 1 or not sum(lengths)
    assert found.index(max(found)) == lengths.index(min(lengths)) or not sum(lengths)


@pytest.mark.parametrize(("backend", "device"), [("torch", "cpu"), ("torch", "cuda:0"), ("triton", "cuda:0")])
@pytest.mark.parametrize("seed", range(20))
def test_every_case_of_quick_needs_chunks_that_the_first_table_lacks(seed: int, backend: str, device: str) -> None:
    asked = strata(
        *(registry.operator("gla"), OFFERS, LAW.space),
        profile=profile("quick"),
        device=device,
        dtypes=("fp32", "bf16", "fp16"),
        claims={},
        backend=backend,
        weight=LAW.weight,
    )
    for stratum in asked:
        cases = draw(stratum.strategy, stratum.cases, zlib.crc32(f"{seed}/{stratum.label}".encode()))
        assert cases
        for case in cases:
            for chunk in (16, 32, 64):
                assert table(moved(case.lengths), chunk) - table(case.lengths, chunk), (case.id, chunk)
