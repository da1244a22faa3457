"""Commands that stand beside ``check``: one function each, which ``linverify.cli`` makes a command."""

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from linverify import compare as comparing
from linverify import options, registry, starter
from linverify.cli_options import Autotune, Claims, Device, Dtypes, Op, ProfileName, Seed, Set, Time, operator_names
from linverify.outputs import Terminal
from linverify.plan import Plan
from linverify.profile import PROFILES
from linverify.reports.comparison import print_comparison


def compare(
    first: Annotated[str, typer.Argument(metavar="TARGET_A", help="As of check; one kernel.")],
    second: Annotated[str, typer.Argument(metavar="TARGET_B", help="As of check; one kernel of the same operator.")],
    op: Op = None,
    settings: Set = None,
    claims: Claims = None,
    device: Device = None,
    dtype: Dtypes = None,
    profile: ProfileName = "standard",
    time: Time = None,
    seed: Seed = 0,
    autotune: Autotune = "pin",
) -> int:
    """Say which of two kernels is more accurate, where, and whether the difference is rounding or a bug."""
    operator, parameters = options.operator_option(op)
    plan = Plan(
        first,
        operator=None if operator is None else registry.operator(operator).name,
        operator_parameters=parameters,
        settings=options.settings_option(settings or ()),
        claims=options.claims_option(claims or ()),
        device=options.device_option(device),
        dtypes=options.dtypes_option(dtype or ()),
        profile=options.one_of("profile", profile, PROFILES),
        time=options.time_option(time),
        seed=seed,
        autotune=options.one_of("autotune mode", autotune, options.AUTOTUNE),
    )
    with Console(stderr=True).status("starting") as line:
        found = comparing.compare(
            (plan, dataclasses.replace(plan, target=second)),
            lambda case, number, of: line.update(f"case {number} of {of}: {case}"),
        )
    print_comparison(Terminal(), found)
    return found.exit_code


def init(
    op: Annotated[str, typer.Argument(metavar="OP", help="The operator.", autocompletion=operator_names)],
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")] = Path("my_kernel.py"),
) -> int:
    """Write a first version of a kernel to begin with: right, slow, and ready to be checked."""
    operator = registry.operator(op)
    starter.write(operator, path)
    Terminal().print(
        Text(f"{path} holds {operator.name}; next: linverify check {shlex.quote(str(path))}"), soft_wrap=True
    )
    return 0
