"""The faults of the reading trial: each is one line, and each changes what the kernel computes."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def loaded(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


trial = loaded(ROOT / "benchmarks" / "reading_trial.py", "reading_trial")


def results(kernel: ModuleType) -> list[torch.Tensor]:
    """All results of one call with two batch rows, three heads and a partial chunk; then the upstream gradient."""
    draw = torch.Generator().manual_seed(0)
    B, T, H, K, V = 2, 37, 3, 8, 6

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw)

    q, k, v = normal(B, T, H, K), torch.nn.functional.normalize(normal(B, T, H, K), dim=-1), normal(B, T, H, V)
    g, beta, state = -normal(B, T, H).abs(), normal(B, T, H).sigmoid(), normal(B, H, K, V)
    given = [x.requires_grad_() for x in (q, k, v, g, beta, state)]
    scaled = kernel.my_gated_delta_rule(*given[:5], scale=0.75, initial_state=state, output_final_state=True)
    plain = kernel.my_gated_delta_rule(*given[:5])[0]
    upstream = [normal(B, T, H, V), normal(B, H, K, V)]
    gradients = torch.autograd.grad(scaled, given, upstream)
    return [plain.detach(), *(x.detach() for x in scaled), *gradients]


@pytest.fixture(scope="module")
def right() -> list[torch.Tensor]:
    return results(loaded(trial.KERNEL, "right_kernel"))


@pytest.mark.parametrize("number", range(len(trial.FAULTS)))
def test_every_fault_changes_one_line_and_the_results(number: int, right: list[torch.Tensor], tmp_path: Path) -> None:
    fault = trial.FAULTS[number]
    file = tmp_path / "kernel.py"
    assert trial.main(["--plant", str(number), str(file)]) == 0
    lines = zip(trial.KERNEL.read_text().splitlines(), file.read_text().splitlines(), strict=True)
    assert sum(a != b for a, b in lines) == 1
    if fault.kind == "memory":  # what it spoils is an input, or depends on what the memory held
        compile(file.read_text(), str(file), "exec")
        return
    wrong = results(loaded(file, f"fault_{number}"))
    assert any(not torch.equal(a, b) for a, b in zip(right, wrong, strict=True))


def test_a_trial_draws_five_of_different_classes() -> None:
    faults = trial.drawn()
    assert len({f.kind for f in faults}) == len(faults) == 5


def test_what_was_planted_can_be_revealed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trial.main(["--plant", "3", str(tmp_path / "kernel_1.py")])
    capsys.readouterr()
    assert trial.main([str(tmp_path), "--reveal"]) == 0
    assert f"kernel_1.py: fault 3 ({trial.FAULTS[3].kind})" in capsys.readouterr().out
