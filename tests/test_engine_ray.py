"""--engine ray: a local cluster of two nodes finds what one process finds; examples that failed are shared."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from linverify import cli
from linverify.case import Case
from linverify.errors import CannotCheckError
from linverify.examples import Examples, SharedExamples
from linverify.explore import shrink
from linverify.plan import Plan
from linverify.team import Team
from tests.test_session import Heard
from tests.test_team import KERNELS, LAWS, told, words

CASES = st.builds(Case, st.just("gla"), B=st.integers(1, 4), T=st.integers(1, 300), H=st.integers(1, 4))


def test_a_failing_example_is_tried_first_by_the_next_that_looks_for_one() -> None:
    kept = Examples()
    shared = SharedExamples(lambda name, *given: getattr(kept, name)(*given)).within("space")
    asked: list[Case] = []

    def fails(case: Case) -> bool:
        asked.append(case)
        return case.T > 20

    first = Case("gla", B=3, T=250, H=4)
    alone = shrink(CASES, 20, 0, first, fails, 60.0, shared)
    assert alone.T == 21
    before = len(asked)
    asked.clear()
    assert shrink(CASES, 20, 1, first, fails, 60.0, shared) == alone
    assert asked[0] == alone
    assert len(asked) < before
    asked.clear()
    shrink(CASES, 20, 1, first, fails, 60.0, shared.within("another space"))
    assert asked[0] != alone


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    ray = pytest.importorskip("ray", reason="--engine ray needs the extra 'ray'")
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_raylet_start_wait_time_s", "90")
    try:
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        nodes.add_node(num_cpus=1)
    except Exception as error:  # its daemons give each other fifteen seconds, whatever else the machine does
        pytest.skip(f"Ray's own processes did not start on this machine now: {error}")
    ray.init(address=nodes.address, log_to_driver=False, logging_level="error")
    yield ray
    ray.shutdown()
    nodes.shutdown()


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("kernels.py").write_text(KERNELS.read_text())
    return tmp_path


def test_a_cluster_finds_what_one_process_finds(ray: Any, kernels: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert len({n["NodeID"] for n in ray.nodes()}) == 2
    assert cli.main(words("kernels.py::ragged", workers=1)) == 1
    assert cli.main([*words("kernels.py::ragged", workers=2), "--engine", "ray"]) == 1
    assert told(1) == told(2)
    assert cli.main([*words("kernels.py::nobody", workers=2, laws=LAWS[:1]), "--engine", "ray"]) == 2
    assert "nobody" in capfd.readouterr().err


def test_its_workers_share_what_failed_and_a_dead_one_is_told(ray: Any, kernels: Path) -> None:
    from linverify.engine_ray import Cluster

    plan = Plan("kernels.py::ragged", "gla", properties=LAWS[:1], profile="quick", dtypes=("fp32",), reproducers=None)
    with Cluster(2, "cpu") as cluster, Team(2, cluster.devices, cluster.shares, cluster.examiner) as two:
        (result,) = two.check(plan, Heard())
        assert result.verdict == "violation"
        count = cluster._examples.__ray_call__.remote(lambda kept: sum(len(v) for v in kept._held.values()))
        assert ray.get(count) > 0

        class Killing(Heard):
            def property_started(self, name: str) -> None:
                ray.kill(two._examiners[0]._actor)  # type: ignore[attr-defined]

        with pytest.raises(CannotCheckError, match="Ray worker ended"):
            two.check(plan, Killing())


def test_more_workers_than_the_cluster_carries_are_refused(ray: Any) -> None:
    from linverify.engine_ray import Cluster

    with pytest.raises(CannotCheckError, match="has 2 CPUs"):
        Cluster(3, "cpu")
    with pytest.raises(CannotCheckError, match="no GPU"):
        Cluster(1, "cuda:0")
    assert ray.is_initialized()
