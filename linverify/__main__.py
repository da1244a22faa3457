"""``python -m linverify``: the command line; with no argument a short tour that needs no GPU."""

import sys

from linverify.cli import main

TOUR = (
    *("check", "linverify.impls.torch_chunkwise:gla", "--device", "cpu", "--profile", "quick"),
    *("--dtype", "fp32", "--dtype", "bf16"),
    *("--property", "agreement", "--property", "gradients", "--property", "causality_values"),
)
NEXT = """
That was a built-in form of gated linear attention, in PyTorch, held to three of its laws. Next:

    linverify check my_kernel.py::my_function --op gla      any function, by its file
    linverify list                                          operators, built-in implementations, properties, regimes
    linverify explain gla                                   what an operator computes and which laws it obeys
    linverify doctor                                        what can be checked on this machine
"""


def tour() -> int:
    """Check one built-in form on the CPU and say what to try next."""
    sys.stdout.write(f"$ linverify {' '.join(TOUR)}\n\n")
    sys.stdout.flush()
    code = main(TOUR)
    sys.stdout.write(NEXT)
    return code


if __name__ == "__main__":
    sys.exit(main() if sys.argv[1:] else tour())
