"""Functions that behave and misbehave in every way a worker must survive; tests/test_worker.py runs them."""

import ctypes
import functools
import os
import signal
import sys
import threading
import time

import torch

from linverify import kernel

_kept: dict[str, torch.Tensor] = {}
_calls = 0


def linear(q, k, v):
    scores = torch.einsum("bthk,bshk->bhts", q, k).tril()
    return torch.einsum("bhts,bshv->bthv", scores, v).contiguous()


@kernel("linear_attention", form="naive", backend="torch", claims={"fp32": "ieee"})
def good(q, k, v, scale=None, initial_state=None, output_final_state=False, cu_seqlens=None):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    o = linear(q, k, v) * scale
    state = torch.einsum("bthk,bthv->bhkv", k, v).float().contiguous()
    if initial_state is not None:
        o = o + scale * torch.einsum("bthk,bhkv->bthv", q, initial_state.to(q.dtype))
        state = state + initial_state
    return o.contiguous(), (state if output_final_state else None)


def wrapped(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


decorated = wrapped(good)


def value_first(q, k, v, initial_state=None, output_final_state=False, state_v_first=False):
    state = torch.einsum("bthk,bthv->bhvk", k, v).float().contiguous()
    if initial_state is not None:
        state = state + initial_state
    return linear(q, k, v), (state if output_final_state else None)


def only_o(q, k, v, output_final_state=False):
    return linear(q, k, v)


def three(q, k, v, output_final_state=False):
    return linear(q, k, v), None, None


def as_list(q, k, v):
    return [linear(q, k, v), None]


def nothing(q, k, v):
    return None


def none_state(q, k, v, output_final_state=False):
    return linear(q, k, v), None


def wrong_shape(q, k, v):
    return linear(q, k, v)[:, :-1]


def wrong_dtype(q, k, v):
    return linear(q, k, v).double()


def on_meta(q, k, v):
    return linear(q, k, v).to("meta")


def half_state(q, k, v, output_final_state=False):
    return linear(q, k, v), torch.einsum("bthk,bthv->bhkv", k, v).half()


def no_key_gradient(q, k, v):
    return linear(q, k.detach(), v)


def no_gradients(q, k, v):
    return linear(q, k, v).detach()


class _DoubleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v):
        ctx.save_for_backward(q, k, v)
        return linear(q, k, v)

    @staticmethod
    def backward(ctx, do):
        do.mul_(2)
        return tuple(torch.zeros_like(x) for x in ctx.saved_tensors)


def scales_cotangent(q, k, v):
    return _DoubleGradient.apply(q, k, v)


def mutates(q, k, v):
    k.data.mul_(2)
    return linear(q, k, v)


def writes_beyond(q, k, v):
    o = linear(q, k, v)
    k.data.as_strided((1,), (1,), k.storage_offset() - 1).fill_(3.0)
    return o


def leaves_gap(q, k, v):
    o = torch.empty_like(v)
    o[:, 1:] = linear(q, k, v)[:, 1:]
    return o


def new_empty_gap(q, k, v):
    o = v.new_empty(v.shape)
    o[..., 1:] = linear(q, k, v)[..., 1:]
    return o


def static_buffer(q, k, v):
    o = linear(q, k, v)
    buffer = _kept.setdefault("o", torch.empty(o.shape))
    return buffer.copy_(o)


def first_inputs_forever(q, k, v):
    key = f"{q.data_ptr()}"
    if key not in _kept:
        _kept[key] = linear(q, k, v)
    return _kept[key].clone()


def strides(q, k, v):
    facts = [*q.stride(), *k.stride(), q.storage_offset(), *v.stride()]
    return linear(q, k, v) * 0 + torch.tensor([*facts, *[0] * (v.shape[-1] - len(facts))], dtype=v.dtype)


def cotangent_strides(q, k, v):
    return _Strides.apply(q, k, v)


class _Strides(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v):
        ctx.save_for_backward(q, k, v)
        return linear(q, k, v)

    @staticmethod
    def backward(ctx, do):
        q, k, v = ctx.saved_tensors
        dq = torch.zeros_like(q)
        dq.view(-1)[:4] = torch.tensor(do.stride(), dtype=q.dtype)
        return dq, torch.zeros_like(k), torch.zeros_like(v)


def on_the_default_stream(q, k, v):
    with torch.cuda.stream(torch.cuda.default_stream(q.device)):
        return linear(q, k, v)


def tells_its_thread(q, k, v):
    return v * 0 + float(threading.current_thread() is threading.main_thread()) + 10 * threading.active_count()


def exits_from_its_thread(q, k, v):
    if threading.current_thread() is not threading.main_thread():
        sys.exit(3)
    return linear(q, k, v)


def chosen_by_the_first_device(q, k, v):
    first = _kept.setdefault("device", q.device)
    return linear(q, k, v if q.device == first else v.bfloat16().to(v.dtype))


def raises_elsewhere(q, k, v):
    if q.device.type == "meta":
        raise ValueError("no such device")
    return linear(q, k, v)


def falls_on_another_device(q, k, v):
    if q.device.type == "meta":
        ctypes.string_at(q.data_ptr())
    return linear(q, k, v)


def settings_leak(q, k, v):
    o = linear(q, k, v) * torch.ones(v.shape[-1])
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    return o


def reports_settings(q, k, v):
    facts = [torch.get_default_dtype() == torch.float32, torch.is_grad_enabled(), torch.rand(()).item()]
    return v * 0 + torch.tensor([float(f) for f in facts] + [0.0] * (v.shape[-1] - 3))


def counts_calls(q, k, v):
    global _calls
    _calls += 1
    return v * 0 + _calls


def prints(q, k, v):
    print("printed by the kernel")  # noqa: T201
    os.write(1, b"written by the kernel\n")
    sys.stdout.close()
    os.close(1)
    return linear(q, k, v)


def raises(q, k, v):
    raise ValueError("head size 16 only\nand a second line")


def asserts(q, k, v):
    raise AssertionError


def segfault(q, k, v):
    print("about to crash", file=sys.stderr)  # noqa: T201
    ctypes.string_at(0)


def abort(q, k, v):
    os.abort()


def killed(q, k, v):
    os.kill(os.getpid(), signal.SIGKILL)


def hang(q, k, v):
    while True:
        time.sleep(0.01)


def launches(q, k, v):
    """Says what the worker says when all is launched, and is done a second later."""
    waiting = sys._getframe(1).f_locals["waiting"]
    time.sleep(1.5)  # a compiler
    waiting(True)
    time.sleep(0.5)
    waiting(False)
    time.sleep(1.5)
    return linear(q, k, v)


def launches_for_ever(q, k, v):
    sys._getframe(1).f_locals["waiting"](True)
    time.sleep(3600)


def spins_on_the_gpu(q, k, v):
    o = linear(q, k, v)
    if q.shape[1] > 4:
        torch.cuda._sleep(1 << 62)
    return o


def endless_log(q, k, v):
    while True:
        print("x" * 10000, file=sys.stderr)  # noqa: T201


def hang_without_pipes(q, k, v):
    os.closerange(3, 256)
    time.sleep(3600)


def sys_exit(q, k, v):
    sys.exit(3)


def os_exit(q, k, v):
    os._exit(5)


def interrupt(q, k, v):
    raise KeyboardInterrupt


def memory_error(q, k, v):
    raise MemoryError


def runaway(q, k, v):
    hoard = []
    while True:
        hoard.append(torch.ones(1 << 24))


def garbage(q, k, v):
    for fd in range(3, 64):
        try:
            os.write(fd, b"no message at all, and quite long")
        except OSError:
            continue
    time.sleep(5)


def leaves_threads(q, k, v):
    threading.Thread(target=time.sleep, args=(3600,)).start()
    return linear(q, k, v)


def forks_and_hangs(q, k, v):
    os.fork()
    time.sleep(3600)
