"""The RWKV generations against the layers of the rwkv package, token by token: everything around the recurrence is repeated."""

import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn.functional import group_norm, layer_norm, normalize, silu

from linverify import registry
from linverify.reference import solve
from tests.test_family_recurrent import ask

T, H, N = 12, 2, 4
C = H * N
SINGLE = 2e-5  # the layers keep k, v and the state in float32
EPS = 64e-5


def _module(monkeypatch: pytest.MonkeyPatch, **environment: str) -> ModuleType:
    spec = importlib.util.find_spec("rwkv.model")
    if spec is None or spec.loader is None:
        pytest.skip("rwkv is not installed")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    module = importlib.util.module_from_spec(spec)  # apart: which generation is there hangs on the environment
    monkeypatch.setitem(sys.modules, "rwkv.model", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def switches() -> Iterator[None]:
    """The package turns TF32 on for the whole process."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> type:
    """RWKV-4 to 6: methods that leave `self` alone."""
    return _module(monkeypatch, RWKV_JIT_ON="0", RWKV_V7_ON="0").RWKV


class Weights:
    """Random weights from a seed, each of mean square one over its first axis."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator) / shape[0] ** 0.5

    def tokens(self) -> Tensor:
        return torch.randn(T, C, generator=self.generator)


def expected(name: str, **inputs: Tensor) -> dict[str, Tensor]:
    """The reference's o [T, H, N] or [T, C], and its state [H, N, N] or none."""
    operator = registry.operator(name)
    drawn = ask(operator, T, B=1)
    shared = {n for n in ("w", "u") if "T" not in operator.input(n).axes} if name != "rwkv7" else set()
    given = {n: (t if n in shared else t[None]).double() for n, t in inputs.items()}
    problem = drawn.with_(tensors=given, wrt=(), cotangents={}, scale=1.0, final_state=bool(operator.state_axes))
    return {n: t[0] for n, t in solve(problem, operator).items()}


def near(found: Tensor, wanted: Tensor) -> bool:
    return float((found.double() - wanted).abs().max()) < SINGLE * float(wanted.abs().max())


NONE = [None] * 12  # the scales of 8-bit weights


def test_rwkv4_is_the_layer_of_the_package(layers: type) -> None:
    draw = Weights()
    x, one, zero = draw.tokens(), torch.ones(C), torch.zeros(C)
    kw, vw, w, u = draw(C, C), draw(C, C), draw(C), draw(C)
    state, outs = (zero, zero, torch.full((C,), -1e30)), []
    for t in range(T):
        # decay exp(-exp(w)), receptance sigmoid(0), read-out the identity
        args = (one, zero, one, one, one, -w.exp(), u, kw, vw, torch.zeros(C, C), torch.eye(C), *NONE, *NONE[:4])
        out, _, *state = layers.att_one(None, x[t], zero, *state, *args)
        outs.append(2 * (out - x[t]))
    xx = layer_norm(x, (C,))
    found = expected("rwkv4", w=w, u=u, k=xx @ kw, v=xx @ vw)
    assert near(torch.stack(outs), found["o"].reshape(T, C))
    assert all(near(mine, theirs) for mine, theirs in zip(state, found["state"][:, 0], strict=True))


def heads(x: Tensor) -> Tensor:
    return x.reshape(T, H, N)


def finished(o: Tensor, gate: Tensor, ow: Tensor) -> Tensor:
    return (group_norm(o.reshape(T, C), H, eps=EPS) * gate) @ ow.double()


@pytest.mark.parametrize("generation", [5, 6])
def test_rwkv5_and_6_are_the_layers_of_the_package(layers: type, generation: int) -> None:
    draw = Weights()
    x, one, zero = draw.tokens(), torch.ones(C), torch.zeros(C)
    kw, vw, rw, gw, ow = (draw(C, C) for _ in range(5))
    w, u, up, down = draw(H, N), draw(H, N), draw(C, 3), draw(3, C)
    s, outs = torch.zeros(H, N, N), []
    for t in range(T):
        if generation == 5:
            more = (one, one, one, one, (-w.exp()).exp()[..., None], u[..., None], kw, vw, rw, gw, ow)
            out, _, s = layers.att_one_v5_1(None, x[t], zero, s, one, zero, one, zero, *more, *NONE, *NONE[:8])
        else:
            mixes = (*[zero] * 6, torch.zeros(C, 5), torch.zeros(5, 1, C), up, down)
            more = (w[..., None], u[..., None], kw, vw, rw, gw, ow)
            out, _, s = layers.att_one_v6_0(None, x[t], zero, s, one, zero, one, zero, *mixes, *more, *NONE, *NONE[:8])
        outs.append(out - x[t])
    xx = layer_norm(x, (C,))
    log_w = w if generation == 5 else -(w + heads(torch.tanh(xx @ up) @ down)).exp()
    rkv = {"q": heads(xx @ rw), "k": heads(xx @ kw), "v": heads(xx @ vw)}
    found = expected(f"rwkv{generation}", **rkv, w=log_w, u=u)
    assert near(s, found["state"])
    assert near(torch.stack(outs), finished(found["o"], silu(xx @ gw).double(), ow))


def test_rwkv7_is_the_layer_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = _module(monkeypatch, RWKV_V7_ON="1", RWKV_CUDA_ON="0").RWKV_x070_TMix_one
    draw = Weights()
    x, one, zero = draw.tokens(), torch.ones(C), torch.zeros(C)
    low = {n: (draw(C, 3), draw(3, C)) for n in "wavg"}
    w0, a0, k_k, k_a = (draw(1, C)[0] for _ in range(4))
    R, K, V, out_w = (draw(C, C) for _ in range(4))
    state, outs = torch.zeros(H, N, N), []
    for t in range(T):
        mixes = [zero] * 6
        low_rank = (w0, *low["w"], a0, *low["a"], zero, *low["v"], *low["g"])
        out, _, state, _ = layer(
            *(0, H, N, x[t], zero, zero, state, *mixes, *low_rank, k_k, k_a, zero, R, K, V, out_w, one, zero)
        )
        outs.append(out)
    log_w = -0.606531 * torch.sigmoid(w0 + torch.tanh(x @ low["w"][0]) @ low["w"][1])
    a = torch.sigmoid(a0 + x @ low["a"][0] @ low["a"][1])
    kk = normalize(heads((x @ K) * k_k), dim=-1)
    k = (x @ K) * (1 + (a - 1) * k_a)
    terms = {"q": heads(x @ R), "w": heads(log_w), "k": heads(k), "v": heads(x @ V), "a": -kk, "b": kk * heads(a)}
    found = expected("rwkv7", **terms)
    gate = torch.sigmoid(x @ low["g"][0]) @ low["g"][1]
    assert near(state, found["state"].mT)
    assert near(torch.stack(outs), finished(found["o"], gate.double(), out_w))
