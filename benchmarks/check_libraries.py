"""Check the kernels of libraries, and the built-in ones: one process a function, several at a time, results kept as they come.

    python benchmarks/check_libraries.py --out DIR [--library fla fla-others] [--only NAME ...] [--together 4]
                                         [--profile standard] [--seconds 300] [--limit 420]

DIR gets one line a function in results.jsonl, and each run's JSON record and console text. A function that has a line is
not run again: a run that was cut off goes on where it was. With --cache a second run into another DIR finds what the first
one compiled.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trial_targets import BUILT_IN, LIBRARIES, Library, Target

ROOT = Path(__file__).resolve().parents[1]
_WRITING = threading.Lock()


def judged(record: Path) -> dict[str, Any]:
    """What a run's JSON record says in a line: verdict, broken laws, numbers of judged and refused cases, seconds."""
    (result,) = json.loads(record.read_text())["results"]
    laws = result["properties"]
    return {
        "verdict": result["verdict"],
        "judged": sum(p["cases"] for p in laws),
        "broken": [p["name"] for p in laws if p["status"] == "violation"],
        "refused": [p["name"] for p in laws if p["status"] == "refused"],
        "seconds": {k: round(v, 1) for k, v in result.get("seconds", {}).items()},
    }


def built(target: Target, log: Path, environment: Mapping[str, str], limit: float) -> str:
    """Let the target's adapter compile it; say what went wrong, or nothing."""
    file, _, function = target.function.partition("::")
    folder, module = str((ROOT / file).parent), Path(file).stem
    code = f"import sys; sys.path.insert(0, {folder!r}); import {module}; {module}.build({function!r})"
    with log.open("w") as console:
        try:
            done = subprocess.run(
                [sys.executable, "-c", code],
                stdout=console,
                stderr=subprocess.STDOUT,
                env=environment,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"its build was cut off after {limit:.0f} s"
    return "" if done.returncode == 0 else f"its build failed: {_last_line(log)}"


def _last_line(log: Path) -> str:
    words = [w.strip() for w in log.read_text().splitlines() if w.strip()]
    return words[-1][:300] if words else "no output"


def check(name: str, target: Target, out: Path, options: Sequence[str], cache: str, limit: float) -> dict[str, Any]:
    """Run one check in a process group of its own, which ends with it or at the limit."""
    record, text = out / f"{name}.json", out / f"{name}.txt"
    record.unlink(missing_ok=True)
    command = [sys.executable, "-m", "linverify", "check", target.function, "--op", target.operator]
    command += ["--json", str(record.resolve()), *target.options, *options]
    environment = {**os.environ, "TRITON_CACHE_DIR": cache, "COLUMNS": "120", "PYTHONPATH": _search_path()}
    # of our own: a build that was cut off leaves a lock for which every later one would wait
    environment["TORCH_EXTENSIONS_DIR"] = f"{cache}/extensions"
    line: dict[str, Any] = {"name": name, "target": target.function, "operator": target.operator}
    line["command"] = " ".join(["linverify", "check", target.function, "--op", target.operator, *target.options])
    start = time.perf_counter()
    if target.builds and (why := built(target, out / f"{name}-build.txt", environment, limit)):
        return {**line, "exit": None, "wall": round(time.perf_counter() - start, 1), "why": why}
    start = time.perf_counter()
    with text.open("w") as console:
        child = subprocess.Popen(
            command, stdout=console, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, start_new_session=True
        )
        try:
            code: int | None = child.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            # its workers, too, where it was cut off
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    line |= {"exit": code, "wall": round(time.perf_counter() - start, 1)}
    if record.exists():
        line |= judged(record)
    else:
        line["why"] = f"cut off after {limit:.0f} s" if code is None else _last_line(text)
    return line


def _search_path() -> str:
    return os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)


def run(
    libraries: Mapping[str, Library],
    out: Path,
    options: Sequence[str],
    *,
    only: Sequence[str] = (),
    together: int = 4,
    limit: float = 420,
    cache: str | None = None,
) -> None:
    """Check what has no line yet, print and keep a line each."""
    out.mkdir(parents=True, exist_ok=True)
    lines = out / "results.jsonl"
    done = {json.loads(x)["name"] for x in lines.read_text().splitlines()} if lines.exists() else set()
    todo = [
        (name, target)
        for library in libraries.values()
        for name, target in library.targets.items()
        if name not in done and (not only or name in only)
    ]
    (out / "versions.json").write_text(json.dumps(versions(libraries), indent=1))
    with contextlib.ExitStack() as stack:
        shared = cache or stack.enter_context(tempfile.TemporaryDirectory())

        def one(item: tuple[str, Target]) -> None:
            line = check(*item, out, options, shared, limit)
            with _WRITING, lines.open("a") as file:
                file.write(json.dumps(line) + "\n")
                print(_shown(line), flush=True)

        pool = stack.enter_context(ThreadPoolExecutor(together))
        list(pool.map(one, todo))


def _shown(line: Mapping[str, Any]) -> str:
    head = f"{line['name']:34} exit {line['exit']} wall {line['wall']:6.1f} s"
    if "verdict" not in line:
        return f"{head} {line['why']}"
    return f"{head} {line['verdict']:9} judged {line['judged']:5} broken {line['broken']} {line['seconds']}"


def versions(libraries: Mapping[str, Library]) -> dict[str, str]:
    """Versions of what was checked and of what computed it; "not installed" where a distribution is missing."""
    names = dict.fromkeys(["torch", "triton", *(library.distribution for library in libraries.values())])
    found = {"python": sys.version.split()[0]}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    with contextlib.suppress(Exception):
        import torch

        found["device"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    return found


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--library", nargs="+", default=list(LIBRARIES), choices=[*LIBRARIES, *BUILT_IN])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--profile", default="standard")
    parser.add_argument("--workers", type=int, default=1, help="of each check: its option -n")
    parser.add_argument("--together", type=int, default=4, help="checks at a time")
    parser.add_argument("--seconds", type=float, default=300, help="of each check: its option --time")
    parser.add_argument(
        "--limit", type=float, default=420, help="seconds after which a check, or a build before it, is cut off"
    )
    parser.add_argument("--dtype", nargs="+", default=[], help="of each check; default: all three")
    parser.add_argument("--property", nargs="+", default=[], help="of each check; default: all")
    parser.add_argument("--cache", help="folder of compiled kernels; default: a new one, removed at the end")
    given = parser.parse_args()
    known = LIBRARIES | BUILT_IN
    chosen = {name: known[name] for name in given.library}
    if unknown := set(given.only) - {n for library in chosen.values() for n in library.targets}:
        parser.error(f"no such function: {', '.join(sorted(unknown))}")
    options = ["--profile", given.profile, "--time", str(given.seconds), "-n", str(given.workers)]
    options += [x for d in given.dtype for x in ("--dtype", d)] + [x for p in given.property for x in ("--property", p)]
    run(
        chosen,
        given.out,
        options,
        only=given.only,
        together=given.together,
        limit=given.limit,
        cache=given.cache,
    )


if __name__ == "__main__":
    main()
