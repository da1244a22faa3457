"""The command line: arguments in, exit code out.

Nothing here knows how a kernel is checked or how a report looks: options become plans, plans go to the session, records go to
the reports. Errors are one line on standard error; progress goes there too, the report to standard output.
"""

import contextlib
import dataclasses
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

import linverify
from linverify import checking, environment, explain, options, registry, session, target
from linverify import dtype as formats
from linverify.case import parse_case
from linverify.declared import declared
from linverify.errors import LinverifyError, UsageError
from linverify.exits import EXIT_CODES
from linverify.plan import Listener, Plan
from linverify.profile import PROFILES
from linverify.reports import json_file
from linverify.reports.console import print_target
from linverify.reports.progress import Progress
from linverify.verdict import Report, TargetResult

_EXITS = "Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + "."

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    help="Does this linear-attention kernel compute what its equations say, to the accuracy its arithmetic allows?",
    epilog=_EXITS,
)

Op = Annotated[
    str | None, typer.Option("--op", metavar="OP[:key=value]", help="The operator that the function computes.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="An extra keyword argument for every call; repeatable."),
]
Claims = Annotated[
    list[str] | None,
    typer.Option("--claims", metavar="KEY=VALUE", help="A promise that sharpens the judgement; repeatable."),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe", metavar="R", help="The kernel's precision recipe, as --claims recipe=R: bf16,C=64,state=fp32 ..."
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", metavar="cpu|cuda[:i]", help="Default: cuda:0 where there is one.")
]
Autotune = Annotated[
    str, typer.Option("--autotune", metavar="pin|native", help="One fixed configuration, or Triton's choice.")
]
Only = Annotated[
    list[str] | None,
    typer.Option("--property", metavar="P", help="Check this property only; repeatable. Default: all."),
]
Json = Annotated[Path | None, typer.Option("--json", metavar="F", help="Write the whole run to this file.")]


@app.command()
def check(
    targets: Annotated[
        list[str], typer.Argument(metavar="TARGET", help="file.py, file.py::function, package.module:function")
    ],
    op: Op = None,
    settings: Set = None,
    claims: Claims = None,
    recipe: Recipe = None,
    device: Device = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            "--dtype", metavar="D", help="fp32, tf32, bf16, fp16, fp64; repeatable. Default: fp32, bf16, fp16."
        ),
    ] = None,
    only: Only = None,
    require: Annotated[
        list[str] | None, typer.Option("--require", metavar="P", help="Make a reported property required; repeatable.")
    ] = None,
    profile: Annotated[str, typer.Option("--profile", metavar="|".join(PROFILES), help="How many cases.")] = "standard",
    time: Annotated[
        float | None, typer.Option("--time", metavar="SECONDS", help="Stop asking after this long.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Same seed, same cases.")] = 0,
    autotune: Autotune = "pin",
    json: Json = None,
) -> int:
    """Check kernels: decorated functions of a file, or any function with --op."""
    claims = _with_recipe(claims, recipe)
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
    )
    for text in targets:
        target.parse(text)
    plans = [dataclasses.replace(plan, target=text) for text in targets]
    again = _again(op=op, settings=settings, claims=claims, device=device, autotune=autotune)
    shared = session.Shared()  # targets of one operator are held to the same references

    def ask(plan: Plan, listener: Listener) -> Sequence[TargetResult]:
        return session.check(plan, listener, shared)

    return _ask(plans, ask, options.record_option(json), again)


@app.command()
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
    json: Json = None,
) -> int:
    """Ask a target one case again, under every property that asks such cases."""
    if Path(case_id).suffix == ".py":
        given = [word for name in only or () for word in ("--property", name)] + (["--json", str(json)] if json else [])
        return main([*options.recorded_replay(Path(case_id)), *given])
    case = parse_case(case_id)
    if target_text is None:
        raise UsageError(
            f"expected --target with the case id {case_id}, for example --target my_kernel.py::my_function"
        )
    target.parse(target_text)
    claims = _with_recipe(claims, recipe)
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

    return _ask([plan], ask, options.record_option(json), again)


@app.command(name="list")
def list_(kind: Annotated[str, typer.Argument(metavar="|".join(explain.KINDS))] = "") -> int:
    """Show which operators, implementations, properties and regimes there are."""
    for position, one in enumerate([options.one_of("kind", kind, explain.KINDS)] if kind else explain.KINDS):
        _print(*([Text()] if position else []), explain.listing(one))
    return 0


@app.command(name="explain")
def explain_(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An operator, a property, a regime, an implementation.")],
) -> int:
    """Say what an operator computes, or what a property demands and why."""
    _print(explain.explained(name))
    return 0


@app.command()
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; never raises, never shows a traceback."""
    with _sigterm_like_ctrl_c():
        try:
            code = app(
                args=list(sys.argv[1:] if arguments is None else arguments),
                prog_name="linverify",
                standalone_mode=False,
            )
            sys.stdout.flush()
        except LinverifyError as error:
            return _fail(str(error), error.exit_code)
        except BrokenPipeError:
            _mute()
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


def _with_recipe(claims: list[str] | None, recipe: str | None) -> list[str]:
    """The claims, the recipe among them; a recipe that cannot be read is found out at once."""
    given = [*(claims or ()), *(() if recipe is None else (f"recipe={recipe}",))]
    declared(options.claims_option(given).get("recipe"))
    return given


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


def _ask(plans: Sequence[Plan], ask: checking.Ask, record: Path | None, again: str) -> int:
    """Check, report each target as it is through, write the record, and return the exit code."""
    first = True

    def show(result: TargetResult) -> None:
        nonlocal first
        console = Console()
        if not first:
            console.print()
        first = False
        try:
            print_target(console, result, replay_options=again)
            sys.stdout.flush()
        except BrokenPipeError:
            _mute()

    with Progress(Console(stderr=True)) as progress:
        outcome = checking.check_all(plans, ask, progress, progress.paused(show))
    plan = plans[0]
    where = environment.environment(plan.device)
    report = Report(linverify.__version__, where, plan.seed, plan.profile, outcome.results)
    if record is not None:
        try:
            json_file.write(report, record)
        except OSError as error:
            return _fail(f"--json {record}: {error.strerror or error}", 2)
    if outcome.error is not None:
        return _fail(str(outcome.error), outcome.error.exit_code)
    return 130 if outcome.interrupted else report.exit_code


def _print(*renderables: RenderableType) -> None:
    console = Console()
    for renderable in renderables:
        console.print(renderable)


def _fail(message: str, code: int) -> int:
    """Say what is wrong in one line."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"linverify: {' '.join(message.split())}\n")
    return code


def _mute() -> None:
    """Let the rest go nowhere: who read our output has gone, which changes no verdict."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _sigterm_like_ctrl_c() -> Iterator[None]:
    """Let a polite request to end, as CI systems send it, finish with what was judged."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # only the main thread may set handlers
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
