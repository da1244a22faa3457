"""``python -m linverify``: the command line; with no argument a short tour that needs no GPU."""

import sys

from linverify.cli import main
from linverify.tour import tour

if __name__ == "__main__":
    sys.exit(main() if sys.argv[1:] else tour(main))
