"""Calls amid other things: on another stream or thread, on a busy device, after a call on another device."""

import pytest
import torch

from linverify.arena import Arena
from linverify.layout import footprint
from linverify.problem import Call, Fault
from tests.worker_harness import Everything, problem, with_gradients

ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
AMID = ("another stream", "load")


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda:0", marks=ON_GPU)])
def target(request: pytest.FixtureRequest):
    everything = Everything(device=request.param)
    yield everything
    everything.close()


@pytest.fixture(scope="module")
def on_cpu():
    everything = Everything()
    yield everything
    everything.close()


@pytest.fixture(scope="module")
def on_gpu():
    everything = Everything(device="cuda:0")
    yield everything
    everything.close()


@pytest.mark.parametrize("amid", AMID)
def test_a_correct_function_gives_the_same_bits(target: Everything, amid: str) -> None:
    asked = with_gradients(final_state=True, initial_state=torch.ones(2, 3, 8, 16))
    plain, around, again = target.ask("good", Call(asked), Call(asked, amid=amid), Call(asked))
    for name, tensor in plain.named().items():
        assert torch.equal(around.named()[name], tensor)
        assert torch.equal(again.named()[name], tensor)
    assert (plain.breaches, around.breaches, again.breaches) == ((), (), ())
    assert around.seconds.keys() == {"forward", "backward"}


@pytest.mark.parametrize("amid", AMID)
def test_what_a_call_breaks_is_seen_there_too(target: Everything, amid: str) -> None:
    (result,) = target.ask("mutates", Call(problem(), amid=amid))
    assert [b.kind for b in result.breaches] == ["mutated_input"]
    (result,) = target.ask("leaves_gap", Call(problem(), amid=amid))
    assert result.o[:, 0].isnan().all()


def test_another_stream_of_a_cpu_is_another_thread_and_a_busy_one_has_more(on_cpu: Everything) -> None:
    plain, threaded, busy, after = (
        r.o[0, 0, 0, 0].item()
        for r in on_cpu.ask(
            "tells_its_thread",
            Call(problem()),
            Call(problem(), amid="another stream"),
            Call(problem(), amid="load"),
            Call(problem()),
        )
    )
    assert (plain, threaded, busy, after) == (11, 20, 31, 11)


def test_an_exit_from_another_thread_is_a_fault(on_cpu: Everything) -> None:
    with pytest.raises(Fault) as caught:
        on_cpu.ask("exits_from_its_thread", Call(problem(), amid="another stream"))
    assert (caught.value.kind, "SystemExit" in caught.value.message) == ("exit", True)


def test_a_call_on_another_device_leaves_its_mark_and_nothing_else(on_cpu: Everything) -> None:
    """One process: the function remembers what it was asked on first."""
    elsewhere = Call(with_gradients(final_state=True), amid="another device")
    skipped, result = on_cpu.ask("chosen_by_the_first_device", elsewhere, Call(problem()))
    assert skipped.named() == {}
    right = on_cpu.ask("linear")[0].o
    assert not torch.equal(result.o, right)
    assert torch.equal(on_cpu.ask("good", elsewhere, Call(problem(scale=1.0)))[1].o, right)
    assert torch.equal(on_cpu.ask("raises_elsewhere", elsewhere, Call(problem()))[1].o, right)


def test_a_function_may_fall_where_tensors_hold_nothing(on_cpu: Everything) -> None:
    with pytest.raises(Fault):
        on_cpu.ask("falls_on_another_device", Call(problem(), amid="another device"))


def test_inputs_that_come_late_come_whole() -> None:
    x = torch.randn(3, 4)
    arena = Arena({"x": footprint(x, "contiguous")}, torch.device("cpu"))
    arena.blank()
    assert arena.placed["x"].view.isnan().all()
    arena.restore()
    assert torch.equal(arena.placed["x"].view, x)
    assert not any(bool(s.flag) for s in arena.suspicions())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_work_on_the_default_stream_is_seen(on_gpu: Everything) -> None:
    right = on_gpu.ask("linear")[0].o
    plain, around = on_gpu.ask("on_the_default_stream", Call(problem()), Call(problem(), amid="another stream"))
    assert torch.equal(plain.o, right)
    assert not torch.equal(around.o, right)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_choice_kept_from_another_gpu_is_seen(on_gpu: Everything) -> None:
    right = on_gpu.ask("linear")[0].o
    elsewhere = Call(problem(), amid="another device")
    assert not torch.equal(on_gpu.ask("chosen_by_the_first_device", elsewhere, Call(problem()))[1].o, right)
