"""Reproducer scripts: each is run on its own, on kernels with planted faults."""

import os
import runpy
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch

from linverify import registry, reproducer
from linverify.binding import bind
from linverify.case import parse_case
from linverify.draw import problem as drawn
from linverify.problem import Call, Fault, Problem, Program
from linverify.reference import chunkwise
from linverify.runner import Runner
from linverify.target import parse
from linverify.verdict import Evidence, Failure

CORRECT = """
import os
import torch
import linverify

@linverify.kernel("gla")
def gla(q, k, v, g, scale=None, initial_state=None, output_final_state=False):
    B, T, H, K = q.shape
    scale = K**-0.5 if scale is None else scale
    S = torch.zeros(B, H, K, v.shape[-1]) if initial_state is None else initial_state.float()
    out = []
    for t in range(T):
        S = S * g[:, t, :, :, None].float().exp() + k[:, t, :, :, None].float() * v[:, t, :, None, :].float()
        out.append((q[:, t, :, :, None].float() * scale * S).sum(-2))
    o = torch.stack(out, 1).to(v.dtype)
    HOOK
    return (o, S) if output_final_state else (o, None)
"""
SIGN_OF_THE_LAST = "o = torch.cat([o[:, :-1], -o[:, -1:]], 1)"
CASE = "gla/B2.T5.H2.K4.V6/bf16/gate=mild/layout=strided/state=normal/final_state=1/cotangent=both/seed=3"


class Planted:
    """A kernel file with one line planted, and the reproducer of the fault it has."""

    def __init__(self, folder: Path, hook: str) -> None:
        self.file = folder / "kernel file.py"
        self.plant(hook)
        self.folder = folder / "reproducers"

    def plant(self, hook: str) -> None:
        self.file.write_text(CORRECT.replace("HOOK", hook))

    def reproduce(self, case_id: str, evidence: Evidence, *, values: bool = True, to: Path | None = None) -> Path:
        case = parse_case(case_id)
        operator = registry.operator(case.operator)
        spec = parse(f"{self.file}::gla")
        question = drawn(case, operator)
        call = Call(question, case.layout)
        with Runner(spec, device="cpu") as runner:
            binding = bind(operator, runner.describe().functions[0])
            runner.bind(binding, operator)
            try:
                result = runner.run(Program((call,)), time_limit=60.0)[0]
            except Fault:
                result = None
        return reproducer.write(
            to or self.folder,
            spec,
            binding,
            operator,
            case,
            question,
            call,
            result,
            chunkwise(question, operator) if values else None,
            Failure(case.id, case.sizes, evidence),
            law="agreement",
        )


def run(script: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script elsewhere, with a Python that cannot import this package."""
    command = [sys.executable, "-P", str(script)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def run_forked(script: Path, folder: Path) -> tuple[int, str]:
    """Run a script in a fork of this process, which has torch imported already."""
    log = folder / "log"
    child = os.fork()
    if child == 0:
        code = 99
        try:
            to = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(to, 1)
            os.dup2(to, 2)
            sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115  # a descriptor
            sys.argv = [str(script)]
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, log.read_text()


def wrong_value(result: str, index: tuple[int, ...] = ()) -> Evidence:
    where = ", ".join(f"{letter}={i}" for letter, i in zip("bthv", index, strict=False))
    return Evidence(
        "wrong_value", result, 1, 2, how_far=1.0, where=where, expected=0.0, got=1.0, allowed=0.1, share=50.0
    )


def test_a_wrong_value_is_shown_until_the_kernel_is_mended(tmp_path: Path) -> None:
    planted = Planted(tmp_path, SIGN_OF_THE_LAST)
    script = planted.reproduce(CASE, wrong_value("o", (0, 4, 1, 2)))
    assert script.parent == planted.folder
    assert "import linverify" not in script.read_text()

    broken = run(script, tmp_path)
    assert broken.returncode == 1, broken.stdout + broken.stderr
    assert CASE in broken.stdout
    assert [line.split()[0] for line in broken.stdout.splitlines()][2:6] == ["how", "how", "where", "allowed"]
    assert "[0, 4, 1, 2]" in broken.stdout
    assert "the same as when it was found" in broken.stdout
    assert broken.stdout.rstrip().endswith("the fault is there")

    planted.plant("pass")
    mended = run(script, tmp_path)
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert "others than when it was found" in mended.stdout
    assert mended.stdout.rstrip().endswith("the fault is gone")


@pytest.mark.parametrize("result", ["state", "dq", "dk", "dinitial_state"])
def test_states_and_gradients_are_compared_too(tmp_path: Path, result: str) -> None:
    planted = Planted(tmp_path, "S = S * 2; o = o * 2")
    script = planted.reproduce(CASE, wrong_value(result))
    code, text = run_forked(script, tmp_path)
    assert code == 1, text
    planted.plant("pass")
    code, text = run_forked(script, tmp_path)
    assert code == 0, text


@pytest.mark.parametrize(
    ("hook", "kind", "says"),
    [
        ("o = o.float()", "wrong_dtype", "o: expected bfloat16, got float32"),
        ("o = o[:, 1:]", "wrong_shape", "o: expected shape [2, 5, 2, 6], got [2, 4, 2, 6]"),
        ("return o, S, None", "wrong_length", "expected 2 results, got 3"),
        ("return [o, S]", "wrong_type", "expected o or (o, state), got list"),
        ("o = (q.detach().mul_(0).sum() + o).to(o.dtype)", "mutated_input", "input q was changed in place"),
        ("o, S = o.detach() + 0 * q.sum(), S.detach() + 0 * k.sum()", "missing_gradient", "the gradient of v is None"),
    ],
)
def test_a_broken_contract_is_shown_until_the_kernel_is_mended(tmp_path: Path, hook: str, kind: str, says: str) -> None:
    planted = Planted(tmp_path, hook)
    script = planted.reproduce(CASE, Evidence(kind, message=says), values=False)
    code, text = run_forked(script, tmp_path)
    assert code == 1, text
    assert says in text
    planted.plant("pass")
    code, text = run_forked(script, tmp_path)
    assert code == 0, text


@pytest.mark.parametrize(
    ("hook", "kind"), [("os.abort()", "crash"), ("os._exit(0)", "exit"), ("raise SystemExit(4)", "exit")]
)
def test_a_process_fault_is_shown_from_outside(tmp_path: Path, hook: str, kind: str) -> None:
    planted = Planted(tmp_path, hook)
    script = planted.reproduce(CASE, Evidence(kind, message="it died"), values=False)
    broken = run(script, tmp_path)
    assert broken.returncode == 1, broken.stdout + broken.stderr
    assert "the fault is there" in broken.stdout
    planted.plant("pass")
    mended = run(script, tmp_path)
    assert mended.returncode == 0, mended.stdout + mended.stderr


def test_an_element_that_is_never_written_shows(tmp_path: Path) -> None:
    planted = Planted(tmp_path, "e = torch.empty_like(o); e[:, :-1] = o[:, :-1]; o = e")
    script = planted.reproduce("gla/B1.T3.H1.K4.V4/fp32", Evidence("not_finite", "o", 4, 12, how_far=float("nan")))
    code, text = run_forked(script, tmp_path)
    assert code == 1, text
    planted.plant("pass")
    assert run_forked(script, tmp_path)[0] == 0


def test_a_law_about_several_calls_is_not_called_mended(tmp_path: Path) -> None:
    script = Planted(tmp_path, "pass").reproduce(CASE, Evidence("not_bitwise", "o of two calls", 1, 2), values=False)
    code, text = run_forked(script, tmp_path)
    assert code == 3, text
    assert "the law compares several calls" in text


def test_large_tensors_lie_in_a_file_beside_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproducer, "EMBED_BYTES", 64)
    planted = Planted(tmp_path, SIGN_OF_THE_LAST)
    script = planted.reproduce(CASE, wrong_value("o", (0, 4, 1, 2)), to=tmp_path / "here" / "shown.py")
    assert sorted(p.name for p in script.parent.iterdir()) == ["shown.pt", "shown.py"]
    assert run_forked(script, tmp_path)[0] == 1


def test_the_inputs_are_carried_bit_by_bit_in_their_layout(tmp_path: Path) -> None:
    report = "torch.save({n: (x.detach().clone(), x.stride()) for n, x in dict(q=q, k=k, v=v, g=g).items()}, 'seen.pt')"
    planted = Planted(tmp_path, report.replace("'seen.pt'", repr(str(tmp_path / "seen.pt"))))
    script = planted.reproduce(CASE, wrong_value("o"))
    worker = torch.load(tmp_path / "seen.pt")
    (tmp_path / "seen.pt").unlink()
    run_forked(script, tmp_path)
    scripted = torch.load(tmp_path / "seen.pt")
    question: Problem = drawn(parse_case(CASE), registry.operator("gla"))
    for name, (tensor, stride) in scripted.items():
        assert torch.equal(tensor, question.tensors[name])
        assert stride == worker[name][1]
        assert torch.equal(tensor, worker[name][0])
