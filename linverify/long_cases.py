"""Which long sequence a target is asked about: as many tokens as the profile names, or as memory has room for.

One case a dtype, with what makes a sequence long: gates that forget slowly or not at all, an initial state, gradients of the
output and of the final state.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from linverify.case import Case
from linverify.draw import default_state_dtype, input_format
from linverify.dtype import parse
from linverify.errors import EmptyCaseSpace
from linverify.gpus import free_host_mib
from linverify.operator import Operator
from linverify.profile import Profile
from linverify.regime import gate_regimes
from linverify.segments import segmentable

if TYPE_CHECKING:
    from linverify.strategies import Stratum

HEADS, WIDTH = 2, 64
SHORTEST = 8192
"""Fewer tokens than this are no long sequence: other laws ask about them."""
WHOLE = 2 * SHORTEST
"""More tokens than this are judged in segments only: no other law asks about them."""
# Copies of inputs and results that there may be at once where the target runs: as it gets and gives them, as they were before
# the call, as they are compared afterwards, and as much again for what the target keeps for its own backward pass.
_COPIES = 4
# Copies of the inputs in float64 while they are drawn.
_DRAWN = 3


def tokens(case: Case, operator: Operator, longest: int, device: str) -> int:
    """Return the number of tokens, halved until there is memory for it.

    Raises:
        EmptyCaseSpace: there is no room for a sequence that could be called long.
    """
    room_there, room_here = _room(device)
    T = longest
    while T >= SHORTEST:
        there, here = _needs(case.with_(T=T), operator)
        fits = there <= room_there and here <= room_here if device.startswith("cuda") else there + here <= room_here
        if fits:
            return T
        T //= 2
    raise EmptyCaseSpace(f"there is no memory for a sequence of {SHORTEST} tokens")


def _needs(case: Case, operator: Operator) -> tuple[int, int]:
    """Bytes where the target runs, and bytes of this process and its pipes."""
    sizes = operator.all_sizes(case.sizes)

    def count(axes: Sequence[str]) -> int:
        return int(torch.Size([sizes[a] for a in axes]).numel())

    inputs = [(count(i.axes), input_format(i, case.dtype).torch_dtype.itemsize) for i in operator.inputs]
    o = count(operator.o_axes), parse(case.dtype).torch_dtype.itemsize
    state = count(operator.state_axes), default_state_dtype(case.dtype).itemsize
    once = sum(n * size for n, size in (*inputs, o, state))
    return 2 * _COPIES * once, 4 * once + 8 * _DRAWN * max(n for n, _ in inputs) + 8 * sum(n for n, _ in inputs)


def _room(device: str) -> tuple[int, int]:
    """Free bytes of the device and of the host."""
    host = free_host_mib()
    here = 2**63 if host is None else host * 2**20
    if not device.startswith("cuda"):
        return here, here
    free, _ = torch.cuda.mem_get_info(torch.device(device))
    return int(free), here


def long_strata(
    operator: Operator, capabilities: frozenset[str], profile: Profile, device: str, dtypes: Sequence[str], backend: str
) -> "tuple[Stratum, ...]":
    """Return one case for each dtype.

    Raises:
        EmptyCaseSpace: no long sequence can be asked; the message says why.
    """
    from hypothesis import strategies as st

    from linverify.strategies import Stratum

    if why := segmentable(operator):
        raise EmptyCaseSpace(f"long sequences are checked in segments: {why}")
    gpu = device.startswith("cuda")
    if backend == "triton" and not gpu:
        raise EmptyCaseSpace("Triton's interpreter would take hours for a long sequence")
    served = [d for d in dtypes if d != "fp64"]
    if not served:
        raise EmptyCaseSpace("the float64 reference of a long sequence is no yardstick for float64 kernels")
    slow = [g for g in ("tiny", "none", "mild") if g in gate_regimes(operator)]
    both = "both" if "final_state" in capabilities else "o"
    found = []
    for position, dtype in enumerate(served):
        case = Case(
            operator.name,
            *(1, SHORTEST, HEADS, WIDTH, WIDTH),
            dtype=dtype,
            gate=slow[position % len(slow)],
            state="normal" if "initial_state" in capabilities else "absent",
            final_state="final_state" in capabilities,
            cotangent=both if "gradients" in capabilities else "none",
            seed=position,
        )
        T = tokens(case, operator, profile.gpu_streamed_T if gpu else profile.streamed_T, device)
        found.append(Stratum(f"{dtype}, in segments", st.just(case.with_(T=T)), 1))
    return tuple(found)
