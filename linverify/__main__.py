"""``python -m linverify``: the command line; with no argument a short tour that needs no GPU."""

import sys

from linverify import ahead


def run() -> int:
    """Run the command line of this process and return its exit code."""
    ahead.foresee(sys.argv[1:])  # before the imports below, which take seconds
    from linverify.cli import main
    from linverify.tour import tour

    return main() if sys.argv[1:] else tour(main)


if __name__ == "__main__":
    sys.exit(run())
