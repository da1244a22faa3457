"""A correct kernel as a user would write it, for the files that tests write."""

RIGHT = """def right(q, k, v, g, scale=None):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    S = torch.zeros(*q.shape[::2], q.shape[-1], v.shape[-1])
    out = []
    for t in range(q.shape[1]):
        S = S * g[:, t, :, :, None].float().exp() + k[:, t, :, :, None].float() * v[:, t, :, None, :].float()
        out.append((q[:, t, :, :, None].float() * scale * S).sum(-2))
    return torch.stack(out, 1).to(v.dtype)
"""
