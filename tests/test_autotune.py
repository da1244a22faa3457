"""Pinned autotuning, on the CPU interpreter and on a GPU, and what a GPU adds to faults."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from linverify.autotune import _run_pinned
from linverify.problem import Call, Fault, Problem, Refused
from tests.worker_harness import Everything, problem

pytest.importorskip("triton")
KERNELS = Path(__file__).with_name("triton_kernels.py")
on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda:0", marks=on_gpu)])
def target(request):
    everything = Everything(KERNELS, request.param)
    yield everything
    everything.close()


@pytest.fixture(scope="module")
def gpu():
    everything = Everything(KERNELS, "cuda:0")
    yield everything
    everything.close()


def test_the_first_configuration_runs(target):
    assert (target.ask("block")[0].o == 32).all()
    assert (target.ask("pruned_block")[0].o == 64).all()


def test_poison_shows_through_a_kernel(target):
    (nan,) = target.ask("half_written", Call(problem(), poison="nan"))
    assert not nan.o.reshape(-1)[:240].isnan().any()
    assert nan.o.reshape(-1)[240:].isnan().all()
    (large,) = target.ask("half_written", Call(problem(), poison="large"))
    assert large.o.isfinite().all()
    assert (large.o.reshape(-1)[240:] > 2.0**100).all()


def test_triton_is_told_from_torch(target):
    assert target.runner("block").describe().uses_triton
    assert not target.runner("no_triton").describe().uses_triton
    assert "triton" in target.runner("block").describe().versions


class OutOfResources(Exception):
    """Named as Triton's."""


def tuner(run, configs=("large", "small")):
    choices = [SimpleNamespace(all_kwargs=lambda n=n: {"size": n}, pre_hook=None) for n in configs]
    return SimpleNamespace(
        arg_names=["x"], keys=["x"], configs=choices, early_config_prune=None, fn=SimpleNamespace(run=run), nargs=None
    )


def test_the_next_configuration_runs_where_the_first_does_not_fit():
    asked = []

    def run(x, *, size):
        asked.append(size)
        if size == "large":
            raise OutOfResources
        return x

    pinned = tuner(run)
    assert [_run_pinned(pinned, 7), _run_pinned(pinned, 7), _run_pinned(pinned, 8)] == [7, 7, 8]
    assert asked == ["large", "small", "small", "large", "small"]


@pytest.mark.parametrize("error", [OutOfResources, ValueError])
def test_an_error_of_every_configuration_is_raised(error):
    def run(x, *, size):
        raise error(size)

    with pytest.raises(error, match="small" if error is OutOfResources else "large"):
        _run_pinned(tuner(run), 7)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestGpu:
    """What only a GPU can do."""

    def test_a_configuration_without_room_is_skipped(self, gpu):
        assert (gpu.ask("side")[0].o == 0).all() or gpu.ask("side")[0].o.max() == 16

    def test_illegal_memory_access_is_a_crash(self, gpu):
        for _ in range(2):
            with pytest.raises(Fault) as caught:
                gpu.ask("far_away")
            assert caught.value.kind == "crash"
            assert "illegal memory access" in caught.value.message

    def test_out_of_memory(self, gpu):
        with pytest.raises(Fault) as caught:
            gpu.ask("too_much_memory")
        assert caught.value.kind == "out_of_memory"

    def test_memory_that_others_hold_is_no_fault_of_the_target(self, gpu):
        free, _ = torch.cuda.mem_get_info()
        held = torch.empty(max(0, free - (4 << 30)), dtype=torch.uint8, device="cuda")
        try:
            with pytest.raises(Refused, match="other processes hold"):
                gpu.ask("eight_gib")
        finally:
            del held
            torch.cuda.empty_cache()
        gpu.ask("eight_gib")

    def test_a_launch_that_fails_leaves_the_device_usable(self, gpu):
        with pytest.raises(Refused):
            gpu.ask("bad_launch")
        assert gpu.runner("bad_launch").starts == 1

    def test_layouts_and_gradients_on_the_device(self):
        everything = Everything(device="cuda:0")
        asked = problem(cotangents={"o": torch.ones(2, 5, 3, 16)}, wrt=("q", "k", "v"), final_state=True)
        tensors = {n: t[:1].expand_as(t).contiguous() for n, t in asked.tensors.items()}
        try:
            (plain,) = everything.ask("good", asked.with_(tensors=tensors))
            for layout in ("strided", "offset", "expanded"):
                (laid,) = everything.ask("good", Call(asked.with_(tensors=tensors), layout, layout))
                assert laid.breaches == ()
                for name, tensor in plain.named().items():
                    torch.testing.assert_close(laid.named()[name], tensor, msg=f"{layout} {name}")
            (mutated,) = everything.ask("mutates")
            assert [b.kind for b in mutated.breaches] == ["mutated_input"]
        finally:
            everything.close()

    def test_the_parent_opens_no_device(self, gpu):
        gpu.ask("block", Problem(problem().tensors))
        assert "triton_kernels" not in sys.modules


def test_another_configuration_runs_on_request():
    from linverify.binding import bind
    from linverify.problem import Program
    from linverify.runner import Runner
    from linverify.target import parse
    from tests.worker_harness import OPERATOR

    with Runner(parse(f"{KERNELS}::block"), device="cpu") as runner:
        runner.bind(bind(OPERATOR, runner.describe().functions[0]), OPERATOR)

        def ask(place: int, *only: str):
            return runner.run(Program((Call(problem()),), place=place, only=only), time_limit=60)[0]

        assert [float(ask(place).o.flatten()[0]) for place in (0, 1, 7, 1, 0)] == [32, 64, 32, 64, 32]
        (kernel,) = ask(1).launched
        assert kernel.kernel.endswith("._write_block")
        assert (kernel.ran, kernel.unfit) == (1, ())
        assert ["BLOCK: 32" in kernel.configurations[0], "BLOCK: 64" in kernel.configurations[1]] == [True, True]
        assert float(ask(1, "another").o.flatten()[0]) == 32
        assert float(ask(1, "another", kernel.kernel).o.flatten()[0]) == 64
