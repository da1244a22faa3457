"""The tables of README.md that follow from the code: ``python docs/readme_tables.py`` writes them, a test compares them.

In README.md each stands between ``<!-- table: NAME -->`` and ``<!-- end -->``.
"""

import re
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from linverify import registry  # noqa: E402  # the checkout beside this file, installed or not
from linverify.exits import EXIT_CODES  # noqa: E402
from linverify.profile import PROFILES  # noqa: E402

REASONS = {
    "torch": "the kernels' tensors, the float64 reference on the CPU or GPU, and autograd",
    "triton": "kernels written in it, and its CPU interpreter where there is no GPU",
    "numpy": "raw memory between processes, and the arrays that carry mpmath numbers",
    "mpmath": "the reference of references: the recurrence in hundreds of bits",
    "hypothesis": "draws cases and shrinks the failing one",
    "jinja2": "the HTML report from a template",
    "rich": "tables, bars and live progress on the console",
    "typer": "the command line from annotated functions",
    "pytest": "properties as test items, and our own tests",
    "pytest-xdist": "`-n auto`: those items on all processors or GPUs",
    "ray": "`--engine ray`: workers on several machines",
    "filelock": "one process compiles a CUDA source while the others wait (torch needs it too)",
    "cuda": "NVRTC and the driver for the kernels in CUDA C++, where torch does not bring them",
    "fla": "flash-linear-attention's kernels, to check them and to compare with",
    "check-jsonschema": "holds the action and the workflows to GitHub's schemas in tests",
    "pre-commit": "holds the manifest of the hook to what pre-commit takes",
    "jsonschema": "holds the records and the SARIF files to their schemas in tests",
    "lxml": "holds the JUnit files to theirs",
    "gmpy2": "makes mpmath about ten times faster",
    "mypy": "types",
    "performer-pytorch": "a Performer that nobody here wrote, to hold ours to, and its leak",
    "playwright": "clicks through the HTML report in Chromium in tests",
    "rwkv": "the layers of RWKV-4 to 7, to hold our operators to",
    "pytest-timeout": "ends a test that hangs, as it would end a user's",
    "ruff": "lint and format",
    "safetensors": "reads recorded GPU results in tests",
    "mkdocs-material": "the documentation site",
    "latex2mathml": "its formulas, with no script to load",
    "setuptools": "builds the wheel that the packaging tests install",
    "attn-gym": "attention as others wrote it, to compare with in tests",
    "flash-pytorch": "attention as others wrote it, to compare with in tests",
    "linear-attention-transformer": "attention as others wrote it, to compare with in tests",
    "linformer": "attention as others wrote it, to compare with in tests",
    "mlstm-kernels": "the xLSTM authors' forms, which tests hold `mlstm` to",
    "mambapy": "a selective scan that tests hold `mamba1` to",
    "lru-pytorch": "a linear recurrent unit that tests hold `lru` to",
    "scipy": "discretised state spaces that tests hold `s4d`, `s4` and `hippo_legs` to",
}


def exit_codes() -> str:
    """Exit codes and their meaning."""
    return table(("code", "meaning"), [(str(code), meaning) for code, meaning in EXIT_CODES.items()])


def profiles() -> str:
    """Profiles and how much they ask."""
    heading = ("profile", "cases a law and dtype", "long ones", "T on a CPU", "T on a GPU")
    rows = [
        (
            p.name,
            str(p.cases),
            str(p.long_cases),
            f"to {p.max_T}, long {span(p.long_T)}",
            f"to {p.gpu_max_T}, long {span(p.gpu_long_T)}",
        )
        for p in PROFILES.values()
    ]
    return table(heading, rows)


def span(sizes: tuple[int, int]) -> str:
    """Smallest and largest."""
    return f"{sizes[0]}-{sizes[1]}"


def operators() -> str:
    """Operators, their arguments and default scale."""
    rows = []
    for o in registry.operators().values():
        scale = "K**-0.5" if o.default_scale is None else f"{o.default_scale:g}"
        arguments = ", ".join(f"{i.name} [{','.join(i.axes)}]" for i in o.inputs)
        rows.append((f"`{o.name}`", arguments, scale, o.source))
    return table(("operator", "arguments", "default scale", "source"), rows)


def properties() -> str:
    """The laws."""
    rows = [(f"`{p.name}`", "required" if p.required else "reported", p.law) for p in registry.properties().values()]
    return table(("law", "verdict", "what it says"), rows)


def dependencies() -> str:
    """Dependencies and what each is for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    rows = [(f"`{name(d)}`", REASONS[name(d)]) for d in project["dependencies"]]
    for extra, listed in project["optional-dependencies"].items():
        wanted = [d for d in listed if name(d) != project["name"]]  # an extra that includes another one
        for reason in dict.fromkeys(REASONS[extra if extra in REASONS else name(d)] for d in wanted):
            names = [d for d in wanted if REASONS[extra if extra in REASONS else name(d)] == reason]
            rows.append((", ".join(f"`{name(d)}`" for d in names) + f" (extra `{extra}`)", reason))
    return table(("dependency", "what for"), rows)


def name(requirement: str) -> str:
    """Name of a requirement."""
    return re.split(r"[<>=;\[ ]", requirement, maxsplit=1)[0]


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown table."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


TABLES: dict[str, Callable[[], str]] = {
    "exit codes": exit_codes,
    "profiles": profiles,
    "operators": operators,
    "laws": properties,
    "dependencies": dependencies,
}
MARKED = re.compile(r"<!-- table: (?P<name>[a-z ]+) -->\n.*?<!-- end -->", re.DOTALL)


def written(text: str) -> str:
    """Return a README with all its tables made anew."""
    return MARKED.sub(lambda m: f"<!-- table: {m['name']} -->\n{TABLES[m['name']]()}\n<!-- end -->", text)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(written(readme.read_text(encoding="utf-8")), encoding="utf-8")
