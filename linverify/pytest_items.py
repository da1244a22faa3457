"""Conformance: a kernel's properties as pytest items, one each.

    from my_kernels import my_gla
    import linverify

    test_my_gla = linverify.conformance(my_gla, op="gla")

Each item runs a session of its own and shares nothing, so that ``pytest -n auto`` may run them anywhere. An item passes when
its law held, fails when a required law is broken or could not be judged, and is skipped, with the reason, when the kernel
does not offer what the law asks for, or the law is reported and not required.
"""

import inspect
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from linverify import dtype as formats
from linverify import options, registry
from linverify.errors import LinverifyError, UsageError
from linverify.plan import Plan
from linverify.verdict import PropertyResult, Status, TargetResult

# The law that asks every kind of case: a kernel that refuses all of it could not be checked at all.
BASIS = "agreement"


def conformance(
    kernel: str | Callable[..., Any],
    *,
    op: str | None = None,
    dtypes: Sequence[str] = (),
    profile: str | None = None,
    claims: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str | None = None,
    seed: int = 0,
) -> Callable[..., None]:
    """Return a parametrised test function: one pytest item per property, whose id is the property's name.

    Args:
        kernel: a module-level function, or a target text as of ``linverify check``.
        op: the operator; may be left out where the function is decorated with ``@linverify.kernel``.
        dtypes: fp32, bf16, fp16 by default.
        profile: quick by default; ``--linverify-profile`` overrides it.
        claims: promises that sharpen the judgement.
        settings: extra keyword arguments for every call.
        device: cuda where there is one (xdist workers take turns), else cpu; ``--linverify-device`` overrides it.
        seed: same seed, same cases.

    Raises:
        UsageError: an argument cannot be understood, or the function cannot be found again by another process.
    """
    target = kernel if isinstance(kernel, str) else target_of(kernel)
    name, parameters = options.operator_option(op)
    plan = Plan(
        target=target,
        operator=None if name is None else registry.operator(name).name,
        operator_parameters=parameters,
        settings=dict(settings or {}),
        claims=dict(claims or {}),
        dtypes=tuple(formats.parse(d).name for d in dtypes) or options.DEFAULT_DTYPES,
        seed=seed,
    )
    if profile is not None:
        options.one_of("profile", profile, _profiles())

    @pytest.mark.parametrize("law", list(registry.properties()))
    def test(request: pytest.FixtureRequest, law: str) -> None:
        _test(request.config, plan, law, profile=profile, device=device)

    return test


def target_of(function: Callable[..., Any]) -> str:
    """Return the target text by which a worker finds a function again.

    Raises:
        UsageError: it is no module-level function of a file or an importable module.
    """
    name, module = getattr(function, "__qualname__", ""), getattr(function, "__module__", "")
    if not name or "<" in name:
        raise UsageError(
            f"expected a module-level function, got {name or function!r}; another process must find it by name"
        )
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        raise UsageError(
            f"{name}: its module {module!r} has no file; give a target text instead, as of 'linverify check'"
        )
    if not hasattr(inspect.unwrap(function), "__code__"):
        raise UsageError(f"{name} is a {type(function).__name__}; wrap it in a Python function with named parameters")
    return f"{module}:{name}" if "." in module and _importable(module, Path(file)) else f"{file}::{name}"


def _importable(module: str, file: Path) -> bool:
    """Return whether another process with our search path finds the module; pytest also makes up names that none finds."""
    relative = Path(*module.split("."))
    return any(
        Path(folder, place).resolve() == file.resolve()
        for folder in sys.path
        for place in (relative.with_suffix(".py"), relative / "__init__.py")
    )


def _profiles() -> list[str]:
    from linverify.profile import PROFILES

    return list(PROFILES)


def _test(config: pytest.Config, plan: Plan, law: str, *, profile: str | None, device: str | None) -> None:
    """Ask one law and turn the outcome into pytest's."""
    from dataclasses import replace

    from linverify import session

    __tracebackhide__ = True
    try:
        chosen = config.getoption("linverify_device", default=None) or device or _next_device()
        plan = replace(
            plan,
            properties=(law,),
            device=options.device_option(chosen),
            profile=options.one_of(
                "profile", config.getoption("linverify_profile", default=None) or profile or "quick", _profiles()
            ),
            reproducers=config.rootpath / ".linverify",
        )
        results = session.check(plan, Silence())
    except LinverifyError as error:
        pytest.fail(str(error), pytrace=False)
    for result in results:
        for found in result.properties:
            _settle(result, found, _replay_options(plan))


def _next_device() -> str | None:
    """Return the GPU of this xdist worker, where there are several; None for the default."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    if not worker.isdigit():
        return None
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return f"cuda:{int(worker) % count}" if count else None


def _replay_options(plan: Plan) -> str:
    words = [word for name, value in plan.settings.items() for word in ("--set", f"{name}={value!r}")]
    words += [word for name, value in plan.claims.items() for word in ("--claims", f"{name}={value}")]
    return shlex.join([*words, "--device", plan.device])


def _settle(result: TargetResult, found: PropertyResult, replay_options: str) -> None:
    __tracebackhide__ = True
    note = found.note or result.reason or "no reason was given"
    if found.status in (Status.NOT_OFFERED, Status.NOT_APPLICABLE):
        pytest.skip(f"{found.status.replace('_', ' ')}: {note}")
    if found.status is Status.REFUSED and found.name != BASIS:
        pytest.skip(f"refused: {note}{_refusals(result)}")
    if found.status in (Status.REFUSED, Status.UNCHECKED):
        _fail_or_skip(found, f"{found.name} could not be checked: {note}{_refusals(result)}")
    if found.status in (Status.VIOLATION, Status.REPORTED):
        from linverify.reports.console import failure_as_text

        _fail_or_skip(found, failure_as_text(result, found, replay_options=replay_options))


def _refusals(result: TargetResult) -> str:
    return "".join(f"; {r.kind}: {r.message} (smallest case {r.case_id})" for r in result.refusals)


def _fail_or_skip(found: PropertyResult, text: str) -> NoReturn:
    __tracebackhide__ = True
    if found.required:
        pytest.fail(text, pytrace=False)
    pytest.skip(f"reported, not required: {text}")


class Silence:
    """A listener that says nothing: pytest shows the progress."""

    def target_started(self, target: str, operator: str, properties: Sequence[str]) -> None:
        """Say nothing."""

    def property_started(self, name: str) -> None:
        """Say nothing."""

    def case_judged(self, name: str, case_id: str, share: float | None) -> None:
        """Say nothing."""

    def property_finished(self, result: PropertyResult) -> None:
        """Say nothing."""

    def target_finished(self, result: TargetResult) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""
