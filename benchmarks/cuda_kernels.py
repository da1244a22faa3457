"""The kernels in CUDA C++ on one device: how long a build takes, how exact the results are, how fast a call is.

    python benchmarks/cuda_kernels.py [--device cuda] [--seconds 60] [--small]

Exactness: the largest difference from the recurrent form in float64 on the same (rounded) inputs, over the largest value of
the result, in unit roundoffs of its dtype; and whether a second call gives the same bits. Speed: the median of some calls
between events of the device (wall time on a CPU). A kernel that fails is shown with its traceback, and the rest goes on.
"""

import argparse
import statistics
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from linverify.impls import cuda_causal_product, cuda_rwkv6, cuda_selective_scan, torch_recurrent

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TIMED = ("fp32", "bf16")
Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Subject:
    """A kernel, what it is compared with, and the inputs of a size (batch, tokens, heads, key width, value width)."""

    name: str
    kernel: Function
    reference: Function
    inputs: Callable[..., dict[str, Tensor]]
    stateful: bool


def _rwkv6(B: int, T: int, H: int, K: int, V: int, N: int, like: torch.dtype, device: str) -> dict[str, Tensor]:
    real = torch.promote_types(like, torch.float32)
    drawn = {n: torch.randn(B, T, H, w, device=device).to(like) for n, w in (("q", K), ("k", K), ("v", V))}
    w, u = -2 * torch.rand(B, T, H, K, device=device, dtype=real), torch.randn(H, K, device=device).to(like)
    return {**drawn, "w": w, "u": u, "initial_state": torch.randn(N, H, K, V, device=device, dtype=real)}


def _scan(B: int, T: int, H: int, K: int, V: int, N: int, like: torch.dtype, device: str) -> dict[str, Tensor]:
    real, D, K = torch.promote_types(like, torch.float32), H * V, min(K, 16)
    u, dt = torch.randn(B, T, D, device=device).to(like), torch.rand(B, T, D, device=device, dtype=real)
    A, state = -3 * torch.rand(D, K, device=device, dtype=real), torch.randn(N, D, K, device=device, dtype=real)
    b, c = (torch.randn(B, T, K, device=device).to(like) for _ in "BC")
    return {"u": u, "dt": dt, "A": A, "B": b, "C": c, "initial_state": state}


def _product(B: int, T: int, H: int, K: int, V: int, _: int, like: torch.dtype, device: str) -> dict[str, Tensor]:
    return {n: torch.randn(B, H, T, w, device=device).to(like) for n, w in (("Q", K), ("K", K), ("V", V))}


SUBJECTS = (
    Subject(
        "one_block", cuda_causal_product.one_block_per_head, vars(torch_recurrent)["causal_product"], _product, False
    ),
    Subject(
        "low_occupancy", cuda_causal_product.low_occupancy, vars(torch_recurrent)["causal_product"], _product, False
    ),
    Subject("rwkv6", cuda_rwkv6.rwkv6, vars(torch_recurrent)["rwkv6"], _rwkv6, True),
    Subject("selective_scan", cuda_selective_scan.selective_scan, vars(torch_recurrent)["mamba1"], _scan, True),
)


def called(
    function: Function, inputs: Mapping[str, Tensor], wide: torch.dtype | None, **given: Any
) -> dict[str, Tensor]:
    """Results and gradients by name; the cotangents depend on the results' shapes alone."""
    leaves = {n: (x.detach() if wide is None else x.detach().to(wide)).requires_grad_() for n, x in inputs.items()}
    returned = function(**leaves, **given)
    o, state = returned if isinstance(returned, tuple) else (returned, None)
    outputs = [x for x in (o, state) if x is not None]
    torch.manual_seed(1)
    # of few bits, so that every dtype holds them
    cotangents = [torch.randint(-8, 9, x.shape).to(x.device, x.dtype) / 8 for x in outputs]
    grads = torch.autograd.grad(outputs, list(leaves.values()), cotangents)
    named = {n: x.detach() for n, x in (("o", o), ("state", state)) if x is not None}
    return {**named, **{f"d{n}": g for n, g in zip(leaves, grads, strict=True)}}


def exactness(subject: Subject, like: torch.dtype, device: str, *, small: bool) -> Iterator[str]:
    """One line for a dense batch, and one for packed sequences where there are such."""
    T = 100 if small else 300
    for packed in (False, True) if subject.stateful else (False,):
        ends = torch.tensor([0, 0, 1, 65, 65, T - 30, T], device=device) if packed else None
        N, B = (len(ends) - 1, 1) if ends is not None else (2, 2)
        given: dict[str, Any] = {"scale": 0.7, "output_final_state": True} if subject.stateful else {}
        given |= {"cu_seqlens": ends} if packed else {}
        torch.manual_seed(0)
        inputs = subject.inputs(B, T, 3, 40, 37, N, like, device)
        got, again = (called(subject.kernel, inputs, None, **given) for _ in range(2))
        expected = called(subject.reference, inputs, torch.float64, **given)
        cells = []
        for n, x in expected.items():
            share = float((got[n].double() - x).abs().max() / x.abs().max())
            same = "" if torch.equal(got[n], again[n]) else " NOT REPEATABLE"
            cells.append(f"{n} {share / (torch.finfo(got[n].dtype).eps / 2):.2f}{same}")
        yield f"{'packed' if packed else 'dense '} errors in u: {', '.join(cells)}"


def timed(call: Callable[[], object], device: str, repeat: int) -> float:
    """Median milliseconds of a call, after one that does not count."""
    call()
    times = []
    for _ in range(repeat):
        if device.startswith("cuda"):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()  # type: ignore[no-untyped-call]
            call()
            stop.record()  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
            times.append(float(start.elapsed_time(stop)))  # type: ignore[no-untyped-call]
        else:
            begun = perf_counter()
            call()
            times.append(1e3 * (perf_counter() - begun))
    return statistics.median(times)


def speed(subject: Subject, like: torch.dtype, device: str) -> Iterator[str]:
    """Forward, and forward with backward, where heads are many and where they are few."""
    big = device.startswith("cuda")
    for B, T, H in ((8, 2048, 16), (1, 2048, 8)) if big else ((1, 256, 2),):
        inputs = subject.inputs(B, T, H, 64, 64, B, like, device)
        leaves = {n: x.requires_grad_() for n, x in inputs.items()}

        def forward(given: Mapping[str, Tensor] = leaves) -> Tensor:
            returned = subject.kernel(**given)
            o: Tensor = returned[0] if isinstance(returned, tuple) else returned
            return o

        with torch.no_grad():
            alone = timed(forward, device, 10)
        cotangent = torch.randn_like(forward())
        both = timed(lambda f=forward, g=leaves, c=cotangent: torch.autograd.grad(f(), list(g.values()), c), device, 5)
        yield f"B={B} T={T} H={H} K=V=64: forward {alone:.3f} ms, with backward {both:.3f} ms"


def main() -> None:
    """Print a block for each kernel and dtype."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=60.0, help="nothing new is begun after that")
    parser.add_argument("--small", action="store_true", help="short sequences, no speed: for a sanitizer")
    given = parser.parse_args()
    begun = perf_counter()
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if given.device != 'cpu' else 'CPU'}")
    for subject in SUBJECTS:
        for name, like in DTYPES.items():
            if perf_counter() - begun > given.seconds:
                print(f"{subject.name} {name}: left out, the time is over")
                continue
            start = perf_counter()
            try:
                lines = list(exactness(subject, like, given.device, small=given.small))
                print(f"{subject.name} {name}, {perf_counter() - start:.1f} s with compilation", flush=True)
                for line in lines:
                    print(f"  {line}")
                for line in speed(subject, like, given.device) if name in TIMED and not given.small else ():
                    print(f"  {line}", flush=True)
            except Exception:  # whatever one kernel does, the others are asked
                print(f"{subject.name} {name} FAILED\n{traceback.format_exc()}", flush=True)


if __name__ == "__main__":
    main()
