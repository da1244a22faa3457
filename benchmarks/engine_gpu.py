"""The engine on a GPU, all at once: a long sequence in segments, sweeps of autotuning configurations, workers on every GPU.

    python benchmarks/engine_gpu.py [--seconds 95] [--only "long fla,sweep,workers"] [--out DIR]

Each part is a process of its own with a deadline; what it printed is shown when it ends, whatever happened to it. Needs
fla-core for the sweeps and the long sequence.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

_PYTHON = (sys.executable,)
_CHECK = (*_PYTHON, "-m", "linverify", "check")
_SWEEP = ("--autotune", "all", "--property", "configurations", "--dtype", "bf16")


def commands(out: Path, seconds: float, tokens: int) -> dict[str, tuple[str, ...]]:
    """What is run, by name; a name begins with the part that it belongs to."""
    long = (*_PYTHON, "benchmarks/long_sequence.py", "--tokens")
    limit = ("--time", str(max(20.0, seconds - 30.0)))

    def sweep(target: str, op: str) -> tuple[str, ...]:
        return (*_CHECK, target, "--op", op, *_SWEEP, *limit, "--json", str(out / f"sweep {op}.json"))

    return {
        "long built-in": (*long, str(tokens), "--target", "linverify.impls.torch_chunkwise:gla", "--dtype", "bf16"),
        "long fla": (*long, str(tokens), "--dtype", "bf16"),
        "sweep gla": sweep("fla.ops.gla:chunk_gla", "gla"),
        "sweep delta_rule": sweep("fla.ops.delta_rule:chunk_delta_rule", "delta_rule"),
        "workers": (
            *(*_CHECK, "linverify.impls.torch_chunkwise:gla", "--op", "gla", "--profile", "quick", "-n", "4"),
            *("--json", str(out / "workers.json"), *limit),
        ),
    }


def _configurations(record: Path) -> str:
    """How a sweep stands: configurations by kernel and status, and the name of each that is wrong."""
    lines = []
    for result in json.loads(record.read_text())["results"]:
        found = result.get("configurations", [])
        counts = Counter((c["kernel"], c["status"]) for c in found)
        lines += [f"  {n:4} {status:9} {kernel}" for (kernel, status), n in sorted(counts.items())]
        wrong = [c for c in found if c["status"] not in ("pass", "refused")]
        lines += [f"  {c['status']}: {c['kernel']} {c['configuration']}: {c['note'][:200]}" for c in wrong[:6]]
        refused = Counter(c["note"][:120] for c in found if c["status"] == "refused")
        lines += [f"  refused {n}: {note}" for note, n in refused.most_common(3)]
        lines.append(f"  verdict {result['verdict']} {result['reason']} {result['seconds']}")
        lines += [f"  {p['name']}: {p['status']} {p['note']}" for p in result["properties"]]
    return "\n".join(lines)


def run(parts: Mapping[str, Sequence[str]], out: Path, seconds: float) -> None:
    """Run all parts at once, and show each as it ends; what is not through in time is interrupted, then ended."""
    start = time.monotonic()
    peaks: dict[str, int] = {}
    running = {}
    for name, command in parts.items():
        log = (out / f"{name}.log").open("w")
        running[name] = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "COLUMNS": "150"}
        )
    while running:
        time.sleep(0.5)
        for gpu, used in _memory():
            peaks[gpu] = max(used, peaks.get(gpu, 0))
        late = time.monotonic() - start - seconds
        for name, process in list(running.items()):
            if late > 0:
                (process.kill if late > 8 else process.terminate)()
            if process.poll() is None:
                continue
            del running[name]
            text = (out / f"{name}.log").read_text()
            print(f"=== {name}: exit {process.returncode} after {time.monotonic() - start:.0f} s")
            print(text if len(text) < 5000 else text[:1500] + "\n...\n" + text[-3500:])
            record = out / f"{name}.json"
            if name.startswith("sweep") and record.exists():
                print(_configurations(record))
            sys.stdout.flush()
    print("most memory used at once, MiB by GPU:", peaks)


def _memory() -> list[tuple[str, int]]:
    """Index and MiB in use of every GPU: what shows that none is left alone."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index,memory.used", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    rows = [[word.strip() for word in line.split(",")] for line in done.stdout.splitlines()]
    return [(row[0], int(row[1])) for row in rows if len(row) == 2 and row[1].isdigit()]


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=95.0)
    parser.add_argument("--tokens", type=int, default=2**18)
    parser.add_argument("--only", default="long fla,sweep,workers")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    out = given.out or Path(tempfile.mkdtemp(prefix="engine-gpu-"))
    out.mkdir(parents=True, exist_ok=True)
    wanted = tuple(given.only.split(","))
    run(
        {n: c for n, c in commands(out, given.seconds, given.tokens).items() if n.startswith(wanted)},
        out,
        given.seconds,
    )


if __name__ == "__main__":
    main()
