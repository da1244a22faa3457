"""The pytest plugin: two options, which override what a test file gives to ``linverify.conformance``.

Loaded by every pytest run where linverify is installed, so it imports nothing else.
"""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("linverify", "conformance of linear-attention kernels")
    group.addoption(
        "--linverify-profile",
        metavar="PROFILE",
        help="quick, standard or thorough (default: what the test says, else quick)",
    )
    group.addoption(
        "--linverify-device",
        metavar="DEVICE",
        help="cpu or cuda:0 ... (default: what the test says, else a GPU if any)",
    )
