"""In a process of its own: import a module target, diagnose and train it, and write what was found.

``python -P -m linverify.stability.module_worker`` reads a request (JSON) from standard input and writes its answer to the file
that the request names: {"findings": [...]}, {"kernel": true} where the target is a decorated kernel, or {"error": ...,
"code": ...}.
"""

import copy
import dataclasses
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from linverify.describe import first_line, imported
from linverify.errors import CannotCheckError, LinverifyError, UsageError
from linverify.implementation import declared
from linverify.stability.block import diagnose, guarded
from linverify.stability.layers import Stack, Training, layers
from linverify.stability.module_dilution import dilution

# How constructors call the width of what they take.
WIDTHS = ("dim", "d_model", "hidden_size", "embed_dim", "width", "D", "d", "n_embd")


def main() -> None:
    """Answer one request."""
    request = json.loads(sys.stdin.read())
    sys.path.extend(p for p in request["path"] if p not in sys.path)
    try:
        found = answer(request)
    except LinverifyError as error:
        found = {"error": str(error), "code": error.exit_code}
    Path(request["answer"]).write_text(json.dumps(found), encoding="utf-8")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Diagnose the module that a request names.

    Raises:
        UsageError: it makes no module that takes (B, T, D) and returns it.
        CannotCheckError: the import raises, or the module does.
    """
    torch.set_num_threads(request["threads"])
    found = _named(imported(request["kind"], request["location"]), request["function"])
    if declared(found):
        return {"kernel": True}
    plan = Training(**request["training"])
    maker = _Maker(found, request["function"], request["settings"], plan.width)
    torch.manual_seed(plan.seed)
    module = maker()
    plan = dataclasses.replace(plan, width=maker.width(module))
    make = tried(maker, module, request["function"], plan)
    torch.manual_seed(plan.seed)
    module = make().to(plan.device)
    findings = list(diagnose(module, plan.width, plan.seed))
    trained: list[Stack] = []
    findings.append(layers(make, plan, lambda _, model: trained.append(model)))
    findings.append(guarded("D6", "dilution", "fp64", lambda: dilution(trained[-1], plan)))
    findings.sort(key=lambda f: f.diagnostic)
    return {"findings": [dataclasses.asdict(f) for f in findings]}


def _named(module: object, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            known = sorted(n for n, v in vars(found).items() if callable(v) and not n.startswith("_"))
            raise UsageError(f"there is no {part!r}; there are {', '.join(known[:12]) or 'no classes or functions'}")
        found = getattr(found, part)
    return found


def tried(make: Callable[[], nn.Module], module: nn.Module, name: str, plan: Training) -> Callable[[], nn.Module]:
    """Call a new module once; what makes modules that return (B, T, D) and nothing else.

    Raises:
        UsageError: it returns something else than (B, T, D), or a tuple that begins with it.
        CannotCheckError: it raises.
    """
    x = torch.randn(plan.batch, plan.length, plan.width, device=plan.device)
    try:
        with torch.no_grad():
            y = module.to(plan.device)(x)
    except Exception as error:  # the user's own forward pass
        raise CannotCheckError(
            f"{name} raised {type(error).__name__} for x of shape {tuple(x.shape)}: {first_line(error)}"
        ) from None
    first = y[0] if isinstance(y, tuple) and y else y
    if not isinstance(first, Tensor) or first.shape != x.shape:
        came = tuple(first.shape) if isinstance(first, Tensor) else f"a {type(first).__name__}"
        raise UsageError(f"expected {name} to map (B, T, D) = {tuple(x.shape)} to the same shape, got {came}")
    return make if first is y else lambda: _First(make())


class _First(nn.Module):
    """A module without what it returns beside (B, T, D): a cache, its weights."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Return the first of the results."""
        found: Tensor = self.inner(x)[0]
        return found


class _Maker:
    """Makes modules from a class, a function that returns one, or an instance, which is copied with new parameters."""

    def __init__(self, found: Any, name: str, settings: dict[str, Any], width: int) -> None:
        self.found, self.name, self.settings = found, name, dict(settings)
        if isinstance(found, nn.Module):
            if settings:
                raise UsageError(f"{name} is an instance, which takes no --set; name its class")
            return
        try:
            parameters = inspect.signature(found).parameters
        except (TypeError, ValueError):
            raise UsageError(
                f"{name} is a {type(found).__name__}; expected an nn.Module, its class or a function"
            ) from None
        own = next((w for w in WIDTHS if w in parameters), None)
        if own is not None:
            self.settings.setdefault(own, width)
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if (unknown := [n for n in settings if n not in parameters]) and not open_ended:
            raise UsageError(f"{name} has no argument {unknown[0]!r} to set; it has {', '.join(parameters)}")

        needed = [
            n
            for n, p in parameters.items()
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and n not in self.settings
        ]
        if needed:
            raise UsageError(
                f"nothing fills {', '.join(needed)} of {name}; give a module's arguments by --set NAME=VALUE; of a kernel say "
                "which operator it computes: --op"
            )

    def __call__(self) -> nn.Module:
        if isinstance(self.found, nn.Module):
            made = copy.deepcopy(self.found)
            for part in made.modules():
                if callable(reset := getattr(part, "reset_parameters", None)):
                    reset()
            return made
        try:
            made = self.found(**self.settings)
        except Exception as error:  # the user's own constructor
            raise UsageError(
                f"{self.name}({self._arguments()}) raised {type(error).__name__}: {first_line(error)}"
            ) from None
        if not isinstance(made, nn.Module):
            raise UsageError(
                f"{self.name} returned a {type(made).__name__}, expected an nn.Module that takes (B, T, D); of a kernel say "
                "which operator it computes: --op"
            )
        return made

    def _arguments(self) -> str:
        return ", ".join(f"{n}={v!r}" for n, v in self.settings.items())

    def width(self, module: nn.Module) -> int:
        """D: what the constructor was told, else what the module's first linear map or norm takes."""
        told = next((self.settings[w] for w in WIDTHS if w in self.settings), None)
        if isinstance(told, int):
            return told
        for part in module.modules():
            if isinstance(part, nn.Linear):
                return part.in_features
            if isinstance(part, (nn.LayerNorm, nn.RMSNorm)):
                return int(part.normalized_shape[-1])
        raise UsageError(f"cannot tell which width {self.name} takes; give its constructor an argument named dim")


if __name__ == "__main__":
    main()
