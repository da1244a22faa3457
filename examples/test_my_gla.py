"""The whole test file of a kernel: one pytest item per property; ``pytest -n auto examples`` runs it, GPU or not."""

from pathlib import Path

import linverify

test_my_gla = linverify.conformance(str(Path(__file__).with_name("my_gla.py")) + "::my_gla")
