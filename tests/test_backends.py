"""Backends that are not there: their implementations are listed, and asking for one says in one line what is missing."""

from pathlib import Path

import pytest

from linverify import registry
from linverify.cli import main
from linverify.implementation import kernel
from linverify.impls import _backend
from linverify.registry import ImplementationInfo

TARGET = """
import linverify

@linverify.kernel("gla", form="recurrent", backend="triton", absent="no such language here: install it")
def gla(q, k, v, g):
    raise SystemExit("must not run")
"""


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _backend.absent("torch") == ""
    monkeypatch.setattr(_backend, "find_spec", lambda _: None)
    assert "pip install triton" in _backend.absent("triton")
    assert "pip install other" in _backend.absent("other")


def test_a_target_whose_backend_is_not_there_is_one_line_and_exit_code_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kernels.py").write_text(TARGET)
    monkeypatch.chdir(tmp_path)
    assert main(["check", "kernels.py", "--device", "cpu", "--profile", "quick"]) == 3
    output = "".join(capfd.readouterr())
    assert "gla in kernels.py cannot run here: no such language here: install it" in " ".join(output.split())
    assert "Traceback" not in output
    (tmp_path / "kernels.py").write_text(TARGET.replace(', absent="no such language here: install it"', ""))
    assert main(["check", "kernels.py", "--device", "cpu", "--profile", "quick", "--property", "agreement"]) == 1


def test_what_cannot_run_here_is_listed_with_its_form_and_backend(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @kernel("gla", form="recurrent", backend="triton", absent="install it")
    def gla() -> None: ...

    gla.__module__ = "linverify.impls.other"
    module = type(registry)("linverify.impls.other")
    vars(module)["gla"] = gla
    monkeypatch.setattr(registry, "modules", lambda _: iter([module]))
    registry.implementations.cache_clear()
    try:
        target = "linverify.impls.other:gla"
        found = ImplementationInfo("other:gla", "gla", "recurrent", "triton", target, "install it")
        assert registry.implementations() == (found,)
        assert main(["list", "implementations"]) == 0
        assert f"recurrent triton (absent) {target}" in " ".join(capsys.readouterr().out.split())
        assert main(["explain", target]) == 0
        assert "install it" in capsys.readouterr().out
    finally:
        registry.implementations.cache_clear()
