"""The command line: arguments in, exit code out.

Nothing here knows how a kernel is checked or how a report looks: options become plans, plans go to the session, records go to
the reports. Errors are one line on standard error; progress goes there too, the report to standard output.
"""

import contextlib
import dataclasses
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

import linverify
from linverify import (
    checking,
    cli_commands,
    config,
    environment,
    explain,
    gpus,
    interrupts,
    options,
    registry,
    resume,
    session,
    target,
)
from linverify import dtype as formats
from linverify.case import parse_case
from linverify.cli_options import (
    Autotune,
    Claims,
    Device,
    Dtypes,
    Engine,
    Only,
    Op,
    ProfileName,
    Recipe,
    Require,
    Resume,
    Sanitizer,
    Seed,
    Set,
    Time,
    Workers,
)
from linverify.errors import ConfigError, LinverifyError, UsageError
from linverify.exits import EXIT_CODES
from linverify.outputs import Outputs, Terminal, mute, writes
from linverify.plan import Listener, Plan
from linverify.profile import PROFILES
from linverify.report_command import recorded, report
from linverify.reports.console import print_target
from linverify.reports.progress import Progress
from linverify.selftest_command import selftest
from linverify.stability_command import stability
from linverify.team import Team
from linverify.verdict import Report, TargetResult

_EXITS = "Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + "."

# Which options of [tool.linverify] a command takes beside `check`, which takes all: how a target is asked, not what about.
_ASKED = ("set", "claims", "recipe", "device", "autotune")
_ASKED_BY = ("replay", "compare", "stability", "selftest")

app = typer.Typer(
    rich_markup_mode=None,
    help="Does this linear-attention kernel compute what its equations say, to the accuracy its arithmetic allows?",
    epilog=_EXITS,
)


@app.callback()
def _project(context: typer.Context) -> None:
    """Take what the command line leaves out from the project's pyproject.toml."""
    name = context.invoked_subcommand or ""
    if name not in ("check", *_ASKED_BY):
        return
    commands = {c.name or c.callback.__name__: c.callback for c in app.registered_commands if c.callback}
    known, own = config.known(commands["check"]), config.known(commands[name])
    found = config.values(Path(), known)
    if name != "check":
        shared = [known[key].parameter for key in _ASKED if key in own]
        found = {parameter: found[parameter] for parameter in shared if parameter in found}
    context.default_map = {name: found}


@app.command(short_help="Check kernels: files, or functions of any module.")
@writes
def check(
    targets: Annotated[
        list[str], typer.Argument(metavar="TARGET", help="file.py, file.py::function, package.module:function")
    ],
    op: Op = None,
    settings: Set = None,
    claims: Claims = None,
    recipe: Recipe = None,
    device: Device = None,
    dtype: Dtypes = None,
    only: Only = None,
    require: Require = None,
    profile: ProfileName = "standard",
    time: Time = None,
    seed: Seed = 0,
    autotune: Autotune = "pin",
    workers: Workers = 1,
    engine: Engine = "local",
    sanitizer: Sanitizer = False,
    resumed: Resume = None,
    *,
    outputs: Outputs,
) -> int:
    """Check kernels: decorated functions of a file, or any function with --op."""
    claims = options.with_recipe(claims, recipe)
    plan = _plan(
        targets[0],
        op=op,
        settings=settings,
        claims=claims,
        device=device,
        autotune=autotune,
        dtypes=options.dtypes_option(dtype or ()),
        properties=_properties(only),
        require=_properties(require),
        profile=options.one_of("profile", profile, PROFILES),
        time=options.time_option(time),
        seed=seed,
        long=any("long" in registry.property_named(name).needs for name in only or ()),
        sanitizer=sanitizer,
        workers=options.workers_option(workers),
    )
    for text in targets:
        target.parse(text)
    plans = [dataclasses.replace(plan, target=text) for text in targets]
    if resumed is not None:
        before = recorded(resumed, "--resume")
        known, swept = resume.known(before, plans, str(resumed)), resume.swept(before)
        plans = [dataclasses.replace(p, known=known, swept=swept) for p in plans]
    again = _again(op=op, settings=settings, claims=claims, device=device, autotune=autotune)
    if options.one_of("engine", engine, options.ENGINES) == "ray":
        from linverify.engine_ray import Cluster

        with (
            Cluster(workers, plan.device) as cluster,
            Team(workers, cluster.devices, cluster.shares, cluster.examiner, len(plans)) as team,
        ):
            return _ask(plans, team.check, outputs, again)
    if workers > 1:
        with Team(workers, gpus.spread(plan.device, workers, device), targets=len(plans)) as team:
            return _ask(plans, team.check, outputs, again)
    shared = session.Shared()  # targets of one operator are held to the same references

    def ask(plan: Plan, listener: Listener) -> Sequence[TargetResult]:
        return session.check(plan, listener, shared)

    return _ask(plans, ask, outputs, again)


@app.command(short_help="Ask a target one case again, as a report names it.")
@writes
def replay(
    case_id: Annotated[
        str, typer.Argument(metavar="CASE_ID|REPRO", help="As a report prints it, or a reproducer script.")
    ],
    target_text: Annotated[
        str | None, typer.Option("--target", metavar="T", help="file.py::function or package.module:function")
    ] = None,
    op: Op = None,
    settings: Set = None,
    claims: Claims = None,
    recipe: Recipe = None,
    device: Device = None,
    only: Only = None,
    autotune: Autotune = "pin",
    *,
    outputs: Outputs,
) -> int:
    """Ask a target one case again, under every property that asks such cases."""
    if Path(case_id).suffix == ".py":
        given = [word for name in only or () for word in ("--property", name)]
        return main([*options.recorded_replay(Path(case_id)), *given, *outputs.words()])
    case = parse_case(case_id)
    if target_text is None:
        raise UsageError(
            f"expected --target with the case id {case_id}, for example --target my_kernel.py::my_function"
        )
    target.parse(target_text)
    claims = options.with_recipe(claims, recipe)
    plan = _plan(
        target_text,
        op=op or case.operator,
        settings=settings,
        claims=claims,
        device=device,
        autotune=autotune,
        dtypes=(formats.parse(case.dtype).name,),
        properties=_properties(only),
    )
    again = _again(op=op, settings=settings, claims=claims, device=device, autotune=autotune)

    def ask(plan: Plan, listener: Listener) -> Sequence[TargetResult]:
        return session.replay(plan, case, listener)

    return _ask([plan], ask, outputs, again)


app.command(short_help="Show a recorded run in any format, or compare two.")(report)


@app.command(name="list", short_help="Show operators, implementations, laws and regimes.")
def list_(kind: Annotated[str, typer.Argument(metavar="|".join(explain.KINDS))] = "") -> int:
    """Show which operators, implementations, properties and regimes there are."""
    for position, one in enumerate([options.one_of("kind", kind, explain.KINDS)] if kind else explain.KINDS):
        _print(*([Text()] if position else []), explain.listing(one))
    return 0


@app.command(name="explain", short_help="Say what an operator computes, what a law demands.")
def explain_(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An operator, a property, a regime, an implementation.")],
) -> int:
    """Say what an operator computes, or what a property demands and why."""
    _print(explain.explained(name))
    return 0


@app.command(short_help="Look at this machine: what can be checked here?")
def doctor() -> int:
    """Look at this machine: what is installed, what can be checked here, and how precisely."""
    found = environment.findings()
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    colours = {"ok": "green", "limited": "yellow", "missing": "red"}
    for finding in found:
        grid.add_row(finding.what, Text(finding.state, style=colours[finding.state]), Text(finding.text))
    _print(grid, Text(), *(Text(line) for line in environment.precision_lines()))
    return 3 if any(f.state == "missing" for f in found) else 0


app.command(short_help="Say which of two kernels is more accurate, and where.")(cli_commands.compare)
app.command(short_help="Write a kernel to begin with: right, and slow.")(cli_commands.init)
app.command(short_help="Say which mistakes in a kernel its check catches.")(selftest)
app.command(short_help="Say whether gradients are bounded, and by what.")(stability)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; never raises, never shows a traceback."""
    with interrupts.listening():
        try:
            code = app(
                args=list(sys.argv[1:] if arguments is None else arguments),
                prog_name="linverify",
                standalone_mode=False,
            )
            sys.stdout.flush()
        except ConfigError as error:
            return max(_fail(line, error.exit_code) for line in error.lines)
        except LinverifyError as error:
            return _fail(str(error), error.exit_code)
        except BrokenPipeError:
            mute()
            return 0
        except (KeyboardInterrupt, typer.Abort):
            return _fail("interrupted", 130)
        except Exception as error:
            if hasattr(error, "format_message"):  # what the option parser did not understand
                return _fail(f"{error.format_message().rstrip('.')}; 'linverify --help' shows what there is", 2)
            return _fail(checking.bug_report(error), 3)
    return code if isinstance(code, int) else 0


def _plan(text: str, *, op: str | None, settings: list[str] | None, claims: list[str] | None, **rest: Any) -> Plan:
    operator, parameters = options.operator_option(op)
    rest["device"] = options.device_option(rest["device"])
    rest["autotune"] = options.one_of("autotune mode", rest["autotune"], options.AUTOTUNE)
    return Plan(
        target=text,
        operator=None if operator is None else registry.operator(operator).name,
        operator_parameters=parameters,
        settings=options.settings_option(settings or ()),
        claims=options.claims_option(claims or ()),
        reproducers=Path(".linverify"),
        **rest,
    )


def _properties(names: list[str] | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(registry.property_named(name).name for name in names or ()))


def _again(
    *, op: str | None, settings: list[str] | None, claims: list[str] | None, device: str | None, autotune: str
) -> str:
    """Return the options that a replay must repeat."""
    words = ["--op", op] if op and ":" in op else []
    words += [word for text in settings or () for word in ("--set", text)]
    words += [word for text in claims or () for word in ("--claims", text)]
    words += ["--device", device] if device else []
    words += ["--autotune", autotune] if autotune != "pin" else []
    return shlex.join(words)


def _ask(plans: Sequence[Plan], ask: checking.Ask, outputs: Outputs, again: str) -> int:
    """Check, report each target as it is through, write the files asked for, and return the exit code."""
    first = True

    def show(result: TargetResult) -> None:
        nonlocal first
        console = Terminal()
        if not first:
            console.print()
        first = False
        try:
            print_target(console, result, replay_options=again)
            sys.stdout.flush()
        except BrokenPipeError:
            mute()

    def interruptible(plan: Plan, listener: Listener) -> Sequence[TargetResult]:
        with interrupts.armed():
            return ask(plan, listener)

    # From here to the written record an interrupt strikes while a target is asked, and nowhere else.
    with interrupts.held():
        return _ask_and_record(plans, interruptible, outputs, show, again)


def _ask_and_record(
    plans: Sequence[Plan],
    ask: checking.Ask,
    outputs: Outputs,
    show: Callable[[TargetResult], None],
    again: str,
) -> int:
    started = datetime.now(UTC)
    with Progress(Console(stderr=True)) as progress:
        outcome = checking.check_all(plans, ask, progress, progress.paused(show))
    plan = plans[0]
    where = {**environment.environment(plan.device), **resume.marks(plans)}
    asked = {p.name for result in outcome.results for p in result.properties}
    run = Report(
        linverify.__version__,
        where,
        plan.seed,
        plan.profile,
        outcome.results,
        started=started.isoformat(timespec="seconds"),
        laws={p.name: p.law for p in registry.properties().values() if p.name in asked},
        replay_options=again,
    )
    try:
        outputs.write(run)
    except BrokenPipeError:
        mute()
    if outcome.error is not None:
        return _fail(str(outcome.error), outcome.error.exit_code)
    return 130 if outcome.interrupted else run.exit_code


def _print(*renderables: RenderableType) -> None:
    console = Terminal()
    for renderable in renderables:
        console.print(renderable)


def _fail(message: str, code: int) -> int:
    """Say what is wrong in one line."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"linverify: {' '.join(message.split())}\n")
    return code
