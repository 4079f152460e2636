"""Which attention kernel to use: xformers where it works, else torch's scaled_dot_product_attention; and why."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import util

import torch


@dataclass(frozen=True)
class Attention:
    """`name` is "xformers" or "sdpa"; `why` is for people (`stylora env` prints it)."""

    name: str
    why: str


@cache
def choose(device: torch.device) -> Attention:
    """Try xformers' kernel on the device once; anything short of a right answer means torch's own."""
    if device.type != "cuda":
        return Attention("sdpa", f"torch's scaled_dot_product_attention: xformers has no kernels for {device.type}")
    if util.find_spec("xformers") is None:
        return Attention("sdpa", "torch's scaled_dot_product_attention: xformers is not installed (extra `cuda`)")
    try:
        from xformers.ops import memory_efficient_attention

        q = torch.randn(1, 8, 2, 40, device=device, dtype=torch.float16)
        memory_efficient_attention(q, q, q)
    except (ImportError, RuntimeError, NotImplementedError, ValueError, OSError) as error:
        return Attention(
            "sdpa", f"torch's scaled_dot_product_attention: xformers fails here ({str(error).splitlines()[0]})"
        )
    return Attention("xformers", "xformers' memory-efficient attention works on this GPU")
