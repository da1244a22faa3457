"""The options that several commands share, as typer reads them; their values are understood in ``linverify.options``."""

from pathlib import Path
from typing import Annotated

import typer

from linverify import registry
from linverify.profile import PROFILES


def operator_names(incomplete: str) -> list[str]:
    """Operators, for a shell that completes words."""
    return [name for name in registry.operators() if name.startswith(incomplete)]


def _properties(incomplete: str) -> list[str]:
    return [name for name in registry.properties() if name.startswith(incomplete)]


def _profiles(incomplete: str) -> list[str]:
    return [name for name in PROFILES if name.startswith(incomplete)]


Op = Annotated[
    str | None,
    typer.Option(
        "--op",
        metavar="OP[:key=value]",
        help="The operator that the function computes.",
        autocompletion=operator_names,
    ),
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
    typer.Option("--recipe", metavar="R", help="Its precision recipe, as --claims recipe=R: bf16,C=64,state=fp32 ..."),
]
Device = Annotated[
    str | None, typer.Option("--device", metavar="cpu|cuda[:i]", help="Default: cuda:0 where there is one.")
]
Dtypes = Annotated[
    list[str] | None,
    typer.Option("--dtype", metavar="D", help="fp32, tf32, bf16, fp16, fp64; repeatable. Default: fp32, bf16, fp16."),
]
Autotune = Annotated[
    str,
    typer.Option(
        "--autotune",
        metavar="pin|all|native",
        help="One fixed configuration; that one, and every other in its turn; or Triton's choice.",
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--property",
        metavar="P",
        help="Check this property only; repeatable. Default: all.",
        autocompletion=_properties,
    ),
]
Require = Annotated[
    list[str] | None,
    typer.Option(
        "--require",
        metavar="P",
        help="Make a reported property required; repeatable.",
        autocompletion=_properties,
    ),
]
ProfileName = Annotated[
    str, typer.Option("--profile", metavar="|".join(PROFILES), help="How many cases.", autocompletion=_profiles)
]
Time = Annotated[float | None, typer.Option("--time", metavar="SECONDS", help="Stop asking after this long.")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Same seed, same cases.")]
Workers = Annotated[
    int,
    typer.Option(
        "-n",
        "--workers",
        metavar="WORKERS",
        help="Processes that share the laws out, each with a GPU in turn.",
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        "--engine", metavar="local|ray", help="Workers as processes here, or on the machines of a Ray cluster."
    ),
]
Sanitizer = Annotated[
    bool, typer.Option("--sanitizer", help="Ask NVIDIA's compute-sanitizer, too: memcheck, racecheck, initcheck.")
]
Resume = Annotated[
    Path | None,
    typer.Option("--resume", metavar="F", help="Go on where the run ended whose --json is F; only the rest is asked."),
]
