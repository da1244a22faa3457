"""Chunks of one run of the rounding model: operands, decays and decayed scores, each rounded as the recipe says."""

import torch
from torch import Tensor

from linverify.noise import Noise, held, product, rounded, running_sum
from linverify.roles import Roles

SUB_CHUNK = 16


def split(x: Tensor, chunk: int) -> Tensor:
    """[N, L, D] to [N, n, C, D], filled up with zeros (null tokens)."""
    n = -(-x.shape[1] // chunk)
    return torch.nn.functional.pad(x, (0, 0, 0, n * chunk - x.shape[1])).reshape(x.shape[0], n, chunk, x.shape[2])


def effective_chunk(chunk: int, length: int, sub: int = SUB_CHUNK) -> int:
    """A row shorter than a chunk is one chunk; kernels round such a chunk's length up to whole sub-chunks."""
    return min(chunk, length if length < sub else -(-length // sub) * sub)


def _channel_scores(
    x: Tensor, y: Tensor, reader: Tensor, writer: Tensor, start: Tensor, mask: Tensor, noise: Noise
) -> Tensor:
    """sum_d x_id y_jd exp(R_id - G_jd): sub-chunks against a reference point, pairwise on the diagonal; exponents stay <= 0.

    The reference point is the end of the earlier sub-chunk, or the later one's first reader where the recipe rounds between
    sub-chunks, as kernels that do so take it.
    """
    chunk, coarse = x.shape[2], noise.structure.blocks is not None
    blocks = max(1, chunk // noise.structure.sub)
    size = chunk // blocks
    shape = (*x.shape[:2], blocks, size, x.shape[-1])
    xs, ys, rs, ws = (t.reshape(shape) for t in (x, y, reader, writer))
    tile = mask[:size, :size]
    gap = (rs[..., :, None, :] - ws[..., None, :, :]).masked_fill(~tile[..., None], -torch.inf)
    diagonal = (xs[..., :, None, :] * noise.summands(gap.exp(), x.shape[-1]) * ys[..., None, :, :]).sum(-1)
    if blocks == 1:
        return diagonal[:, :, 0]
    first = (rs if coarse else start.reshape(shape))[..., :1, :]
    index = torch.arange(chunk, device=x.device)
    earlier = index[None, :] < (torch.arange(blocks, device=x.device) * size)[:, None]
    toward = (first - writer[:, :, None]).masked_fill(~earlier[..., None], -torch.inf).exp() * y[:, :, None]
    onward = xs * (rs - first).exp()
    if coarse:
        onward, toward = rounded(onward, noise, "blocks"), rounded(toward, noise, "blocks")
        off = product(onward, toward.transpose(-1, -2), noise, "blocks")
    elif noise.exact_walk:
        off = product(onward, toward.transpose(-1, -2), noise)
    else:
        off = onward @ toward.transpose(-1, -2)
    eye = torch.eye(blocks, dtype=x.dtype, device=x.device)
    full = off.reshape(*off.shape[:3], size, blocks, size) + diagonal[..., None, :] * eye[:, None, :, None]
    return full.reshape(*x.shape[:2], chunk, chunk)


class Chunks:
    """The terms of one run, split into chunks, with the decays that readers and writers meet through."""

    def __init__(self, x: Roles, scale: float, noise: Noise, *, exclusive: bool, undecayed: bool) -> None:
        self.noise = noise
        self.size = effective_chunk(noise.structure.chunk, x.q.shape[1], noise.structure.sub)
        self.declared = noise.structure.operands is not None
        self.back = "cotangents" if noise.structure.cotangents is not None else ""
        self.scalar = x.log_decay is not None and x.log_decay.shape[-1] == 1
        self.channel = x.log_decay is not None and not self.scalar
        q = held(x.q, noise, "query") * scale
        q = q if noise.structure.scaled_query is None else rounded(q, noise, "scaled_query")
        self.query, self.k, self.v = self.operand(q), self.operand(x.k, "key"), self.operand(x.v, "value")
        # scaling afterwards leaves a query as it is
        plain = self.declared and noise.structure.scaled_query is None
        self.q = self.reader(self.operand(x.q)) * scale if plain and not self.channel else self.reader(self.query)
        index = torch.arange(self.size, device=x.q.device)
        self.inclusive, self.strict = index[:, None] >= index[None, :], index[:, None] > index[None, :]
        self.read_mask = self.strict if exclusive else self.inclusive
        self.until: Tensor | None = None
        if x.log_decay is not None:
            # An unknown kernel of few digits may go token by token, too, and what a state is multiplied by is float32 in all of
            # them: where nothing else is rounded on the way (a state's gradient alone), that is what errs.
            lasting = not noise.careful and not noise.exact_walk
            g = split(noise.decay(x.log_decay) if lasting else x.log_decay, self.size)
            self.until = running_sum(g, noise, 2)
            if noise.structure.gates is not None:
                self.until = rounded(self.until, noise, "gates")
            self.before = self.until - g
            # a running sum that is stored in fewer digits has its total from there
            self.total = self.until[:, :, -1:] if noise.structure.gates is not None else noise.total(g, self.until, 2)
            self.read_at = self.before if exclusive else self.until
            self.low_at = self.before if undecayed else self.until
            self.kept = self.total.exp().transpose(-1, -2)

    def operand(self, x: Tensor, point: str = "") -> Tensor:
        """A term from memory, split into chunks, as a product reads it."""
        cut = split(held(x, self.noise, point) if point else x, self.size)
        return cut if self.noise.structure.input is None else rounded(cut, self.noise, "input")

    def used(self, x: Tensor) -> Tensor:
        """A term as an operand of a product, where the recipe rounds it at every use."""
        return rounded(x, self.noise, "operands") if self.declared else x

    def reader(self, x: Tensor) -> Tensor:
        """An operand of scores: with a gate per channel it is decayed, and rounded, there."""
        return x if self.channel else self.used(x)

    def use(self, x: Tensor) -> Tensor:
        """One use of a log decay: kernels recompute it, each time with its own float32 error."""
        return rounded(x, self.noise, "gate") if self.noise.dither else x

    def scores(self, x: Tensor, y: Tensor, at: Tensor | None, mask: Tensor) -> Tensor:
        """Decayed scores, before they are rounded as an operand."""
        if self.until is None or at is None:
            return product(x, y.transpose(-1, -2), self.noise, "scores").masked_fill(~mask, 0)
        if self.scalar:
            wide = [*self.until.shape[:3], self.until.shape[2]]
            gap = self.use(at.expand(wide)) - self.use(self.until.transpose(-1, -2).expand(wide))
            return product(x, y.transpose(-1, -2), self.noise, "scores") * gap.masked_fill(~mask, -torch.inf).exp()
        found = _channel_scores(x, y, self.use(at), self.use(self.until), self.before, mask, noise=self.noise)
        if self.noise.exact_walk:  # what partial sums lose beside the summands
            whole = found.detach()
            found = found + (self.noise.walk(whole, torch.zeros_like(whole), x.shape[-1]) - whole)
        return rounded(found, self.noise, "dot").masked_fill(~mask, 0)

    def decays(self, at: Tensor) -> Tensor:
        """Exp of a log decay, with its float32 error."""
        return rounded(self.use(at).exp(), self.noise, "decay")

    def outgoing(self, x: Tensor) -> Tensor:
        """A writer's operand, decayed to the end of its chunk (a scalar decay goes to the values instead)."""
        if self.until is None or self.scalar:
            return self.used(x)
        return rounded(x * (self.use(self.total) - self.use(self.until)).exp(), self.noise, "key", self.back or "key")

    def remaining(self) -> Tensor:
        """Decay from a token to the end of its chunk, [N, n, C, 1]; for a scalar gate."""
        assert self.until is not None
        return self.decays(self.total - self.until)
