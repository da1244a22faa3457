"""A right gated linear attention that tells which GPU it was given, and tries to take more memory than its share."""

import torch
from torch import Tensor

from benchmarks import several_gpus_witness as witness
from linverify.impls.torch_chunkwise import gla

_MORE = 1.1  # times the share
_tried: dict[str, bool] = {}


def _more_than_its_share(device: torch.device, share: float) -> bool:
    """Whether a process may have more of its GPU's memory than its share; asked once."""
    if str(device) not in _tried:
        try:
            total = torch.cuda.get_device_properties(device).total_memory
            torch.empty(int(_MORE * share * total), dtype=torch.uint8, device=device)
            _tried[str(device)] = True
            torch.cuda.empty_cache()
        except torch.OutOfMemoryError:
            _tried[str(device)] = False
    return _tried[str(device)]


def witnessed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The built-in chunkwise form."""
    share = torch.cuda.get_per_process_memory_fraction(q.device) if q.is_cuda else 1.0
    more = share < 1.0 and _more_than_its_share(q.device, share)
    witness.write("kernel", device=str(q.device), share=share, more=more)
    return gla(q, k, v, g, scale=scale, initial_state=initial_state, output_final_state=output_final_state)
