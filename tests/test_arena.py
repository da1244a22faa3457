"""What a call is given lies in one guarded piece of memory, and no change to it goes unseen; transfers change no bit."""

from collections.abc import Callable

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from linverify.arena import Arena
from linverify.contract import Assignment
from linverify.fence import BAND, Fence
from linverify.invoke import run_program
from linverify.layout import footprint, place, same_bits
from linverify.problem import Call, Program
from linverify.suspicion import differ
from linverify.transfer import home
from tests.worker_harness import with_gradients
from tests.worker_kernels import linear

CPU = torch.device("cpu")
LAYOUTS = ("contiguous", "strided", "offset", "expanded")


def values() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 5, 3, 8, generator=generator)
    return {
        "q": q,
        "k": q[:1].expand(2, 5, 3, 8).bfloat16().contiguous(),
        "cu_seqlens": torch.tensor([0, 2, 5], dtype=torch.int32),
        "empty": torch.empty(0, 4, dtype=torch.float16),
        "wide": q[:, :, :, :3].double(),
    }


def laid(layout: str = "contiguous") -> Arena:
    parts = {
        n: footprint(x, layout if x.dim() > 2 else "contiguous", turn) for turn, (n, x) in enumerate(values().items())
    }
    return Arena(parts, CPU)


def seen(arena: Arena | Fence) -> list[tuple[str, str]]:
    return [(b.kind, b.message) for s in arena.suspicions() if bool(s.flag) for b in s.tell()]


def byte(tensor: torch.Tensor, place: int) -> torch.Tensor:
    """The byte that far from a tensor's first one, through the memory of the whole arena."""
    import ctypes

    address = tensor.data_ptr() + place
    return torch.frombuffer((ctypes.c_uint8 * 1).from_address(address), dtype=torch.uint8)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_come_as_they_were(layout: str) -> None:
    arena = laid(layout)
    for name, x in values().items():
        placed = arena.placed[name]
        assert same_bits(placed.view, x)
        assert placed.view.data_ptr() % 64 == 0 or not x.numel()
        assert placed.base.storage_offset() == 0
        assert placed.base.untyped_storage().nbytes() == placed.base.numel() * placed.base.element_size()
    assert seen(arena) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_sent_to_a_gpu_is_what_lies_on_a_cpu(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device "meta" stands in for a GPU until tensors are laid over its memory, of which it has none."""
    staged: list[torch.Tensor] = []

    def staging(size: int, _: torch.device) -> torch.Tensor:
        staged.append(torch.zeros(size, dtype=torch.uint8))
        return staged[-1]

    monkeypatch.setattr("linverify.arena.staging", staging)
    parts = {n: footprint(x, layout if x.dim() > 2 else "contiguous", t) for t, (n, x) in enumerate(values().items())}
    with pytest.raises(NotImplementedError):
        Arena(parts, torch.device("meta"))
    assert torch.equal(staged[0], Arena(parts, CPU)._memory)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["q", "k", "wide"])
def test_a_changed_bit_is_seen_and_named(name: str, layout: str) -> None:
    arena = laid(layout)
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[arena.placed[name].unique.element_size()]
    arena.placed[name].unique.view(integers)[-1, -1, -1, -1] ^= 1
    ((kind, message),) = seen(arena)
    assert kind == "mutated_input"
    assert message.startswith(f"{name} ")
    assert ("around it" in message) is (layout in ("strided", "offset"))


def test_a_negative_zero_and_another_nan_are_changes() -> None:
    for old, new in ((0.0, -0.0), (float("nan"), -float("nan"))):
        arena = Arena({"x": footprint(torch.full((4,), old), "contiguous")}, CPU)
        arena.placed["x"].view[1] = new
        assert [kind for kind, _ in seen(arena)] == ["mutated_input"]


@pytest.mark.parametrize("layout", ["strided", "offset"])
def test_writing_around_a_view_is_seen(layout: str) -> None:
    arena = laid(layout)
    placed = arena.placed["q"]
    placed.base.view(-1)[-1] = 1.0
    assert seen(arena) == [("mutated_input", "q (or the memory around it) was changed in place")]


@pytest.mark.parametrize("name", [n for n, x in values().items() if x.numel()])
@pytest.mark.parametrize("where", ["first of the band before", "last byte before", "first byte behind"])
def test_a_byte_beside_a_tensor_is_seen_and_the_right_one_named(name: str, where: str) -> None:
    arena = laid()
    base = arena.placed[name].base
    place = {"first of the band before": -BAND, "last byte before": -1}.get(where, base.nbytes)
    byte(base, place).zero_()
    what = f"memory beside {name} was written: 1 byte within {BAND} bytes of it changed"
    assert seen(arena) == [("out_of_bounds", what)]


def test_every_byte_belongs_to_a_tensor_or_to_one_band() -> None:
    arena = laid()
    arena._memory.bitwise_not_()
    kinds = [kind for kind, _ in seen(arena)]
    assert kinds.count("mutated_input") == len(values()) - 1  # the empty one holds nothing
    assert kinds.count("out_of_bounds") == len(values())
    counts = sum(
        int(message.split("written: ")[1].split()[0]) for kind, message in seen(arena) if kind == "out_of_bounds"
    )
    assert counts + sum(x.nbytes for x in values().values()) == arena._memory.numel()


def test_memory_is_used_again_once_nobody_holds_a_piece_of_it() -> None:
    arena, other = laid(), laid()
    assert arena._memory.data_ptr() != other._memory.data_ptr()
    place, piece = other._memory.data_ptr(), other.placed["q"].view.detach()[:, 2:]
    before = piece.clone()
    del arena, other
    third = laid("strided")
    assert third._memory.data_ptr() != place
    assert torch.equal(piece, before)
    del third, piece
    x = torch.ones(3)
    again = [Arena({"x": footprint(x, "contiguous")}, CPU)._memory.data_ptr() for _ in range(3)]
    assert len(set(again)) == 1
    assert seen(laid()) == []


def test_overwriting_is_no_change_but_hides_none() -> None:
    arena = laid("strided")
    for name, x in values().items():
        arena.overwrite(name, x + 1)
    assert torch.equal(arena.placed["q"].view, values()["q"] + 1)
    assert seen(arena) == []
    byte(arena.placed["k"].base, -1).zero_()
    arena.overwrite("k", values()["k"])
    assert [kind for kind, _ in seen(arena)] == ["out_of_bounds"]


def test_a_tensor_with_memory_of_its_own_is_watched_too() -> None:
    far = place(values()["q"], "strided", device=CPU)
    arena = Arena({"far": far, "k": footprint(values()["k"], "contiguous")}, CPU)
    assert seen(arena) == []
    far.base.view(-1)[-1] = 1.0
    assert seen(arena) == [("mutated_input", "far (or the memory around it) was changed in place")]
    arena.overwrite("far", values()["q"] + 1)
    assert torch.equal(arena.placed["far"].view, values()["q"] + 1)
    assert seen(arena) == []


@pytest.mark.parametrize("beyond", [lambda t: -1, lambda t: -BAND, lambda t: t.nbytes, lambda t: t.nbytes + BAND - 1])
def test_a_byte_beside_fresh_memory_is_seen(beyond: Callable[[torch.Tensor], int]) -> None:
    fence = Fence()
    fresh = [fence.empty((3, n), torch.float16, CPU, f"number {n}") for n in (1, 7, 64)]
    assert all(x.isnan().all() for x in fresh)
    assert seen(fence) == []
    byte(fresh[1], beyond(fresh[1])).zero_()
    assert seen(fence) == [
        ("out_of_bounds", f"memory beside number 7 was written: 1 byte within {BAND} bytes of it changed")
    ]


def test_damage_beside_memory_that_was_let_go_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("linverify.fence._HELD", 3 * BAND)
    fence = Fence()
    byte(fence.empty((4,), torch.float32, CPU, "first"), -1).zero_()
    fence.empty((4,), torch.float32, CPU, "second")
    assert len(fence._slabs) == 1
    assert ["first" in message for _, message in seen(fence)] == [True]


def test_results_come_home_with_their_bits() -> None:
    class Lazy(torch.Tensor):
        """What a target may return as a gradient."""

    x = torch.randn(3, 4, 5)
    given = [
        x.transpose(0, 2),
        x.half()[:, ::2],
        torch.tensor(True),
        torch.empty(0, 3),
        x.double(),
        x.to(torch.complex64),
        x.bfloat16().as_subclass(Lazy),
        torch.arange(5, dtype=torch.int8),
        torch.tensor(2.5),
        torch.arange(32.0)[16::16],  # one element: it counts as contiguous, and strides 16
    ]
    found = home(given)
    for before, after in zip(given, found, strict=True):
        assert after.is_contiguous()
        assert (after.shape, after.dtype) == (before.shape, before.dtype)
        assert torch.equal(torch.Tensor(after), before) if type(before) is not Lazy else bool((after == before).all())
    x.zero_()
    assert found[0].any()
    assert found[4].any()


class _Looks(TorchDispatchMode):
    """Counts operators whose answer the processor waits for."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function in (torch.ops.aten.equal.default, torch.ops.aten._local_scalar_dense.default)
        return function(*args, **(kwargs or {}))


def test_comparisons_on_a_gpu_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of another device stand in for those of a GPU."""
    first = torch.zeros(4, 4, device="meta")
    for dtype in (torch.float16, torch.float32, torch.float64, torch.uint8, torch.complex64):
        with _Looks() as looks:
            flag = differ(first.to(dtype), first.to(dtype))
        assert flag.device.type == "meta"
        assert flag.dtype == torch.bool
        assert looks.count == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_question_waits_for_the_gpu_three_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the forward pass, the backward pass, and the results with all that was found; torch raises at any other wait."""
    axes = {"q": "BTHK", "k": "BTHK", "v": "BTHV"}
    names, kinds = {n: n for n in axes}, {"q": "query", "k": "key", "v": "value"}
    assignment = Assignment("linear", names, {}, False, {}, axes, kinds, "v", "NHKV")
    program, device = Program((Call(with_gradients()),)), torch.device("cuda:0")
    run_program(linear, assignment, program, device)  # libraries are loaded
    waits, plain = [], torch.cuda.synchronize
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: (waits.append(device), plain(device)))
    torch.cuda.set_sync_debug_mode("error")
    try:
        (result,) = run_program(linear, assignment, program, device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert result.breaches == ()
    assert result.grads.keys() == {"q", "k", "v"}
    assert len(waits) == 3
