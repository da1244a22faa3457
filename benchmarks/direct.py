"""Direct calls: one case to one function in this process, judged.

Quicker than a check, which imports, compiles ahead, shrinks and looks further: for many functions in little time.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from crew import Finding
from torch import Tensor

from linverify import draw, registry
from linverify.case import parse_case
from linverify.judge import Judge
from linverify.recipe import precision_class

DEVICE = "cuda:0"


def judged(case_id: str, function: Callable[..., Any], device: str = DEVICE) -> dict[str, tuple[float, float]]:
    """Judge the results of one call on a case: share of the budget (above 1 is wrong), and RMS error over RMS value.

    Args:
        case_id: of the case, whose operator's arguments `function` takes by their canonical names.
        function: returns o, or o and the state.
        device: where it runs.
    """
    case = parse_case(case_id)
    operator = registry.operator(case.operator)
    problem = draw.problem(case, operator)
    judge = Judge(operator, device)
    answer = judge.answer(problem)
    given = {n: t.to(device).requires_grad_(n in problem.wrt) for n, t in problem.tensors.items()}
    if problem.initial_state is not None:
        state = problem.initial_state.to(device)
        given["initial_state"] = state.requires_grad_("initial_state" in problem.wrt)
    flags: dict[str, Any] = {"output_final_state": True} if problem.final_state else {}
    if problem.scale is not None:
        flags["scale"] = problem.scale
    if problem.lengths:
        flags["cu_seqlens"] = offsets(problem.lengths, device)
    found = function(**given, **flags)
    o, final = found if isinstance(found, tuple) else (found, None)
    results = {"o": o, **({"state": final} if problem.final_state else {})}
    leaves = {n: given[n] for n in problem.wrt}
    if leaves:
        names = list(problem.cotangents)
        cotangents = [problem.cotangents[n].to(device) for n in names]
        grads = torch.autograd.grad([results[n] for n in names], list(leaves.values()), cotangents, allow_unused=True)
        results |= {
            f"d{n}": torch.zeros_like(x) if g is None else g for (n, x), g in zip(leaves.items(), grads, strict=True)
        }
    precision = precision_class(case.dtype, device, {})
    return {
        n: (judge.score(answer, n, x.detach(), precision).share, rms_ratio(answer.reference[n], x))
        for n, x in results.items()
    }


def told(found: Mapping[str, tuple[float, float]]) -> Finding:
    """A finding from judged results: reproduced where one is beyond its budget."""
    worst = max(found, key=lambda n: found[n][0])
    beyond = [f"{n} share {s:.3g}, RMS error {r:.2g}" for n, (s, r) in found.items() if not s <= 1]
    most = f"largest share of the budget {found[worst][0]:.2f} ({worst})"
    return Finding.of(beyond, "; ".join(beyond) or most)


def rms_ratio(reference: Tensor, value: Tensor) -> float:
    """RMS of the error over RMS of the reference, in float64: the measure of fla's tests."""
    ref = reference.double().cpu()
    error = (value.detach().double().cpu() - ref).square().mean().sqrt()
    return float(error / (ref.square().mean().sqrt() + 1e-8))


def offsets(lengths: Sequence[int], device: str = DEVICE) -> Tensor:
    """Borders of packed sequences, as cu_seqlens has them."""
    return torch.tensor([0, *lengths], device=device).cumsum(0)


def poison(megabytes: int = 512) -> None:
    """Fill memory with NaN and give it back to the caching allocator, in blocks of many sizes."""
    blocks = [torch.full((n,), float("nan"), device=DEVICE) for n in (2**e for e in range(7, 20)) for _ in range(8)]
    blocks.append(torch.full((megabytes * 2**18,), float("nan"), device=DEVICE))
    del blocks
