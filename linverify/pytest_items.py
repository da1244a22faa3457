"""Conformance: a kernel's properties as pytest items, one each.

    from my_kernels import my_gla
    import linverify

    test_my_gla = linverify.conformance(my_gla, op="gla")

Each item runs a session of its own and shares nothing, so that ``pytest -n auto`` may run them anywhere. An item's id is the
law's name; a case that is to be asked again and again has an item of its own, whose id ends in the case id.
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from linverify import dtype as formats
from linverify import options, registry
from linverify.case import Case, parse_case
from linverify.errors import LinverifyError, UsageError
from linverify.plan import Plan
from linverify.profile import PROFILES
from linverify.pytest_outcomes import recorded, replay_options, settle
from linverify.pytest_plugin import worker_device, worker_share
from linverify.silence import Silence
from linverify.verdict import PropertyResult, TargetResult

_PROFILE = "quick"
_MARKER = ("profile", "device", "require")
_TABLE = pytest.StashKey[Mapping[str, Any]]()


def conformance(
    kernel: str | Callable[..., Any],
    *,
    op: str | None = None,
    dtypes: Sequence[str] = (),
    profile: str | None = None,
    claims: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    require: Sequence[str] = (),
    device: str | None = None,
    seed: int | None = None,
    cases: Mapping[str, Sequence[str]] | None = None,
) -> Callable[..., None]:
    """Return a parametrised test function: one pytest item per property, whose id is the property's name.

    What is left out comes from ``[tool.linverify]`` of the project, then from the defaults below. ``--linverify-profile``,
    ``--linverify-device`` and then ``@pytest.mark.linverify(profile=..., device=..., require=...)`` override it.

    Args:
        kernel: a module-level function, or a target text as of ``linverify check``.
        op: the operator; may be left out where the function is decorated with ``@linverify.kernel``.
        dtypes: fp32, bf16, fp16 by default.
        profile: quick by default.
        claims: promises that sharpen the judgement.
        settings: extra keyword arguments for every call.
        require: reported properties that are required here.
        device: cuda where there is one (an xdist worker's own), else cpu.
        seed: same seed, same cases; 0 by default.
        cases: property names to case ids, as a failure prints them: each becomes an item of its own.

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
        require=_laws(require),
        dtypes=tuple(formats.parse(d).name for d in dtypes),
        seed=seed or 0,
    )
    left_out = {"seed"} if seed is None else set()
    if profile is not None:
        options.one_of("profile", profile, PROFILES)
    laws = [pytest.param(law, None, id=law) for law in registry.properties()]
    kept = [(law, parse_case(c)) for given, ids in (cases or {}).items() for law in _laws([given]) for c in ids]

    @pytest.mark.linverify
    @pytest.mark.parametrize(
        ("law", "case"), [*laws, *(pytest.param(law, case, id=f"{law}-{case.id}") for law, case in kept)]
    )
    def test(request: pytest.FixtureRequest, law: str, case: Case | None) -> None:
        __tracebackhide__ = True
        try:
            asked = _asked(request, plan, left_out, profile=profile, device=device)
            results = _results(replace(asked, properties=(law,)), case)
        except LinverifyError as error:
            pytest.fail("\n".join(getattr(error, "lines", [str(error)])), pytrace=False)
        for result, found in results:
            request.node.user_properties.extend(recorded(found))
            settle(result, found, replay_options(asked))

    return test


def _laws(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(registry.property_named(name).name for name in names)


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


def _asked(
    request: pytest.FixtureRequest, plan: Plan, left_out: set[str], *, profile: str | None, device: str | None
) -> Plan:
    """Return the plan with what the command line, the markers and the project say."""
    config, marked, project = request.config, _marked(request.node), _project(request.config)
    chosen = config.getoption("linverify_profile", default=None) or marked.get("profile") or profile
    where = config.getoption("linverify_device", default=None) or marked.get("device") or device
    own = worker_device(config)
    where = where or project.get("device")
    if where in (None, "cuda") and own:
        where = own  # "cuda" is cuda:0 elsewhere: with it every worker would be on the same GPU
    operator, parameters = plan.operator, plan.operator_parameters
    if operator is None and "op" in project:
        name, parameters = options.operator_option(project["op"])
        operator = registry.operator(name or "").name
    dtypes = plan.dtypes or options.dtypes_option(project.get("dtype", ()))
    return replace(
        plan,
        operator=operator,
        operator_parameters=parameters,
        settings=plan.settings or options.settings_option(project.get("settings", ())),
        claims=plan.claims or options.claims_option(options.with_recipe(project.get("claims"), project.get("recipe"))),
        require=(*plan.require, *_laws(marked.get("require", ())), *_laws(project.get("require", ()))),
        dtypes=dtypes,
        profile=options.one_of("profile", chosen or project.get("profile") or _PROFILE, PROFILES),
        device=options.device_option(where),
        share=worker_share(config, options.device_option(where)),
        seed=project.get("seed", 0) if "seed" in left_out else plan.seed,
        time=project.get("time"),
        autotune=project.get("autotune", plan.autotune),
        reproducers=config.rootpath / ".linverify",
    )


def _marked(node: pytest.Item) -> dict[str, Any]:
    """Return what ``@pytest.mark.linverify`` says, the nearest mark first."""
    found: dict[str, Any] = {}
    for mark in node.iter_markers("linverify"):
        wrong = [str(a) for a in mark.args] + [k for k in mark.kwargs if k not in _MARKER]
        if wrong:
            raise UsageError(f"@pytest.mark.linverify: expected {', '.join(f'{k}=' for k in _MARKER)}; got {wrong[0]}")
        found = {**mark.kwargs, **found}
    return found


def _project(config: pytest.Config) -> Mapping[str, Any]:
    """Return the project's table, read once a run."""
    from linverify import cli
    from linverify import config as tables

    if _TABLE not in config.stash:
        config.stash[_TABLE] = tables.values(config.rootpath, tables.known(cli.check))
    return config.stash[_TABLE]


def _results(plan: Plan, case: Case | None) -> list[tuple[TargetResult, PropertyResult]]:
    """Ask one law of every function of the target, about drawn cases or a single one."""
    from linverify import session

    if case is None:
        results = session.check(plan, Silence())
    else:
        plan = replace(plan, operator=plan.operator or case.operator, dtypes=(formats.parse(case.dtype).name,))
        results = session.replay(plan, case, Silence())
    return [(result, found) for result in results for found in result.properties]
