"""The diagnostics of a module that takes (B, T, D) and returns it: gain, supremum, spectrum, growth, finite precision.

They are made as the module is used (``eval``): dropout would be another map at every call. Growth (D4) is that of its Jacobian
as the input shrinks: a norm that stands first makes it 1 / |x| until its eps, and that is a promise of nothing.
"""

import copy
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from linverify.dtype import FORMATS
from linverify.growth import fitted
from linverify.mechanism import BOUNDED, BY_EPS, UNBOUNDED
from linverify.stability.module_supremum import supremum
from linverify.stability.records import Curve, Finding, unchecked
from linverify.stability.spectrum import ITERATIONS

Map = Callable[[Tensor], Tensor]
ROWS, TOKENS = 2, 32
_STEPS = 49
# Growth of less is none; over the last steps, more has not ended.
_GROWS, _STILL, _END = 8.0, 1.05, 4
_SETTLED = 2.0**-20


def diagnose(module: nn.Module, width: int, seed: int) -> tuple[Finding, ...]:
    """All diagnostics but D5 and D6 of a module, on the device where its parameters are."""
    parameter = next(module.parameters(), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    generator = torch.Generator().manual_seed(seed)
    x, upstream = (
        torch.randn(ROWS, TOKENS, width, generator=generator, dtype=torch.float64).to(device) for _ in range(2)
    )
    wide, dtype = widest(module, x)
    at, along = x.to(FORMATS[dtype].torch_dtype), upstream.to(FORMATS[dtype].torch_dtype)
    found = [guarded("D1", "gain", dtype, lambda: _gain(wide, at, along, dtype))]
    found.append(guarded("D2", "supremum", dtype, lambda: supremum(wide, at)))
    with sdpa_kernel(SDPBackend.MATH):
        found.append(guarded("D3", "spectrum", dtype, lambda: _spectrum(wide, at, along, dtype)))
    found.append(guarded("D4", "growth", dtype, lambda: _growth(wide, at, along, dtype)))
    for format_ in ("fp32", "bf16", "fp16"):
        finite = partial(_finite, module, wide, x, upstream, format_, dtype)
        found += [guarded("D7", "finite", format_, finite)]
    return tuple(found)


def widest(module: nn.Module, x: Tensor) -> tuple[nn.Module, str]:
    """A copy of a module as it is used, in float64, or in float32 where it does not take that (kernels seldom do); which."""
    wide = copy.deepcopy(module).double().eval()
    try:
        with torch.no_grad():
            wide(x[:1])
    except Exception:  # whatever a kernel raises for a format
        return copy.deepcopy(module).float().eval(), "fp32"
    return wide, "fp64"


def guarded(diagnostic: str, name: str, dtype: str, made: Callable[[], Finding]) -> Finding:
    """A finding, or why it could not be made."""
    try:
        return made()
    except Exception as error:  # whatever the user's module raises
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return unchecked(diagnostic, name, dtype, lines[0])


def _back(module: nn.Module, x: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs, and the gradient of the input."""
    leaf = x.detach().requires_grad_()
    y = module(leaf)
    if not isinstance(y, Tensor) or y.shape != x.shape:
        came = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"expected a module that maps (B, T, D) = {tuple(x.shape)} to the same shape, got {came}")
    (gradient,) = torch.autograd.grad(y, leaf, upstream.to(y.dtype))
    return y.detach(), gradient


def _gain(module: nn.Module, x: Tensor, upstream: Tensor, dtype: str) -> Finding:
    alone = torch.zeros_like(upstream)
    alone[:, -1] = upstream[:, -1]
    y, gradient = _back(module, x, alone)
    length = alone[:, -1].norm(dim=-1)
    gains = gradient.norm(dim=-1) / length[:, None]
    elastic = gains * x.norm(dim=-1) / y[:, -1].norm(dim=-1)[:, None]
    figures = {
        "gain of the token itself": float(gains[:, -1].amax()),
        "gain of earlier tokens": float(gains[:, :-1].amax()),
        "elasticity": float(elastic.amax()),
    }
    told = (
        f"a gradient of the last token reaches that token {figures['gain of the token itself']:.3g} times as long, "
        f"an earlier one {figures['gain of earlier tokens']:.3g} times"
    )
    finite = bool(gains.isfinite().all())
    shown_by = f"normal inputs, B={ROWS}, T={TOKENS}, D={x.shape[-1]}"
    return Finding(
        "D1", "gain", dtype, "measured", finite, figures["gain of the token itself"], None, shown_by, told, figures
    )


def _spectrum(module: nn.Module, x: Tensor, upstream: Tensor, dtype: str) -> Finding:
    """Power iteration with forward- and reverse-mode differentiation, torch's attention written out: fused it has no first."""

    def apply(w: Tensor) -> Tensor:
        found: Tensor = torch.func.jvp(module, (x,), (w,))[1]
        return found.detach()

    def transposed(u: Tensor) -> Tensor:
        return _back(module, x, u)[1]

    w = upstream.flip(0) / upstream.norm()
    there, back = apply(w), transposed(upstream)
    sizes = float(upstream.norm() * there.norm() + back.norm() * w.norm())
    adjoint = abs(float((upstream * there).sum() - (back * w).sum())) / sizes
    sigma, before, turns = 0.0, -1.0, 0
    while abs(sigma - before) > _SETTLED * sigma and turns < ITERATIONS:
        before = sigma
        there = apply(w)
        sigma = float(there.norm())
        w = transposed(there)
        w, turns = w / w.norm(), turns + 1
    # each side is a sum of rounded terms; what autograd computes twice may differ by its own rounding only
    holds = adjoint <= FORMATS[dtype].unit_roundoff * math.prod(x.shape)
    told = f"the Jacobian's largest singular value is {sigma:.4g} (after {turns} iterations)"
    if not holds:
        told = f"forward and reverse mode are no transposes of each other: off by {adjoint:.3g}"
    shown_by = f"normal inputs, B={ROWS}, T={TOKENS}, D={x.shape[-1]}"
    figures = {"sigma": sigma, "adjoint": adjoint}
    return Finding("D3", "spectrum", dtype, "measured", holds, sigma, None, shown_by, told, figures)


def _growth(module: nn.Module, x: Tensor, upstream: Tensor, dtype: str) -> Finding:
    """The gain as the input shrinks by powers of two."""
    factors = (2.0 ** -torch.arange(_STEPS, dtype=torch.float64)).tolist()
    gains = [float((_back(module, x * f, upstream)[1]).norm() / upstream.norm()) for f in factors]
    top = max(range(len(gains)), key=gains.__getitem__)
    slope, low, high = fitted(factors[: max(top + 1, 3)], gains[: max(top + 1, 3)])
    figures = {"slope": slope, "low": low, "high": high, "largest": gains[top]}
    shown_by = f"normal inputs shrunk to 2^-{top}: |dx| / |dy| = {gains[top]:.4g}"
    if gains[top] <= _GROWS * gains[0]:
        verdict, told = BOUNDED, f"the input's gradient stays within {gains[top]:.3g} as the input shrinks"
    else:
        ended = max(gains[-_END:]) <= _STILL * min(gains[-_END:])
        verdict = BY_EPS if ended else UNBOUNDED
        told = f"the input's gradient grows like the shrinking factor^{slope:.2f}, to {gains[top]:.4g}"
        told += " where an eps ends it" if ended else ", without end"
    curve = Curve(tuple(factors), tuple(gains), "factor", "|dx| / |dy|")
    return Finding("D4", "growth", dtype, verdict, True, slope, None, shown_by, told, figures, (curve,))


def _finite(module: nn.Module, wide: nn.Module, x: Tensor, upstream: Tensor, dtype: str, exact_in: str) -> Finding:
    """Outputs and gradients of inputs from 2^-12 to 2^6 in size, where the exact ones fit the format."""
    if dtype == exact_in:
        return unchecked(
            "D7", "finite", dtype, "it does not take float64, so that there are no exact numbers to compare with"
        )
    fmt, low = FORMATS[dtype], copy.deepcopy(module).eval().to(FORMATS[dtype].torch_dtype)
    broken: list[int] = []
    for exponent in range(-12, 7, 3):
        given = (x * 2.0**exponent).to(fmt.torch_dtype)
        got = _back(low, given, upstream)
        exact = _back(wide, given.to(FORMATS[exact_in].torch_dtype), upstream)
        fits = [e.abs() < fmt.largest / 2 for e in exact]
        if any(bool((~g.isfinite() & f).any()) for g, f in zip(got, fits, strict=True)):
            broken.append(exponent)
    told = f"not finite although {dtype} holds the exact number" if broken else "every result is finite"
    shown_by = f"normal inputs times 2^{broken[0] if broken else 6}"
    return Finding(
        "D7",
        "finite",
        dtype,
        "unbounded" if broken else "bounded",
        not broken,
        float(len(broken)),
        0.0,
        shown_by,
        told,
        {"sizes that break": float(len(broken))},
    )
