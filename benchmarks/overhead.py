"""What isolation and hygiene cost a case: the time of a question to the worker, beyond the kernel's own.

Each question is asked many times; (round trip - forward - backward) is the overhead: packing, pipes, layouts, guard bands,
copies, comparisons and the look at the checker's names. The least is what it costs; the median adds what else the machine does.

    python benchmarks/overhead.py [--repeat N] [--device cpu] [--profile]
"""

import argparse
import cProfile
import pstats
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from linverify import registry
from linverify.binding import bind
from linverify.case import Case, parse_case
from linverify.draw import problem
from linverify.problem import Call, Program
from linverify.runner import Runner
from linverify.target import parse

CASES = (
    "gla/B1.T33.H2.K16.V12/fp32/gate=mild",
    "gla/B2.T70.H2.K16.V20/bf16/gate=mild/state=normal/final_state=1/cotangent=both",
    "gla/B1.T160.H3.K64.V32/fp16/gate=mild/cotangent=o",
    "gla/B1.T512.H2.K64.V64/fp32/gate=mild/cotangent=o",
)


def measured(runner: Runner, case: Case, repeat: int) -> tuple[float, float, float]:
    """(least overhead, its median, least time of the kernel) in milliseconds."""
    program = Program((Call(problem(case, registry.operator(case.operator))),))
    overhead, kernel = [], []
    for _ in range(repeat + 3):
        started = time.perf_counter()
        (result,) = runner.run(program, time_limit=60)
        own = sum(result.seconds.values())
        overhead.append(time.perf_counter() - started - own)
        kernel.append(own)
    return 1e3 * min(overhead[3:]), 1e3 * statistics.median(overhead[3:]), 1e3 * min(kernel[3:])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=200)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    operator = registry.operator("gla")
    with Runner(parse("linverify.impls.torch_chunkwise:gla"), device=options.device) as runner:
        runner.bind(bind(operator, runner.describe().functions[0]), operator)
        print("| case | kernel, ms | isolation and hygiene, ms | its median, ms |\n| --- | --- | --- | --- |")
        profiler = cProfile.Profile()
        for text in CASES:
            if options.profile:
                profiler.enable()
            least, median, kernel = measured(runner, parse_case(text), options.repeat)
            profiler.disable()
            print(f"| `{text}` | {kernel:.2f} | {least:.2f} | {median:.2f} |", flush=True)
        if options.profile:
            pstats.Stats(profiler).sort_stats("tottime").print_stats(15)


if __name__ == "__main__":
    main()
