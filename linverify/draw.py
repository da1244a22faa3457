"""From a case to its problem: tensors, flags and upstream gradients, the same on every machine.

Memory layout is not applied here: the worker lays tensors out. A case with layout "expanded" has equal values along the axis
that will have stride 0.
"""

import zlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from linverify.arguments import heads_from_groups
from linverify.case import Case
from linverify.dtype import FP16, FP64, Format, parse, round_to
from linverify.errors import UsageError, unknown
from linverify.headroom import factors
from linverify.operator import Input, Kind, Operator
from linverify.problem import Problem
from linverify.regime import EXACT_GATES, INTEGER_REGIMES, STATES, fits, gate_regimes, operand_regimes
from linverify.sample import Sampler, generator

WIDENED: tuple[Kind, ...] = ("strength", "bonus")
MIXTURES = ("usual", "gates", "state", "wide")
OFFSETS = ("int64", "int32")
LAYOUTS = ("contiguous", "strided", "offset", "expanded")
COTANGENTS = ("none", "o", "expanded", "strided", "state", "both")
SCALES = ("default", "one", "sqrt", "other")
_OTHER_SCALES = (0.3125, 0.75, 1.375)  # exact in every format
_LARGE = 64.0


def default_state_dtype(dtype: str) -> torch.dtype:
    """Return the dtype of initial and final states in cases of that dtype: float32, or float64 in fp64 cases."""
    return torch.float64 if parse(dtype) is FP64 else torch.float32


def call_layouts(case: Case) -> tuple[str, str]:
    """Return the memory layouts of the inputs and of o's upstream gradient."""
    return case.layout, case.cotangent if case.cotangent in ("expanded", "strided") else "contiguous"


def labelled_generator(case: Case, label: str) -> torch.Generator:
    """Return a CPU generator that depends on the case's seed and the label alone: a trial and its scout choose alike."""
    return torch.Generator().manual_seed(zlib.crc32(f"{case.seed}/{label}".encode()))


def input_format(argument: Input, dtype: str, mixture: str = "usual") -> Format:
    """Return the format in which the target sees an input in cases of that dtype."""
    fmt = parse(dtype)
    kept = argument.keeps_float32 and mixture != "gates"
    widened = mixture == "wide" and argument.kind in WIDENED
    return parse("fp32") if (kept or widened) and fmt is not FP64 else fmt


def problem(case: Case, operator: Operator) -> Problem:
    """Draw the problem of a case.

    Raises:
        UsageError: the case contradicts itself or the operator (case ids are also written by hand).
    """
    check(case, operator)
    sampler = Sampler(case.seed, case.regime, case.gate, case.T)
    tensors = _inputs(case, operator, sampler)
    state = _state(case, operator, sampler)
    cotangents = _cotangents(case, operator, sampler)
    scale = _scale(case)
    # what is read out is no linear function of the values, and what is stated knows no bound: their regimes stay small
    if parse(case.dtype) is FP16 and not sampler.exact and operator.canonical is not None and operator.readout is None:
        f = factors(
            operator.canonical(tensors, case.sizes),
            operator.scale_for(case.sizes) if scale is None else scale,
            state,
            cotangents.get("o"),
            cotangents.get("state"),
        )
        tensors[operator.value_name] = tensors[operator.value_name] * f.value
        state = None if state is None else state * f.value
        cotangents = {n: t * f.cotangent for n, t in cotangents.items()}
    state_dtype = default_state_dtype(case.dtype)
    formats = {i.name: input_format(i, case.dtype, case.mixture) for i in operator.inputs}
    given_dtype = parse(case.dtype).torch_dtype if case.mixture == "state" else state_dtype
    o_dtype = formats[operator.value_name].torch_dtype
    names = (*formats, *(("initial_state",) if state is not None else ()))
    return Problem(
        tensors={n: tensors[n].to(f.torch_dtype) for n, f in formats.items()},
        initial_state=None if state is None else state.to(given_dtype),
        lengths=case.lengths,
        scale=scale,
        final_state=case.final_state,
        cotangents={n: t.to(o_dtype if n == "o" else state_dtype) for n, t in cotangents.items()},
        wrt=() if not cotangents else names if case.wrt == "all" else (case.wrt,),
        offsets=case.offsets,
    )


def check(case: Case, operator: Operator) -> None:
    """Raise unless a case is consistent with itself and with its operator.

    Raises:
        UsageError: says which field is wrong, and what it may be.
    """
    parse(case.dtype)
    if min(case.B, case.T, case.H, case.K, case.V) < 1:
        raise UsageError(f"sizes must be at least 1, got B={case.B} T={case.T} H={case.H} K={case.K} V={case.V}")
    for field, value, known in (
        ("regime", case.regime, operand_regimes(operator, on_request=True)),
        ("gate regime", case.gate, gate_regimes(operator, on_request=True)),
        ("initial state", case.state, tuple(s.name for s in STATES)),
        ("layout", case.layout, LAYOUTS),
        ("cotangent", case.cotangent, COTANGENTS),
        ("scale", case.scale, SCALES),
        ("mixture", case.mixture, MIXTURES),
        ("dtype of offsets", case.offsets, OFFSETS),
        ("input", case.wrt, ("all", "initial_state", *(i.name for i in operator.inputs))),
    ):
        if value not in known:
            raise unknown(f"{field} of {operator.name}", value, known)
    if not fits(case.regime, case.dtype):
        raise UsageError(f"regime {case.regime!r} does not fit the range of {case.dtype}; take another dtype or regime")
    if case.regime in INTEGER_REGIMES and case.gate not in EXACT_GATES:
        raise UsageError(
            f"in regime {case.regime!r} the gate must be one of {', '.join(EXACT_GATES)}, got {case.gate!r}"
        )
    if case.G and (not operator.grouped or case.G < 0 or case.H % case.G):
        raise UsageError(f"expected H={case.H} divisible by G={case.G} groups, and an operator that has groups")
    if case.lengths and (case.B != 1 or sum(case.lengths) != case.T or min(case.lengths) < 0):
        raise UsageError(f"packed lengths must sum to T={case.T} with B=1, got {case.lengths} and B={case.B}")
    if case.cotangent in ("state", "both") and not case.final_state:
        raise UsageError(f"cotangent={case.cotangent} needs the final state: add final_state=1")
    if case.wrt == "initial_state" and case.state == "absent":
        raise UsageError("wrt=initial_state needs an initial state: add state=normal")


def _inputs(case: Case, operator: Operator, sampler: Sampler) -> dict[str, Tensor]:
    """Draw all inputs in float64, rounded to the formats in which the target sees them."""
    sizes = operator.all_sizes(case.sizes)
    drawn: dict[str, Tensor] = {}

    def put(argument: Input, values: Tensor) -> None:
        drawn[argument.name] = _expanded(
            case, argument, round_to(values, input_format(argument, case.dtype, case.mixture))
        )

    low_rank = bool(operator.of_kind("low_rank_a"))
    first: dict[str, Callable[[str, list[int]], Tensor]] = {
        "query": lambda name, shape: sampler.operand(name, shape, role="query"),
        "value": lambda name, shape: sampler.operand(name, shape, role="value"),
        "bonus": lambda name, shape: sampler.operand(name, shape, role="bonus"),
        "key": lambda name, shape: sampler.key(name, shape, unit=operator.unit_keys),
        "low_rank_a": lambda name, shape: -sampler.key(name, shape, unit=True, low_rank=True),
        "log_gate": lambda name, shape: sampler.log_gate(name, shape, bounded=low_rank),
        "step_size": sampler.step_size,
        "log_rate": sampler.log_rate,
        "parameter": sampler.normal,
        "weight": sampler.normal,
    }
    for i in operator.inputs:
        if i.draw is not None:
            put(i, i.draw(generator(sampler.seed, i.name), tuple(sizes[a] for a in i.axes)))
        elif i.kind in first:
            put(i, first[i.kind](i.name, [sizes[a] for a in i.axes]))
    for i in operator.of_kind("strength"):  # this and b depend on keys as the target will see them
        beta = sampler.strength(i.name, [sizes[a] for a in i.axes])
        key = drawn[operator.of_kind("key")[0].name]
        shared = heads_from_groups(key, {"H": beta.shape[2], "G": key.shape[2]})
        put(i, bounded_strength(beta, shared, input_format(i, case.dtype, case.mixture)))
    for i in operator.of_kind("low_rank_b"):
        eta = sampler.removal(i.name, [sizes[a] for a in i.axes])
        put(i, -drawn[operator.of_kind("low_rank_a")[0].name] * eta)
    return {i.name: drawn[i.name] for i in operator.inputs}


def bounded_strength(beta: Tensor, key: Tensor, fmt: Format) -> Tensor:
    """Return beta, rounded to `fmt` and lowered where beta |k|^2 would exceed 2.

    Args:
        beta: [B, T, H], float64.
        key: [B, T, H, K], float64, as the target sees it.
        fmt: of beta.
    """
    norm = key.square().sum(-1)
    beta = round_to(beta, fmt)
    beyond = beta * norm > 2.0
    # two units below the bound, so that rounding cannot lead back above it
    return torch.where(beyond, round_to(2.0 / norm.clamp(min=1.0) * (1.0 - 2.0 * fmt.unit_roundoff), fmt), beta)


def _expanded(case: Case, argument: Input, x: Tensor) -> Tensor:
    """Make values equal along the axis that the worker will expand: the batch, or the heads of a single row."""
    if case.layout != "expanded" or argument.axes[0] != "B":
        return x
    axis = 0 if x.shape[0] > 1 else argument.axes.index("H") if "H" in argument.axes else 2
    return x.narrow(axis, 0, 1).expand_as(x).contiguous()


def _state(case: Case, operator: Operator, sampler: Sampler) -> Tensor | None:
    shape = [operator.all_sizes(case.sizes)[a] for a in operator.state_axes]
    if case.state == "absent":
        return None
    if case.state == "zero":
        blank = torch.zeros(shape, dtype=torch.float64)
        blank = blank if operator.blank_state is None else operator.blank_state(blank)
        largest = (parse(case.dtype) if case.mixture == "state" else parse("fp32")).largest
        return blank.clamp(-largest, largest)  # a maximum of nothing is as far down as the state's format goes
    large = case.state == "large"
    if sampler.exact:
        return sampler.integers("initial_state", shape, largest=8 if large else 1)
    x = 0.5 * sampler.normal("initial_state", shape) * (_LARGE if large else 1.0)
    x = x if operator.state_domain is None else operator.state_domain(x)
    kept = case.mixture != "state" and parse(case.dtype) is not FP64
    x = round_to(x, parse("fp32") if kept else parse(case.dtype))
    return x[:1].expand_as(x).contiguous() if case.layout == "expanded" else x


def _cotangents(case: Case, operator: Operator, sampler: Sampler) -> dict[str, Tensor]:
    sizes = case.sizes
    found: dict[str, Tensor] = {}

    def draw(name: str, shape: list[int], fmt: Format) -> Tensor:
        return sampler.integers(name, shape) if sampler.exact else round_to(sampler.normal(name, shape), fmt)

    if case.cotangent not in ("none", "state"):
        shape = [operator.all_sizes(sizes)[a] for a in operator.o_axes]
        plain = draw("upstream o", shape, parse(case.dtype))
        found["o"] = torch.ones_like(plain) if case.cotangent == "expanded" else plain  # as y.sum().backward() makes it
    if case.cotangent in ("state", "both"):
        found["state"] = draw(
            "upstream state", [operator.all_sizes(sizes)[a] for a in operator.state_axes], parse("fp32")
        )
    return found


def _scale(case: Case) -> float | None:
    named: Mapping[str, float | None] = {
        "default": None,
        "one": 1.0,
        "sqrt": float(case.K) ** -0.5,
        "other": _OTHER_SCALES[case.seed % len(_OTHER_SCALES)],
    }
    return named[case.scale]
