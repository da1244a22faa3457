"""In the worker: what goes on around a call: another stream or thread, other work on the device, or another device.

WHY. A kernel launched on the default stream, a workspace that two streams share, a table kept for the device that asked first:
each is right as long as one stream of one device is all there is. A test that waits after every call never sees them.
"""

import threading
from collections.abc import Callable
from typing import TypeVar

import torch

from linverify.arena import Arena

STREAM, LOAD, DEVICE = "another stream", "load", "another device"

_Value = TypeVar("_Value")
_LATE_CYCLES = 50_000_000  # some 30 ms of a GPU: longer than a function takes to launch its kernels
_BUSY_THREADS = 2
_PRODUCTS, _SIZE = 100, 2048  # some 30 ms of a GPU


def within(what: str, device: torch.device, arena: Arena, work: Callable[[], _Value]) -> _Value:
    """Do `work` in these circumstances.

    Args:
        what: "" for none; STREAM: on a GPU a stream of its own, on which the inputs are written late, so that whoever does not
            wait for that stream reads something else; on a CPU another thread. LOAD: while other work keeps the device busy.
        device: where the target runs.
        arena: what the call is given.
        work: makes the call.

    Raises:
        BaseException: whatever `work` raises.
    """
    if what == STREAM:
        return _on_another_stream(device, arena, work) if device.type == "cuda" else _in_another_thread(work)
    if what == LOAD:
        return _on_a_busy_gpu(device, work) if device.type == "cuda" else _on_a_busy_processor(work)
    return work()


def other_device(device: torch.device) -> torch.device | None:
    """Another device to ask a target on: for a GPU the next one, for the CPU "meta", where tensors hold no numbers."""
    if device.type != "cuda":
        return torch.device("meta")
    count = torch.cuda.device_count()
    return torch.device("cuda", ((device.index or 0) + 1) % count) if count > 1 else None


def _on_another_stream(device: torch.device, arena: Arena, work: Callable[[], _Value]) -> _Value:
    own, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    arena.blank()
    side.wait_stream(own)
    with torch.cuda.stream(side):
        sleep: Callable[[int], None] = torch.cuda._sleep
        sleep(_LATE_CYCLES)
        arena.restore()
        found = work()
    own.wait_stream(side)
    return found


def _in_another_thread(work: Callable[[], _Value]) -> _Value:
    found: list[_Value] = []
    raised: list[BaseException] = []
    threads = torch.get_num_threads()

    def run() -> None:
        torch.set_num_threads(threads)
        try:
            found.append(work())
        except BaseException as error:  # raised again where it belongs
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
    return found[0]


def _on_a_busy_gpu(device: torch.device, work: Callable[[], _Value]) -> _Value:
    side = torch.cuda.Stream(device)
    with torch.cuda.stream(side):
        factor = torch.zeros(_SIZE, _SIZE, device=device)
        product = torch.zeros_like(factor)
        for _ in range(_PRODUCTS):
            torch.mm(factor, factor, out=product)
    return work()


def _on_a_busy_processor(work: Callable[[], _Value]) -> _Value:
    done = threading.Event()
    factor, products = torch.zeros(128, 128), [torch.zeros(128, 128) for _ in range(_BUSY_THREADS)]

    def run(product: torch.Tensor) -> None:
        while not done.is_set():
            torch.mm(factor, factor, out=product)

    busy = [threading.Thread(target=run, args=(product,), daemon=True) for product in products]
    for thread in busy:
        thread.start()
    try:
        return work()
    finally:
        done.set()
        for thread in busy:
            thread.join()
