"""``linverify selftest``: how many mistakes in a kernel's source does its check catch?"""

import dataclasses
import hashlib
import json as json_module
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer
from rich.console import Console

import linverify
from linverify import environment, interrupts, options, registry
from linverify.cli_options import Claims, Dtypes, Op, ProfileName, Seed, Set, Time, Workers
from linverify.errors import LinverifyError, UsageError
from linverify.outputs import Terminal
from linverify.plan import Plan
from linverify.profile import PROFILES
from linverify.reports import selftest_json
from linverify.reports.selftest import print_selftest
from linverify.selftest.run import Order, run
from linverify.selftest.score import MutantResult, Outcome, SelfTest, TargetScore, tallied

# Between them these use every term of the recurrence: gates of both kinds, delta rules, reads before the write.
_OPERATORS = ("gla", "gated_delta_rule", "rwkv7", "rwkv6")
_BUILT_IN = ("linverify.impls.torch_recurrent", "linverify.impls.torch_chunkwise", "linverify.impls.torch_naive")
_EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "my_gla.py"
_SAVED = 30.0  # seconds between two records


def selftest(
    target: Annotated[
        str | None, typer.Argument(metavar="[TARGET]", help="As of check. Default: built-in kernels and examples.")
    ] = None,
    op: Op = None,
    settings: Set = None,
    claims: Claims = None,
    dtype: Dtypes = None,
    profile: ProfileName = "standard",
    time: Time = None,
    seed: Seed = 0,
    mutants: Annotated[
        int | None, typer.Option("--mutants", metavar="N", min=1, help="At most so many of each target.")
    ] = None,
    each: Annotated[
        bool, typer.Option("--each", help="Ask every property about every mutant: what would it catch alone?")
    ] = False,
    workers: Workers = 1,
    resumed: Annotated[
        Path | None, typer.Option("--resume", metavar="F", help="Go on where the run ended whose --json is F.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="F", help="Write the whole run to this file.")] = None,
) -> int:
    """Mutate a kernel's source and say which mistakes its check catches, on the CPU; 0: all of them, 1: some survived."""
    operator, parameters = options.operator_option(op)
    plan = Plan(
        target or "",
        operator=None if operator is None else registry.operator(operator).name,
        operator_parameters=parameters,
        settings=options.settings_option(settings or ()),
        claims=options.claims_option(claims or ()),
        device="cpu",
        dtypes=options.dtypes_option(dtype or ()),
        profile=options.one_of("profile", profile, PROFILES),
        seed=seed,
        workers=options.workers_option(workers),
    )
    if target is None and op is not None:
        raise UsageError("--op says what a target computes; expected a target before it")
    if json is not None:
        options.file_option("--json", json)
    orders = list(_orders(plan, mutants, each=each))
    before = SelfTest(
        linverify.__version__,
        environment.environment("cpu"),
        _digest(plan, each=each),
        seed,
        plan.profile,
        (),
        each=each,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    known = _known(resumed, before) if resumed is not None else {}
    with interrupts.held():
        return _run(orders, before, known, plan.workers, options.time_option(time), json)


def _run(
    orders: Sequence[Order],
    record: SelfTest,
    known: dict[str, TargetScore],
    workers: int,
    seconds: float | None,
    json: Path | None,
) -> int:
    """Judge, show, write the record, and return the exit code."""
    start, interrupted = perf_counter(), False
    error: LinverifyError | None = None
    scores: dict[str, TargetScore] = {}

    def expired() -> bool:
        return seconds is not None and perf_counter() - start > seconds

    with Console(stderr=True).status("starting") as line:
        told = _Told(scores, lambda: _write(record, scores, json), line.update)
        for order in orders:
            try:
                with interrupts.armed():
                    scores[order.plan.target] = run(
                        order, workers=workers, expired=expired, known=known, told=told.hear
                    )
            except KeyboardInterrupt:
                interrupted = True
                break
            except LinverifyError as found:
                error = found
                break
    whole = dataclasses.replace(record, targets=tuple(scores.values()))
    _write(record, scores, json)
    print_selftest(Terminal(), whole)
    if error is not None:
        raise error
    return 130 if interrupted else whole.exit_code


@dataclasses.dataclass(eq=False)
class _Told:
    """Hears of every mutant: a line for the terminal, and now and then a record."""

    scores: dict[str, TargetScore]
    save: Callable[[], None]
    say: Callable[[str], None]
    saved: float = dataclasses.field(default_factory=perf_counter)

    def hear(self, score: TargetScore, _: MutantResult | None) -> None:
        """A target's score so far."""
        self.scores[score.target] = score
        tally = tallied(tuple(self.scores.values()))
        counts = ", ".join(f"{n} {outcome}" for outcome in Outcome if (n := tally[outcome]))
        self.say(
            f"{score.target}: {len(score.mutants)} of {len(score.mutants) + score.unjudged} ({counts or 'none yet'})"
        )
        if perf_counter() - self.saved > _SAVED:
            self.save()
            self.saved = perf_counter()


def _orders(plan: Plan, mutants: int | None, *, each: bool) -> Iterator[Order]:
    if plan.target:
        yield Order(plan, mutants=mutants, each=each)
        return
    for module in _BUILT_IN:
        yield Order(dataclasses.replace(plan, target=module), _OPERATORS, mutants, each)
    if _EXAMPLE.is_file():  # a wheel has no examples
        yield Order(dataclasses.replace(plan, target=str(_EXAMPLE)), mutants=mutants, each=each)


def _write(record: SelfTest, scores: dict[str, TargetScore], path: Path | None) -> None:
    if path is None:
        return
    try:
        selftest_json.write(dataclasses.replace(record, targets=tuple(scores.values())), path)
    except OSError as error:
        raise UsageError(f"--json {path}: {error.strerror or error}") from None


def _known(path: Path, now: SelfTest) -> dict[str, TargetScore]:
    """What a record holds, by the digest of the source.

    Raises:
        UsageError: there is no such record, or it was made with other options or by another linverify.
    """
    try:
        found = selftest_json.read(path)
    except OSError as error:
        raise UsageError(f"--resume {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise UsageError(f"--resume {path}: {error}; expected what --json wrote") from None
    if (found.linverify_version, found.options) != (now.linverify_version, now.options):
        raise UsageError(
            f"--resume {path}: that run had other options or another linverify; repeat them, or start afresh"
        )
    return {t.source: t for t in found.targets}


def _digest(plan: Plan, *, each: bool) -> str:
    """Everything that decides how a mutant is judged; not how many, so that more may be asked."""
    names = ("operator", "operator_parameters", "settings", "claims", "dtypes", "profile", "seed")
    asked = {n: getattr(plan, n) for n in names} | ({"each": True} if each else {})
    text = json_module.dumps(asked, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
