"""What `linverify stability` says of modules, the blocks that come along and blocks as users write them, on this device.

One process a target, as many at a time as --jobs; what is not done when the time is up is named and ended. Records are those of
``linverify stability --json``.

    python benchmarks/stability_modules.py [--device cuda:0] [--jobs 5] [--seconds 85] [--kernels]
                                           [--only MODULE ...] [--markdown FILE] [--json FILE]

With --kernels, a few of flash-linear-attention's are diagnosed, too (fla-core must be installed; they need a GPU).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SIZES = ["--layers", "4", "--width", "64", "--steps", "60", "--batch", "4", "--length", "64"]
BLOCKS = "linverify.impls.blocks."
USERS = "tests/stability_mixers.py"
MODULES = (
    *(f"{USERS}:{name}" for name in ("Attention", "Multihead", "Positive", "Projections", "Normed", "Window")),
    *(
        BLOCKS + name
        for name in (
            "softmax:Softmax",
            "diag_attention:DiagAttention",
            "one_plus_elu:OnePlusElu",
            "norm_attention:NormAttention",
            "gla:GLA",
            "delta_net:DeltaNet",
        )
    ),
)
KERNELS = {"fla.ops.gla:chunk_gla": "gla", "fla.ops.linear_attn:chunk_linear_attn": "linear_attention"}


def asked(target: str, device: str, until: float) -> dict[str, Any]:
    """Run the command on one target; its record, its exit code, how long it took, and what it said where it failed."""
    start = time.perf_counter()
    options = ["--op", KERNELS[target]] if target in KERNELS else SIZES
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.json"
        command = [sys.executable, "-c", "import sys; from linverify.cli import main; sys.exit(main())", "stability"]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        }
        try:
            ended = subprocess.run(
                [*command, target, *options, "--device", device, "--json", str(path)],
                capture_output=True,
                text=True,
                timeout=max(1.0, until - time.monotonic()),
                env=environment,
                cwd=ROOT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"target": target, "code": None, "said": "not done when the time was up", "record": None}
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    said = (ended.stderr.strip().splitlines() or [""])[-1] if record is None else ""
    seconds = round(time.perf_counter() - start, 1)
    return {"target": target, "code": ended.returncode, "said": said, "seconds": seconds, "record": record}


def table(found: list[dict[str, Any]]) -> Iterator[str]:
    """One row a module: D2 and D6, which its inside decides, and the growth of its Jacobian."""
    yield (
        "| block | weights | derivative by a score | of its bound | first layers | last layers | entropy, first | last "
        "| Jacobian grows | exit |"
    )
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: |"
    for each in found:
        if each["record"] is None or each["target"] in KERNELS:
            continue
        name = each["target"].rpartition(":")[2]
        by_name = {f["diagnostic"]: f for f in each["record"]["results"][0]["findings"]}
        d2, d4, d6 = (by_name[n] for n in ("D2", "D4", "D6"))
        sup = cell(d2["figures"].get("sup"))
        rho = cell(d2["number"]) if d2["bound"] is not None else "-"
        names = ("first layers", "last layers", "entropy of the first", "entropy of the last")
        spread = [cell(d6["figures"].get(n)) for n in names]
        source = d6["sentence"].rpartition("weights by ")[2].partition(")")[0] + (
            ")" if "mix(" in d6["sentence"] else ""
        )
        yield f"| {name} | {source} | {sup} | {rho} | {' | '.join(spread)} | {d4['verdict']} | {each['code']} |"


def cell(number: float | None) -> str:
    """A number, or that there is none."""
    return "-" if number is None else f"{number:.3g}"


def main() -> None:
    """Diagnose all, and say what was not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--kernels", action="store_true", help="fla's, too")
    parser.add_argument("--only", nargs="+", default=[], choices=MODULES, metavar="MODULE")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    until = time.monotonic() + given.seconds
    targets = [*(KERNELS if given.kernels else ()), *(given.only or MODULES)]
    found: list[dict[str, Any]] = []
    with ThreadPoolExecutor(given.jobs) as pool:
        for each in pool.map(lambda target: asked(target, given.device, until), targets):
            found.append(each)
            where = f"exit {each['code']} in {each['seconds']} s" if each["code"] is not None else ""
            print(f"{each['target']}: {where} {each['said']}", file=sys.stderr, flush=True)
            if given.json:  # what was measured stays, whatever happens next
                given.json.write_text(json.dumps({"device": given.device, "runs": found}) + "\n", encoding="utf-8")
    lines = list(table(found))
    print("\n".join(lines))
    if given.markdown:
        given.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if missing := [each["target"] for each in found if each["record"] is None]:
        sys.exit(f"not diagnosed: {', '.join(missing)}")


if __name__ == "__main__":
    main()
