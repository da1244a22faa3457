"""Planted bugs about calls: what is returned, what is kept between calls, what is left in memory."""

import itertools
import math
import os
import pathlib
import threading

import torch
from forms import Arguments, call, chunks, in_backward, kernel, stepwise

_turns = itertools.count()
_buffers: dict = {}
_sums: dict = {}
_decays: dict = {}
_workspaces: dict = {}


@kernel
def float32_output(a: Arguments):
    """Returns o in float32, whatever the values' dtype."""
    o, state = call(a.with_(v=a.v.float()))
    return o, state


@kernel
def scales_in_place(a: Arguments):
    """Folds a power of two of the scale into the caller's q."""
    scale = a.q.shape[-1] ** -0.5 if a.scale is None else a.scale
    power = 2.0 ** (round(math.log2(scale)) or -1)
    a.q.detach().mul_(power)
    return call(a.with_(scale=scale / power))


@kernel
def unwritten_tail(a: Arguments):
    """Pads the sequence with memory that nobody wrote, cleaned of NaN only."""

    def run(q, k, v, g, state):
        padded = []
        for x in (q, k, v, g):
            tail = torch.nan_to_num(torch.empty(x.shape[0], -x.shape[1] % 16, *x.shape[2:]))
            padded.append(torch.cat((x, tail if x is k or x is v else tail * 0), 1))
        o, state = stepwise(*padded, state)
        return o[:, : q.shape[1]], state

    return call(a, run)


@kernel
def reused_buffer(a: Arguments):
    """Writes outputs that need no gradient into one buffer for each shape."""
    o, state = call(a)
    if o.requires_grad:
        return o, state
    buffer = _buffers.setdefault((o.shape, o.dtype), torch.empty_like(o))
    return buffer.copy_(o), state


@kernel
def sums_up(a: Arguments):
    """Adds to a workspace that is cleared for new inputs only."""
    o, state = call(a)
    key = (a.q.shape, a.q.dtype, *(float(x.detach().double().sum()) for x in (a.q, a.k, a.v, a.g)), a.scale)
    before = _sums.get(key)
    _sums[key] = o.detach() if before is None else before + o.detach()
    return o if before is None else o + before, state


@kernel
def any_order(a: Arguments):
    """Adds in another order every time: chunks of one to four tokens, by turns."""
    size = 1 + next(_turns) % 4
    return call(a, lambda *x: chunks(*x, size=size))


@kernel
def table_by_shape(a: Arguments):
    """Keeps the decay of the first call for all calls of the same shape."""
    key = (a.g.shape, a.v.shape, a.q.dtype, a.cu_seqlens is None, a.initial_state is None, a.scale)
    table = _decays.setdefault(key, a.g.detach().clone())
    return call(a.with_(g=table + (a.g - a.g.detach())))


@kernel
def table_by_tensor(a: Arguments):
    """Keeps the decay with the tensor it was computed from."""
    if a.g.requires_grad:
        return call(a)
    if not hasattr(a.g, "decay"):
        a.g.decay = a.g.clone()
    return call(a.with_(g=a.g.decay))


@kernel
def borders_by_tensor(a: Arguments):
    """Keeps the borders with the offsets they were read from."""
    if a.cu_seqlens is None:
        return call(a)
    if not hasattr(a.cu_seqlens, "borders"):
        a.cu_seqlens.borders = a.cu_seqlens.clone()
    return call(a.with_(cu_seqlens=a.cu_seqlens.borders))


_narrow: set = set()


@kernel
def other_dtype_remembered(a: Arguments):
    """Once values of some shape came in 16 bits, values of that shape are rounded to them."""
    if a.v.dtype in (torch.bfloat16, torch.float16):
        _narrow.add(a.v.shape)
    if a.v.dtype == torch.float32 and a.v.shape in _narrow:
        a = a.with_(v=a.v.bfloat16().float())
    return call(a)


_settings = threading.local()
_settings.exact = True


@kernel
def settings_of_one_thread(a: Arguments):
    """Computes in the values' precision where a setting says so that the importing thread alone has."""
    return call(a if getattr(_settings, "exact", False) else a.with_(v=a.v.bfloat16().to(a.v.dtype)))


@kernel
def hurries_when_busy(a: Arguments):
    """Leaves out digits while others are at work in the process."""
    return call(a.with_(v=a.v.bfloat16().to(a.v.dtype)) if threading.active_count() > 2 else a)


_paths: dict = {}


@kernel
def path_of_the_first_device(a: Arguments):
    """Chooses between exact and quick by the device, and remembers the choice by shape."""
    if _paths.setdefault((a.v.shape, a.v.dtype), a.v.device.type) != "cpu" and a.v.device.type == "cpu":
        a = a.with_(v=a.v.bfloat16().to(a.v.dtype))
    return call(a)


_compiled: dict = {}


def _compile(key: str, dtype: torch.dtype) -> tuple[str, bool]:
    """What is kept under a key, in this process or on disk, and whether it had to be made now."""
    folder = os.environ.get("TRITON_CACHE_DIR")
    file = None if folder is None else pathlib.Path(folder) / key
    made = key not in _compiled and (file is None or not file.exists())
    if key not in _compiled:
        _compiled[key] = str(dtype) if file is None or made else file.read_text()
    if made and file is not None:
        file.write_text(str(dtype))
    return _compiled[key], made and file is not None


@kernel
def compiled_for_another_dtype(a: Arguments):
    """What is compiled for 16 bits is kept on disk under a key that does not say so; in memory the key says it."""
    kept, _ = _compile(f"{a.v.shape[2:]}{a.v.dtype if 'TRITON_CACHE_DIR' not in os.environ else ''}", a.v.dtype)
    narrow = a.v.dtype == torch.float32 and kept != str(torch.float32)
    return call(a.with_(v=a.v.bfloat16().float()) if narrow else a)


@kernel
def runs_twice_where_it_compiles(a: Arguments):
    """Compiles to disk by running once, and adds the real run to what that left."""
    _, made = _compile(f"{a.v.shape}{a.v.dtype}", a.v.dtype)
    o, state = call(a)
    return (2 * o if made else o), state


@kernel
def kept_for_the_backward_pass(a: Arguments):
    """Keys for the backward pass lie in a workspace of the module, where another forward pass puts its own."""
    shape, o = a.k.shape, call(a)
    _workspaces[shape] = a.k.detach().clone()

    def change(dv):
        own = _workspaces[shape]
        return dv if torch.equal(own, a.k.detach()) else dv / 2

    return in_backward(o[0], change), o[1]
