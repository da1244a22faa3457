"""What gets installed: the wheel and the strict editable install of a copy of this checkout, used from elsewhere."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {
    "impls": "linverify/impls",
    "properties": "linverify/properties",
    "reports": "linverify/reports",
    "linverify": "linverify",
}

LOOK_AROUND = """
import importlib, linverify
from linverify import registry
from linverify.runner import Runner
from linverify.target import parse
for room in ("impls", "properties", "reports", "operators", "reference"):
    importlib.import_module(f"linverify.{room}")
importlib.import_module("linverify.reports.console")
assert "gla" in registry.operators() and "agreement" in registry.properties() and registry.implementations()
with Runner(parse("linverify.impls.torch_recurrent:gla"), device="cpu") as runner:
    assert [f.name for f in runner.describe().functions] == ["gla"]
print(linverify.__file__)
print(importlib.import_module("linverify.properties.agreement").__file__)
for name in ("impls", "properties", "reports"):
    try:
        importlib.import_module(name)
        print("top-level", name)
    except ImportError:
        pass
"""


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> str:
    """Run a command with nothing of ours on the search path but `path`; return its output."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(*arguments: str | Path, python: Path | None = None, cwd: Path) -> None:
    """Run pip without a network and without a build environment of its own."""
    where = ["--python", str(python)] if python else []
    quiet = ["--quiet", "--disable-pip-version-check"]
    run(
        sys.executable,
        "-m",
        "pip",
        *where,
        *arguments,
        *quiet,
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        cwd=cwd,
    )


def copied(to: Path) -> Path:
    """Copy what a checkout holds and a build reads."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, to / room, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, to / name)
    return to


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = copied(folder / "source")
    pip("wheel", source, "--wheel-dir", folder, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path) -> Path:
    """A site-packages folder with the wheel alone."""
    folder = wheel.parent / "site"
    pip("install", wheel, "--target", folder, cwd=wheel.parent)
    return folder


def test_the_wheel_holds_every_file_of_every_room_under_one_name(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {n.partition("/")[0] for n in names} == {"linverify", f"linverify-{version}.dist-info"}
    for room, inside in ROOMS.items():
        for file in (ROOT / room).rglob("*.py"):
            assert f"{inside}/{file.relative_to(ROOT / room).as_posix()}" in names
    assert "linverify/py.typed" in names
    folders = (ROOT / "reports" / "templates", ROOT / "impls" / "cuda")
    schemas = (ROOT / "reports").glob("*schema.json")
    for data in [*schemas, *(file for folder in folders for file in folder.iterdir())]:
        assert f"linverify/{data.relative_to(ROOT).as_posix()}" in names
    assert any(n.endswith("LICENSE") for n in names)
    assert not any(n.rpartition("/")[2].startswith(("test_", "conftest")) for n in names)


def test_the_wheel_works_from_elsewhere(site: Path, tmp_path: Path) -> None:
    lines = run(sys.executable, "-c", LOOK_AROUND, cwd=tmp_path, path=site).splitlines()
    assert lines == [str(site / "linverify" / "__init__.py"), str(site / "linverify" / "properties" / "agreement.py")]
    assert sorted(p.name for p in site.iterdir() if not p.name.endswith((".dist-info", "__pycache__"))) == [
        "bin",
        "linverify",
    ]


def test_the_command_of_the_wheel_checks_a_kernel(site: Path, tmp_path: Path) -> None:
    command = "check linverify.impls.torch_recurrent:gla --device cpu --profile quick --dtype fp32 --property contract"
    assert "PASS" in run(site / "bin" / "linverify", *command.split(), cwd=tmp_path, path=site)


def test_the_wheel_works_in_the_folder_of_a_checkout(site: Path) -> None:
    lines = run(sys.executable, "-P", "-c", LOOK_AROUND, cwd=ROOT, path=site).splitlines()
    assert lines[0] == str(site / "linverify" / "__init__.py")


def test_a_checkout_works_with_nothing_installed(tmp_path: Path) -> None:
    source = copied(tmp_path / "source")
    lines = run(sys.executable, "-c", LOOK_AROUND, cwd=source).splitlines()
    assert lines[:2] == [str(source / "linverify" / "__init__.py"), str(source / "properties" / "agreement.py")]


def test_a_strict_editable_install_sees_the_checkout(tmp_path: Path) -> None:
    source = copied(tmp_path / "source")
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    here = sysconfig.get_paths()["purelib"]
    packages = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    (packages / "borrowed.pth").write_text(f"{here}\n")  # torch and the other dependencies of this environment
    pip("install", "--editable", source, "--config-settings", "editable_mode=strict", python=python, cwd=tmp_path)
    lines = run(python, "-c", LOOK_AROUND, cwd=tmp_path).splitlines()
    assert len(lines) == 2, lines
    assert Path(lines[0]).resolve() == source / "linverify" / "__init__.py"
    assert Path(lines[1]).resolve() == source / "properties" / "agreement.py"
    (source / "properties" / "brand_new.py").write_text('WORD = "seen"\n')
    new = "import linverify.properties.brand_new as new; print(new.WORD)"
    assert run(python, "-c", new, cwd=tmp_path).strip() == "seen"
