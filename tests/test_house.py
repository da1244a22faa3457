"""The house: who may import whom, how long a file may be, and that what is written down agrees with the code."""

import ast
import importlib.util
import io
import re
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from linverify.exits import EXIT_CODES

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("linverify", "impls", "properties", "reports")
FILES = sorted(p for room in (*ROOMS, "tests") for p in (ROOT / room).rglob("*.py"))
SOURCES = [p for p in FILES if p.relative_to(ROOT).parts[0] != "tests"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text(encoding="utf-8")

# What a room may import of ours, itself apart.
MAY_IMPORT = {
    "impls": {"implementation", "operator", "registry"},
    "properties": {"operator", "case", "problem", "verdict", "property"},
    "reports": {"verdict", "insight", "case", "comparison", "selftest"},
    "linverify/operators": {"operator", "arguments", "complexes", "draws", "identities", "formulas"},
}
# Where numbers that bound an error are derived; operators' own constants are mathematics.
MAY_HOLD_TOLERANCES = {"linverify/budget.py", "linverify/recipe.py", "linverify/statistics.py"}
SEES_REPORTS = {
    "linverify/cli.py",
    "linverify/outputs.py",
    "linverify/report_command.py",
    "linverify/pytest_items.py",
    "linverify/cli_commands.py",
    "linverify/pytest_outcomes.py",
    "linverify/__main__.py",
    "linverify/selftest_command.py",
}
# A worker must not carry what judges it.
NOT_IN_A_WORKER = {"reports", "reference", "budget", "judge", "session", "properties"}
# GitHub looks for an action's action.yml at the top and nowhere else.
TOP = {"README.md", "LICENSE", "pyproject.toml", "action.yml", *ROOMS, "tests", "docs", "benchmarks", "examples"}
CAP = 400


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Yield dotted names of what a file imports, functions' own imports included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}, line {node.lineno}: expected an absolute import"
            yield node.module or ""
            if node.module in ("linverify", "linverify.reports"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(path: Path) -> set[str]:
    """Return the first names below ``linverify`` of what a file imports of ours."""
    return {i.split(".")[1] for i in imports(path) if i.startswith("linverify.")}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    itself = room.rpartition("/")[2]
    for path in (ROOT / room).glob("*.py"):
        seen = ours(path) - MAY_IMPORT[room] - {itself, "kernel"}
        assert not seen, f"{name_of(path)} imports linverify.{', linverify.'.join(sorted(seen))}"


def test_the_engine_imports_no_room_by_name() -> None:
    for path in (ROOT / "linverify").rglob("*.py"):
        seen = ours(path) & {"impls", "properties", *(() if name_of(path) in SEES_REPORTS else ("reports",))}
        assert not seen, f"{name_of(path)} imports {seen}"


def test_reports_need_what_renders_and_the_standard_library_alone() -> None:
    for path in (ROOT / "reports").glob("*.py"):
        foreign = {i.partition(".")[0] for i in imports(path)} - sys.stdlib_module_names
        assert foreign <= {"linverify", "rich", "jinja2", "markupsafe"}, f"{name_of(path)} imports {foreign}"


def test_the_decorator_costs_a_kernel_file_nothing() -> None:
    assert set(imports(ROOT / "linverify" / "implementation.py")) <= {"collections.abc", "dataclasses", "typing"}


def test_a_worker_carries_nothing_of_the_judge() -> None:
    seen, pending = set[str](), ["worker"]
    while pending:
        module = pending.pop()
        if module in seen:
            continue
        seen.add(module)
        file = ROOT / "linverify" / f"{module}.py"
        if file.is_file():
            pending += ours(file)
    assert not seen & NOT_IN_A_WORKER, sorted(seen)


@pytest.mark.parametrize("name", ["linverify.linverify", "linverify.tests", "impls", "properties", "reports"])
def test_no_file_imports_a_room_by_a_name_that_only_a_checkout_has(name: str) -> None:
    for path in FILES:
        wrong = [i for i in imports(path) if i == name or i.startswith(f"{name}.")]
        assert not wrong, f"{name_of(path)} imports {wrong}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_is_short_and_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= CAP
    assert ast.get_docstring(ast.parse(text)), "expected a module docstring"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_tolerance_is_written_down_outside_the_budget(path: Path) -> None:
    if name_of(path) in MAY_HOLD_TOLERANCES:
        return
    small = re.compile(r"\d*\.?\d*e-\d{1,2}", re.IGNORECASE)  # 1e-100 and less only guard a division
    if name_of(path).startswith("linverify/operators/"):
        small = re.compile("(?!)")
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        where = f"{name_of(path)}, line {token.start[0]}"
        assert not (token.type == tokenize.NUMBER and small.fullmatch(token.string)), f"{where}: {token.string}"
        assert not (token.type == tokenize.NAME and token.string in ("atol", "rtol", "allclose")), (
            f"{where}: {token.string}"
        )


@pytest.mark.parametrize("room", ["operators", "properties"])
def test_a_file_of_these_rooms_holds_no_tests(room: str) -> None:
    for path in FILES:
        if path.parent.name == room:
            names = [n.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
            assert not [n for n in names if n.startswith("test_")], name_of(path)


def test_every_package_folder_is_in_the_packages_list() -> None:
    found = set()
    for room in ROOMS:
        for file in (ROOT / room).rglob("__init__.py"):
            inside = file.parent.relative_to(ROOT).parts
            found.add(".".join(inside if inside[0] == "linverify" else ("linverify", *inside)))
    setuptools = PROJECT["tool"]["setuptools"]
    assert sorted(setuptools["packages"]) == sorted(found)
    assert len(setuptools["packages"]) == len(found)
    assert setuptools["package-dir"] == {"linverify" if r == "linverify" else f"linverify.{r}": r for r in ROOMS}
    loose = [name_of(p) for p in SOURCES if not (p.parent / "__init__.py").is_file()]
    assert not loose, "folders without __init__.py are left out of the wheel"


def test_nothing_else_lies_at_the_top() -> None:
    shown = {
        p.name
        for p in ROOT.iterdir()
        if not p.name.startswith((".", "__pycache__")) and not p.name.endswith(".egg-info")
    }
    assert shown - {"build", "dist", "shared"} == TOP
    assert "MIT License" in (ROOT / "LICENSE").read_text()


def test_the_ci_files_are_there() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert script.read_text().startswith("#!")
    for name in ("cpu", "gpu"):
        assert (ROOT / ".github" / "workflows" / f"{name}.yml").is_file()


def test_the_readme_says_what_the_code_says() -> None:
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "docs" / "readme_tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert {m["name"] for m in tables.MARKED.finditer(README)} == set(tables.TABLES)
    assert tables.written(README) == README, "run: python docs/readme_tables.py"
    assert all(f"| {code} | {meaning} |" in README for code, meaning in EXIT_CODES.items())


def test_the_readme_points_at_files_that_are_there() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    for target in targets:
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_the_readme_s_test_command_is_the_one_that_ci_runs() -> None:
    command = re.search(r"^(pytest -n auto.*)$", README, re.MULTILINE)
    assert command is not None
    assert command[1] in (ROOT / ".ci" / "run").read_text()


def test_versions_agree() -> None:
    import linverify

    assert PROJECT["project"]["version"] == linverify.__version__


def test_no_file_names_a_place_of_its_author() -> None:
    private = re.compile(r"(?<![\w.-])/(work|home|root|Users)/|/tmp/(?!$)\w")
    for path in [
        *FILES,
        *(
            p
            for d in ("docs", "examples", "benchmarks", ".ci", ".github")
            for p in (ROOT / d).rglob("*")
            if p.is_file()
        ),
    ]:
        if path.suffix in (".py", ".md", ".yml", ".toml", "") and path.name != "test_house.py":
            found = private.search(path.read_text(encoding="utf-8"))
            assert found is None, f"{name_of(path)}: {found and found[0]}"
