"""D6 of a module, dilution: how far the tokens of every layer spread their weights, on real text.

Layers are those of the stack that D5 trained. Where their weights come from, and when they are only influences, stands in
``linverify.stability.weights``; the figures are those of ``linverify.stability.dilution``.
"""

from statistics import mean

import torch
from torch import Tensor

from linverify.dtype import FORMATS
from linverify.stability.block import widest
from linverify.stability.dilution import AT, statistics
from linverify.stability.layers import Stack, Training
from linverify.stability.records import Curve, Finding, unchecked
from linverify.stability.text import text, windows
from linverify.stability.weights import INFLUENCE, token_weights

SEQUENCES, TOKENS = 2, 64
# Below so many tokens the nearest 40 % of them are next to nothing.
_FEWEST = 8


def dilution(model: Stack, plan: Training) -> Finding:
    """Look at every layer of a trained stack.

    Raises:
        ValueError: nothing in a layer mixes tokens, or its ``mix`` has other shapes.
    """
    length = min(plan.length, TOKENS)
    if length < _FEWEST:
        return unchecked(
            "D6", "dilution", "fp64", f"expected at least {_FEWEST} tokens to spread weights over, got {length}"
        )
    tokens, _ = windows(text(), SEQUENCES, length, torch.Generator().manual_seed(plan.seed + 1))
    found = [layer(block, x) for block, x in zip(model.blocks, inputs(model, tokens.to(plan.device)), strict=True)]
    sources = list(dict.fromkeys(source for _, source, _ in found))
    parts = [figures for figures, _, _ in found]
    near = [f["locality"] / f["uniform"] for f in parts]
    first = max(1, len(parts) // 4)
    figures = {
        "first layers": mean(near[:first]),
        "last layers": mean(near[-first:]),
        "entropy of the first": mean(f["entropy"] for f in parts[:first]),
        "entropy of the last": mean(f["entropy"] for f in parts[-first:]),
        **{
            name: mean(f[name] for f in parts) for name in ("locality", "uniform", "entropy", "support", "cancellation")
        },
    }
    told = (
        f"the last {AT:.0%} of tokens get {figures['first layers']:.2f} times what uniform weights give them in the first "
        f"layers, {figures['last layers']:.2f} times in the last; entropy {figures['entropy of the first']:.2f} and "
        f"{figures['entropy of the last']:.2f}, effective support {figures['support']:.2f} (weights by {' and '.join(sources)})"
    )
    if any(source.startswith(INFLUENCE) for source in sources):
        told += "; influences |do_t / dx_s| are no attention weights"
    at = tuple(float(n + 1) for n in range(len(near)))
    named = (
        ("nearest over uniform", "locality / uniform", near),
        ("", "entropy / log i", [f["entropy"] for f in parts]),
    )
    curves = tuple(Curve(at, tuple(y), "layer", name, label=label, linear=True) for label, name, y in named)
    shown_by = f"{SEQUENCES} x {length} bytes of text, after {plan.steps} steps of training"
    return Finding(
        "D6", "dilution", found[0][2], "measured", True, figures["first layers"], None, shown_by, told, figures, curves
    )


def layer(block: torch.nn.Module, x: Tensor) -> tuple[dict[str, float], str, str]:
    """Figures of one layer at inputs x [B, T, D], means over heads and sequences; whence its weights come, and the format."""
    wide, dtype = widest(block, x.double())
    found = token_weights(wide, x.to(FORMATS[dtype].torch_dtype))
    if not bool(found.p.isfinite().all()):
        raise ValueError(f"weights by {found.source} are not finite")
    each = [statistics(p) for p in found.p.double().cpu()]
    source = f"{found.source} of {found.part}" if found.part else found.source
    return {name: mean(f[name] for f in each) for name in each[0]}, source, dtype


@torch.no_grad()
def inputs(model: Stack, tokens: Tensor) -> list[Tensor]:
    """What every layer takes in [B, T, D]."""
    found: list[Tensor] = []
    hooks = [b.register_forward_pre_hook(lambda _, args: found.append(args[0].detach())) for b in model.blocks]
    training = model.training
    try:
        model.eval()(tokens)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return found
