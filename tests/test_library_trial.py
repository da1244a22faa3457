"""Other people's kernels on trial: every target binds, a run goes on where it was, and what is wrong is said to be."""

import dataclasses
import importlib
import importlib.util
import inspect
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from linverify import registry
from linverify.binding import FunctionInfo, Parameter, bind
from linverify.errors import UsageError
from tests.scripts import BENCHMARKS, load

TABLE = load("trial_targets")
RUNNER = load("check_libraries")
DEFECTS = load("fla_defects")
CREW = load("crew")
DIRECT = load("direct")
ATTEMPTS = load("fla_attempts")
PAGE = load("library_page")
FOUND = [
    (library, name, target)
    for library, content in TABLE.LIBRARIES.items()
    for name, target in content.targets.items()
]  # fmt: skip
HAS_FLA = importlib.util.find_spec("fla") is not None


def parameters(function: object) -> tuple[Parameter, ...]:
    assert callable(function)
    return tuple(
        Parameter(p.name, p.kind.name, p.default is p.empty and not p.kind.name.startswith("VAR"), repr(p.default))
        for p in inspect.signature(function).parameters.values()
    )


def module_of(target: str) -> tuple[ModuleType, str]:
    if "::" in target:
        file, function = target.split("::")
        return load(Path(file).relative_to("benchmarks").with_suffix("").as_posix()), function
    module, function = target.split(":")
    return importlib.import_module(module), function


@pytest.mark.skipif(not HAS_FLA, reason="needs fla-core")
@pytest.mark.parametrize("name", [n for library, n, _ in FOUND if library.startswith("fla")])
def test_every_function_of_fla_takes_its_operator_s_arguments(name: str) -> None:
    (target,) = (t for library, n, t in FOUND if n == name and library.startswith("fla"))
    try:
        module, function = module_of(target.function)
    except ImportError as error:
        assert name == "parallel_delta_rule", error  # noqa: PT017  # the one that a release broke
        return
    settings = {"normalize": False} if "normalize=False" in target.options else {}
    operator = registry.operator(target.operator.partition(":")[0])
    info = FunctionInfo(function, parameters(getattr(module, function)))
    binding = bind(operator, info, settings=settings)
    assert {i.name for i in operator.inputs} <= set(binding.names)


def test_names_are_unique_and_adapters_are_there() -> None:
    names = [n for _, n, _ in FOUND]
    assert len(names) == len(set(names))
    for _, _, target in FOUND:
        file = target.function.partition("::")[0]
        assert not file.endswith(".py") or (BENCHMARKS.parent / file).is_file()


def test_a_run_keeps_a_line_each_and_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = TABLE.Target("tests/planted/values.py::ragged_tail", "gla")
    missing = TABLE.Target("tests/planted/no_such_file.py::f", "gla")
    library = {"planted": TABLE.Library("torch", {"wrong": wrong, "missing": missing})}
    options = ["--profile", "quick", "--dtype", "fp32", "--property", "agreement", "--device", "cpu"]
    RUNNER.run(library, tmp_path, options, together=1, limit=100)
    lines = {x["name"]: x for x in map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())}
    assert lines["wrong"]["exit"] == 1
    assert lines["wrong"]["broken"] == ["agreement"]
    assert lines["missing"]["exit"] == 2
    assert "no such file" in lines["missing"]["why"]
    capsys.readouterr()
    RUNNER.run(library, tmp_path, options, together=1, limit=100)
    assert not capsys.readouterr().out

    text = PAGE.page(tmp_path, "planted", {"missing": "a slip of the pen"})
    assert "violation: `agreement`" in text
    assert PAGE.OPEN in text
    assert "a slip of the pen" in text
    assert f"linverify replay {PAGE.failures(tmp_path, 'wrong')[0][1]['case_id']} --target {wrong.function}" in text


def test_what_a_crew_kept_becomes_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = [
        {"name": "984", "what": "4 warps", "status": "reproduced", "numbers": "dk | off"},
        {"name": "script", "what": "reproducer", "status": "printed", "numbers": "expected 1, got 2"},
    ]
    file = tmp_path / "lines.jsonl"
    file.write_text("".join(json.dumps(x) + "\n" for x in kept))
    PAGE.main([str(file), "--title", "Defects"])
    text = capsys.readouterr().out
    assert "| 984 | 4 warps | reproduced | dk \\| off |  |" in text
    assert "## script\n\n```\nexpected 1, got 2\n```" in text


def test_a_check_that_hangs_is_cut_off(tmp_path: Path) -> None:
    kernel = tmp_path / "sleeper.py"
    kernel.write_text("import time\ntime.sleep(600)\ndef f(q, k, v, g):\n    return v\n")
    library = {"x": TABLE.Library("torch", {"sleeper": TABLE.Target(f"{kernel}::f", "gla")})}
    RUNNER.run(library, tmp_path / "out", ["--device", "cpu"], together=1, limit=8)
    line = json.loads((tmp_path / "out" / "results.jsonl").read_text())
    assert line["exit"] is None
    assert line["why"] == "cut off after 8 s"


def test_a_build_that_fails_is_why_nothing_was_checked(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter.py"
    adapter.write_text("def build(name):\n    raise RuntimeError(f'no compiler for {name}')\ndef f(q, k, v, g): ...\n")
    target = dataclasses.replace(TABLE.Target(f"{adapter}::f", "gla"), builds=True)
    RUNNER.run({"x": TABLE.Library("torch", {"f": target})}, tmp_path / "out", [], together=1, limit=60)
    line = json.loads((tmp_path / "out" / "results.jsonl").read_text())
    assert line["why"] == "its build failed: RuntimeError: no compiler for f"


def test_an_attempt_that_is_cut_off_leaves_what_it_knew_and_its_children_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_attempts.py").write_text(
        "import subprocess, time\nfrom crew import Finding\n"
        "def slow(status):\n"
        "    yield Finding(status, 'first case')\n"
        "    child = subprocess.Popen(['sleep', '600'])\n"
        "    yield Finding(status, f'child {child.pid}')\n"
        "    time.sleep(600)\n"
        "def whole():\n    yield Finding('pass', 'one')\n    yield Finding('violation', 'two')\n"
        "def nothing():\n    yield from ()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    asked = [("slow", ("pass",)), ("slow", ("violation",)), ("whole", ()), ("nothing", ())]
    kept: list[dict] = []
    CREW.run([CREW.Attempt(n, "", n, a, (), "slow_attempts") for n, a in asked], kept.append, together=1, limit=8)
    # cases judged right in part are no pass
    assert [line["status"] for line in kept] == ["no answer", "violation", "violation", "refused"]
    assert kept[2]["numbers"] == "two"
    assert "yielded nothing" in kept[3]["numbers"]
    for line in kept[:2]:
        child = int(line["numbers"].split()[-1])
        state = Path(f"/proc/{child}/stat")
        assert not state.exists() or state.read_text().split()[2] == "Z", line


def delta_rule(q, k, v, beta, off=0.0):
    state, outs = torch.zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3]), []
    for t in range(q.shape[1]):
        key = k[:, t].float()
        new = v[:, t].float() - torch.einsum("bhk,bhkv->bhv", key, state)
        state = state + torch.einsum("bhk,bhv->bhkv", key * beta[:, t, :, None].float(), new)
        outs.append(torch.einsum("bhk,bhkv->bhv", q[:, t].float() * q.shape[-1] ** -0.5, state))
    outs[-1] = outs[-1] * (1 + off)
    return torch.stack(outs, 1).to(v.dtype)


@pytest.mark.parametrize(
    ("off", "status"), [(0.0, "not reproduced"), (0.1, "reproduced"), (float("nan"), "reproduced")]
)
def test_an_attempt_is_judged(off: float, status: str) -> None:
    case = "delta_rule/B1.T20.H2.K16.V16/bf16/cotangent=o"
    found = DIRECT.told(DIRECT.judged(case, lambda **x: delta_rule(**x, off=off), "cpu"))
    assert found.status == status, found


def test_a_lost_process_is_told_from_an_exception() -> None:
    assert (
        CREW.lost(1, "RuntimeError: CUDA error: an illegal memory access was encountered")["status"] == "process lost"
    )
    assert CREW.lost(-11, "")["status"] == "process lost"
    assert CREW.lost(1, "ImportError: no such library")["status"] == "refused"


def test_a_crew_goes_on_after_an_attempt_that_loses_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "crew_attempts.py"
    library.write_text(
        "import os, time\nfrom crew import Finding\n"
        "def right(n): return Finding.of(n > 1, f'{n} {os.getpid()}')\n"
        "def wrong(): raise ValueError('no such size')\n"
        "def gone(): os.abort()\n"
        "def hang(): time.sleep(600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # as a library in a folder of its own is found
    asked = [("right", (2,)), ("wrong", ()), ("right", (1,)), ("gone", ()), ("hang", ()), ("right", (3,))]
    attempts = [CREW.Attempt(n, "", n, a, (), "crew_attempts") for n, a in asked]
    kept: list[dict] = []
    CREW.run(attempts, kept.append, together=1, limit=20)
    assert [line["status"] for line in kept] == [
        *("reproduced", "refused", "not reproduced", "process lost", "no answer", "reproduced"),
    ]  # fmt: skip
    pids = [line["numbers"].split()[-1] for line in kept if line["name"] == "right"]
    assert pids[0] == pids[1] != pids[2]
    kept.clear()
    CREW.run(attempts[:1], kept.append, together=1, limit=20, stop=0)
    assert [line["status"] for line in kept] == ["not begun"]


RIGHT, WRONG = "linverify.impls.torch_chunkwise:gla", "tests/planted/past.py::documents_run_on"
STALE = "tests/planted/calls.py::borders_by_tensor"


@pytest.mark.parametrize(
    ("target", "status", "word"),
    [(RIGHT, "pass", ""), (WRONG, "violation", "packed"), (STALE, "violation", "borders changed")],
)
def test_a_short_trial_judges(monkeypatch: pytest.MonkeyPatch, target: str, status: str, word: str) -> None:
    cases = load("short_cases")
    function = target.replace("tests/", f"{BENCHMARKS.parent}/tests/")
    monkeypatch.setattr(cases, "named", lambda _: TABLE.Target(function, "gla"))
    cases.bound.cache_clear()
    *_, found = cases.trial("planted", "fp32", 16, 8, "cpu")
    assert found.status == status, found
    assert word in found.numbers


def test_a_backward_pass_that_is_refused_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = tmp_path / "forward_only.py"
    kernel.write_text(
        "import torch\nfrom linverify.impls.torch_chunkwise import gla as right\n"
        "def gla(q, k, v, g, scale=None):\n"
        "    if q.requires_grad:\n        raise NotImplementedError('no backward pass')\n"
        "    return right(q, k, v, g, scale=scale)[0]\n"
    )
    cases = load("short_cases")
    monkeypatch.setattr(cases, "named", lambda _: TABLE.Target(f"{kernel}::gla", "gla"))
    cases.bound.cache_clear()
    *_, found = cases.trial("forward only", "fp32", 16, 8, "cpu")
    assert found.status == "pass", found
    assert "dense, longer, strong gates: backward refused: NotImplementedError: no backward pass" in found.numbers
    assert found.numbers.startswith("3 results")


def test_attempts_name_functions_that_are_there_and_cases_that_can_be_drawn() -> None:
    modules = {"fla_attempts": ATTEMPTS, "fla_attempts_conv": load("fla_attempts_conv")}
    for attempt in DEFECTS.ATTEMPTS:
        function = getattr(modules[attempt.module], attempt.function)
        inspect.signature(function).bind(*attempt.arguments, **dict(attempt.settings))
        for case_id in (a for a in attempt.arguments if isinstance(a, str) and "/B" in a):
            case = ATTEMPTS.parse_case(case_id)
            try:
                ATTEMPTS.draw.check(case, registry.operator(case.operator))
            except UsageError as error:
                pytest.fail(f"{case_id}: {error}")


def test_the_convolution_that_attempts_are_held_to_is_torch_s() -> None:
    causal = load("fla_attempts_conv").causal
    x, weight, state = (torch.randn(s, dtype=torch.float64) for s in ((2, 9, 3), (3, 4), (2, 3, 4)))
    y, final = causal(x, weight, state)
    full = torch.cat([state, x.transpose(1, 2)], 2)
    assert torch.equal(y, torch.nn.functional.conv1d(full, weight[:, None], groups=3)[:, :, 1:].transpose(1, 2))
    assert torch.equal(final, full[:, :, -4:])


def test_the_pages_say_what_their_records_say() -> None:
    pages = load("trial_pages")
    for page in pages.PUBLISHED.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert pages.filled(text, pages.PUBLISHED) == text, f"{page.name}: run python benchmarks/trial_pages.py"
    with pytest.raises(ValueError, match="expected gpu, cpu, reported or script, got 'tpu fla'"):
        pages.made("tpu fla", pages.PUBLISHED)


def test_every_violation_of_the_records_was_looked_into() -> None:
    pages = load("trial_pages")
    known = json.loads((pages.PUBLISHED / "trial-judgements.json").read_text())
    found = {
        x["name"]
        for x in pages.lines("trial-h100.jsonl", pages.PUBLISHED)
        if x["status"] in ("violation", "process lost")
    }
    found |= {f"{x['name']} on a CPU" for x in pages.lines("trial-cpu.jsonl", pages.PUBLISHED) if x["broken"]}
    found |= {
        x["name"] for x in pages.lines("trial-reported-h100.jsonl", pages.PUBLISHED) if x["status"] == "reproduced"
    }
    assert found <= known.keys(), found - known.keys()


def test_results_beyond_their_budget_are_told_by_kind_of_case() -> None:
    numbers = (
        "9 results, largest share 3.00 (dq, dense); dense: dq share 3, RMS error 0.2 [gla/B1]; dense: o share 2e+08 [gla/B1]; "
        "packed: o share 1.5 [gla/B2]; dense, longer: backward refused: ValueError: no; dense: not_contiguous: o: strides"
    )
    told, first = PAGE.told(numbers)
    assert told == "dense: dq 3, o not finite; packed: o 1.5; dense, longer: backward refused: ValueError: no"
    assert first == "gla/B1"


def test_reproducers_are_asked_for_by_name_and_the_libraries_that_are_built_have_their_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = load("short_trial")
    asked: list = []
    monkeypatch.setattr(trial.crew, "run", lambda todo, keep, **_: asked.extend(todo))
    command = ["short_trial.py", "--out", str(tmp_path), "--no-functions", "--scripts"]
    monkeypatch.setattr("sys.argv", [*command, "fast_transformers_strides", "fla_stale_offsets"])
    trial.main()
    assert [(a.name, a.arguments[1]) for a in asked] == [
        ("fast_transformers_strides", "causal_product"),
        ("fla_stale_offsets", ""),
    ]
    assert (BENCHMARKS / "libraries" / "causal_product.py").exists()
    monkeypatch.setattr("sys.argv", [*command, "no_such"])
    with pytest.raises(SystemExit):
        trial.main()
    assert "no such reproducer: no_such" in capsys.readouterr().err


def test_answers_of_a_run_take_the_place_of_older_ones(tmp_path: Path) -> None:
    record, run = tmp_path / "record.jsonl", tmp_path / "run.jsonl"
    old = [{"name": n, "what": "bf16", "status": "violation", "numbers": n} for n in ("a", "b")]
    new = [
        {"name": "a", "what": "bf16", "status": "pass", "numbers": "see /x/lib/site-packages/fla/a.py"},
        {"name": "b", "what": "bf16", "status": "no answer", "numbers": "in 6 s"},
        {"name": "c", "what": "bf16", "status": "not begun", "numbers": "time was up"},
    ]
    for file, content in ((record, old), (run, new)):
        file.write_text("".join(json.dumps(x) + "\n" for x in content))
    load("trial_pages").add(record, run)
    assert [json.loads(x)["numbers"] for x in record.read_text().splitlines()] == ["see fla/a.py", "b"]
