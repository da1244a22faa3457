"""The whole test file of a kernel: one pytest item per property. It runs with or without a GPU.

    pytest -n auto examples/test_my_gla.py
"""

from pathlib import Path

import linverify

test_my_gla = linverify.conformance(str(Path(__file__).with_name("my_gla.py")) + "::my_gla")
