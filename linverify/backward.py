"""Products whose gradients are formed as hand-written backward passes form them, not as a mirror of the forward pass.

A backward kernel recomputes what it needs: it multiplies the decay into a product's result where the forward pass put it into
an operand, takes scores that were never rounded, and rounds the gradient of a triangular inverse between its two products. A
declared recipe says so; where these functions are used the model can match such a kernel bit by bit.
"""

from typing import Any

import torch
from torch import Tensor

from linverify.noise import Noise
from linverify.recipe import SMALLEST_BLOCK


class _DecayedRead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, raw: Tensor, b: Tensor, decay: Tensor, noise: Noise) -> Tensor:
        y = noise.product(a, b)
        ctx.save_for_backward(raw, b, decay, y)
        ctx.noise = noise
        return y * decay

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor, Tensor, None]:
        (g,) = grads
        raw, b, decay, y = ctx.saved_tensors
        noise = ctx.noise
        point = "query" if noise.structure.folded_query is None else "folded_query"
        down = (g * y).sum(-1, keepdim=True)
        g = noise.round(g, "operands")
        folded = noise.round(raw * decay, point)
        return None, noise.product(g, b.transpose(-1, -2)) * decay, noise.product(folded.mT, g), down, None


class _DecayedWrite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor, decay: Tensor, noise: Noise) -> Tensor:
        ctx.save_for_backward(k, v, decay)
        ctx.noise = noise
        return noise.product(k.mT, noise.round(v * decay, "value"))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (g,) = grads
        k, v, decay = ctx.saved_tensors
        noise = ctx.noise
        g = noise.round(g, "state_cotangent")
        dk = noise.product(noise.round(v, "operands"), g.mT)
        return dk * decay, noise.product(k, g) * decay, (dk * k).sum(-1, keepdim=True), None


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, again: Tensor, b: Tensor, noise: Noise) -> Tensor:
        ctx.save_for_backward(again, b)
        ctx.noise = noise
        return noise.product(a, b)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor, None]:
        (g,) = grads
        again, b = ctx.saved_tensors
        noise = ctx.noise
        return noise.product(noise.round(g, "operands"), b.mT), None, noise.product(again.mT, g), None


class _Inverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, noise: Noise) -> Tensor:
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        exact = torch.linalg.solve_triangular(matrix, eye.expand_as(matrix), upper=False, unitriangular=True)
        inverse = noise.round(exact, "inverse")
        ctx.save_for_backward(inverse)
        ctx.noise = noise
        return inverse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (g,) = grads
        (inverse,) = ctx.saved_tensors
        noise = ctx.noise
        once = noise.round(noise.product(noise.round(g.tril(), "inverse"), inverse.mT), "inverse")
        return -noise.product(inverse.mT, once), None


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, noise: Noise) -> Tensor:
        found = _blocks(matrix, noise)
        ctx.save_for_backward(found)
        ctx.noise = noise
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (g,) = grads
        (found,) = ctx.saved_tensors
        noise = ctx.noise
        once = noise.product(noise.round(g.tril(), "merge"), noise.round(found, "merge").mT)
        return -noise.product(noise.round(found, "merge").mT, noise.round(once, "merge")), None


def _blocks(matrix: Tensor, noise: Noise) -> Tensor:
    """Inverse of unit lower triangular matrices from those of their diagonal blocks, of at most 16 rows to begin with."""
    size = matrix.shape[-1]
    if size <= SMALLEST_BLOCK:
        eye = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
        found: Tensor = torch.linalg.solve_triangular(matrix, eye.expand_as(matrix), upper=False, unitriangular=True)
        return found
    half = -(-size // (2 * SMALLEST_BLOCK)) * SMALLEST_BLOCK
    first, last = _blocks(matrix[..., :half, :half], noise), _blocks(matrix[..., half:, half:], noise)
    seen = noise.product(noise.round(matrix[..., half:, :half], "merge"), noise.round(first, "merge"))
    between = -noise.product(noise.round(last, "merge"), noise.round(seen, "merge"))
    wide = torch.nn.functional.pad(first, (0, size - half))
    return torch.cat([wide, torch.cat([between, last], -1)], -2)


def decayed_read(a: Tensor, raw: Tensor, b: Tensor, decay: Tensor, noise: Noise) -> Tensor:
    """(a @ b) * decay; a's gradient (given to `raw`, a before rounding) takes the decay last, b's takes it folded into raw."""
    out: Tensor = _DecayedRead.apply(a, raw, b, decay, noise)  # type: ignore[no-untyped-call]  # torch's own
    return out


def decayed_write(k: Tensor, v: Tensor, decay: Tensor, noise: Noise) -> Tensor:
    """k^T @ round(v * decay); both gradients take the decay last."""
    out: Tensor = _DecayedWrite.apply(k, v, decay, noise)  # type: ignore[no-untyped-call]  # torch's own
    return out


def recomputed(a: Tensor, again: Tensor, b: Tensor, noise: Noise) -> Tensor:
    """A @ b; b's gradient uses `again`, the same matrix as the backward pass computes it."""
    out: Tensor = _Recomputed.apply(a, again.detach(), b, noise)  # type: ignore[no-untyped-call]  # torch's own
    return out


def inverse(matrix: Tensor, noise: Noise) -> Tensor:
    """Inverse of unit lower triangular matrices, rounded; its gradient is rounded before, between and after its products."""
    out: Tensor = _Inverse.apply(matrix, noise)  # type: ignore[no-untyped-call]  # torch's own
    return out


def merged(matrix: Tensor, noise: Noise) -> Tensor:
    """Inverse of unit lower triangular matrices, its diagonal blocks merged by products whose operands are rounded.

    A merge forms -T2 (M T1) of two blocks' inverses and what lies between. A rounding of M leaves T2 dM T1, dense, where
    the inverse itself may fall off within a few tokens of its diagonal (nearly equal keys, strengths near one): rounding the
    inverse's own elements tells nothing of it. The gradient is -T^T dT T^T, with the inverse as it was found.
    """
    out: Tensor = _Merged.apply(matrix, noise)  # type: ignore[no-untyped-call]  # torch's own
    return out
