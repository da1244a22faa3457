"""The pytest plugin: options and a marker for conformance items, a GPU for every xdist worker, and how many workers fit.

Loaded by every pytest run where linverify is installed, so it imports neither torch nor the engine, and leaves alone what is
not its own: the number of workers is bounded only where the run says that it checks kernels (an option, or [tool.linverify]).
"""

import os
from typing import Any

import pytest

from linverify import gpus, project
from linverify.errors import ConfigError

_OPTIONS = ("linverify_profile", "linverify_device")
_TURNS = pytest.StashKey[tuple[int, ...]]()
# Name under which the process that hands out work tells a worker its device.
WORKER_DEVICE = "linverify_device"
# And the part of its memory that the kernels of the worker may take.
WORKER_SHARE = "linverify_share"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("linverify", "conformance of linear-attention kernels")
    group.addoption(
        "--linverify-profile",
        metavar="PROFILE",
        help="quick, standard or thorough (default: what the test says, then [tool.linverify], else quick)",
    )
    group.addoption(
        "--linverify-device",
        metavar="DEVICE",
        help="cpu, or cuda for the worker's own GPU, or cuda:0 ... (default: what the test says, then [tool.linverify], "
        "else a GPU if any)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known, so that --strict-markers lets it pass and -m finds the items."""
    config.addinivalue_line(
        "markers",
        "linverify(profile=None, device=None, require=()): a conformance item of linverify; the arguments say how it is asked",
    )


def checks_kernels(config: pytest.Config) -> bool:
    """Return whether this run says that it checks kernels."""
    if any(config.getoption(name, default=None) for name in _OPTIONS):
        return True
    try:
        return bool(project.table(config.rootpath)[1])
    except ConfigError:
        return True  # the items will say what is wrong with it


def turns(config: pytest.Config) -> tuple[int, ...]:
    """Return which GPUs the workers of this run get, in turns; looked up once."""
    if _TURNS not in config.stash:
        config.stash[_TURNS] = gpus.places(gpus.found())
    return config.stash[_TURNS]


def _on_a_cpu(config: pytest.Config) -> bool:
    return str(config.getoption("linverify_device", default=None) or "").startswith("cpu")


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Answer ``-n auto``: as many workers as processors, memory and GPU memory carry."""
    if not checks_kernels(config):
        return None
    carried = () if _on_a_cpu(config) else turns(config)
    return gpus.workers(len(os.sched_getaffinity(0)), gpus.free_host_mib(), carried)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell an xdist worker which GPU is its own."""
    number = str(node.gateway.id).removeprefix("gw")
    if number.isdigit() and checks_kernels(node.config):
        carried = turns(node.config)
        count = int(node.workerinput.get("workercount", 1))
        own = node.workerinput[WORKER_DEVICE] = gpus.device_of(int(number), carried)
        node.workerinput[WORKER_SHARE] = gpus.share([gpus.device_of(n, carried) for n in range(count)], own)


def worker_device(config: pytest.Config) -> str | None:
    """Return the GPU of this worker; None outside xdist and where there is no GPU.

    Where the process that hands out work said nothing (the run does not say that it checks kernels, or there is no nvidia-smi),
    a worker counts the GPUs for itself.
    """
    given = getattr(config, "workerinput", {})
    if given.get(WORKER_DEVICE):
        return str(given[WORKER_DEVICE])
    number = str(given.get("workerid", "")).removeprefix("gw")
    return gpus.device_of(int(number), range(gpus.counted())) if number.isdigit() else None


def worker_share(config: pytest.Config, device: str) -> float:
    """Return which part of its GPU's memory this worker's kernels may take; all of it on another GPU than its own."""
    given = getattr(config, "workerinput", {})
    return float(given.get(WORKER_SHARE, 1.0)) if device == given.get(WORKER_DEVICE) else 1.0


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say what the workers share, where there is something to share."""
    if not checks_kernels(config) or not config.getoption("numprocesses", default=None) or _on_a_cpu(config):
        return None
    shared = sorted(set(turns(config)))
    return f"linverify: {len(shared)} GPU{'s' * (len(shared) != 1)}, one for each worker in turn" if shared else None
