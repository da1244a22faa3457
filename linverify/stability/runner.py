"""The runner: which diagnostics a target gets, in which formats, and what is made of refusals."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

from linverify import registry
from linverify.bench import Bench
from linverify.binding import bind
from linverify.declared import declared
from linverify.errors import CannotCheckError, UsageError
from linverify.operator import Operator
from linverify.parameters import with_parameters
from linverify.plan import Plan
from linverify.problem import Fault, Refused
from linverify.session import INTERPRETED_DTYPES, asked, one_thread, open_runner
from linverify.share import as_claimed
from linverify.shared import Shared
from linverify.stability.dilution import dilution
from linverify.stability.finite import finite
from linverify.stability.gain import gain
from linverify.stability.growth_exponent import growth_exponent
from linverify.stability.probe import Probe
from linverify.stability.records import Finding, Stability
from linverify.stability.spectrum import spectrum
from linverify.stability.supremum import supremum
from linverify.target import parse

Diagnose = Callable[[Probe], Finding]
Heard = Callable[[str], None]

EXACT: tuple[Diagnose, ...] = (gain, supremum, spectrum, growth_exponent, dilution)
FORMATS: tuple[str, ...] = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, slots=True, eq=False)
class _Kernel:
    """A function and how it is asked."""

    name: str
    bench: Bench
    triton: bool


def kernels(plan: Plan, dtypes: tuple[str, ...], heard: Heard) -> tuple[Stability, ...]:
    """Diagnose every kernel of a target.

    Args:
        plan: the target and how it is asked.
        dtypes: in which D1 to D4 and D6 are made; () for float64, float32 where that is refused.
        heard: told of what is done.

    Raises:
        UsageError: as of a check.
        CannotCheckError: the target cannot be imported, or the device is not there.
    """
    with one_thread(), ExitStack() as stack:
        return tuple(_diagnosed(k, plan, dtypes, heard) for k in _opened(plan, stack))


def forms(operator: Operator, plan: Plan, dtypes: tuple[str, ...], heard: Heard) -> tuple[Stability, ...]:
    """Diagnose all built-in forms of an operator that can be used here; on a CPU those in torch.

    Raises:
        CannotCheckError: there is none.
    """
    found = [
        i.target_text
        for i in registry.implementations()
        if i.operator == operator.name and not i.absent and (i.backend == "torch" or plan.device.startswith("cuda"))
    ]
    if not found:
        raise CannotCheckError(f"{operator.name} has no built-in form")
    return tuple(
        result
        for text in found
        for result in kernels(replace(plan, target=text, operator=operator.name), dtypes, heard)
    )


def _opened(plan: Plan, stack: ExitStack) -> Iterator[_Kernel]:
    spec = parse(plan.target)
    shared = Shared()
    with open_runner(plan, spec) as first:
        found = asked(plan, first)
    for function, claim in found:
        runner = stack.enter_context(open_runner(plan, spec))
        claims = {**claim.claims, **plan.claims}
        operator = as_claimed(with_parameters(registry.operator(claim.operator), plan.operator_parameters), claims)
        binding = bind(operator, function, settings={**claim.settings, **plan.settings}, claims=claims)
        if "gradients" not in binding.capabilities:
            raise UsageError(f"{function.name} offers no gradients: there is nothing to diagnose")
        runner.bind(binding, operator)
        judge, answers = shared.of(operator, plan.device, plan.operator_parameters)
        bench = Bench(runner, operator, judge, plan.device, claims, answers)
        bench.compiles = plan.device.startswith("cuda")
        bench.declaration = declared(claims.get("recipe"))
        named = spec.function is None and spec.kind == "file"
        name = f"{plan.target}::{function.name}" if named else plan.target
        yield _Kernel(name, bench, function.uses_triton or claim.backend == "triton")


def _diagnosed(kernel: _Kernel, plan: Plan, dtypes: tuple[str, ...], heard: Heard) -> Stability:
    notes: list[str] = []
    probes, formats = _probes(kernel, plan, dtypes, notes), FORMATS
    if kernel.triton and not plan.device.startswith("cuda"):
        formats = tuple(f for f in FORMATS if f in INTERPRETED_DTYPES)
        notes.append("bf16 is left out: on a CPU Triton's interpreter multiplies bfloat16 wrongly; diagnose on a GPU")
    findings = [_made(d, p, kernel.name, heard) for p in probes for d in EXACT]
    findings += [_made(finite, Probe(kernel.bench, f, plan.seed), kernel.name, heard) for f in formats]
    findings.sort(key=lambda f: f.diagnostic)
    facts = probes[0].facts if probes else None
    for probe in probes:
        notes += probe.notes
    return Stability(
        kernel.name,
        kernel.bench.operator.name,
        "" if facts is None else facts.words,
        "" if facts is None else facts.promise,
        tuple(findings),
        tuple(dict.fromkeys(notes)),
    )


def _made(diagnose: Diagnose, probe: Probe, name: str, heard: Heard) -> Finding:
    heard(f"{name}: {diagnose.__name__.replace('_', ' ')} {probe.dtype}")
    return diagnose(probe)


def _probes(kernel: _Kernel, plan: Plan, dtypes: tuple[str, ...], notes: list[str]) -> list[Probe]:
    """One probe a dtype; float64 where the kernel takes it, else float32, when none is named."""
    found = []
    for dtype in dtypes or ("fp64",):
        try:
            found.append(Probe(kernel.bench, dtype, plan.seed))
        except (Refused, Fault, TypeError) as reason:
            if dtypes:
                notes.append(f"{dtype} is not diagnosed: {reason}")
    if not found and not dtypes:
        notes.append("the kernel does not take float64: it is diagnosed in float32")
        found.append(Probe(kernel.bench, "fp32", plan.seed))
    if not found:
        raise CannotCheckError(f"{kernel.name} could not be asked: {'; '.join(notes)}")
    return found
