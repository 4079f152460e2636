"""Which attention kernel to use: xformers where it works, else torch's scaled_dot_product_attention; and why."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import util

import torch
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class Attention:
    """`name` is "xformers" or "sdpa"; `why` is for people (`stylora env` prints it)."""

    name: str
    why: str


TORCH = "torch's scaled_dot_product_attention"


@cache
def choose(device: torch.device) -> Attention:
    """Try xformers' kernel on the device once; anything short of a right answer means torch's own."""
    if device.type != "cuda":
        return Attention("sdpa", f"{TORCH}: xformers has no kernels for {device.type}")
    if util.find_spec("xformers") is None:
        return Attention("sdpa", f"{TORCH}: xformers is not installed (extra `cuda`)")
    if fault := _fault(device, torch.float16):
        return Attention("sdpa", f"{TORCH}: xformers fails here ({fault})")
    return Attention("xformers", "xformers' memory-efficient attention works on this GPU")


def _fault(device: torch.device, dtype: torch.dtype) -> str:
    """Why xformers is no use here; empty if it gives what torch's own attention gives."""
    try:
        from xformers.ops import memory_efficient_attention

        q, k, v = torch.randn(3, 1, 8, 2, 40, device=device, dtype=dtype)  # each (batch, tokens, heads, width)
        got = memory_efficient_attention(q, k, v)
    except (ImportError, RuntimeError, NotImplementedError, ValueError, OSError) as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    wanted = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    return "" if torch.allclose(got, wanted, atol=1e-2) else "its numbers are wrong"
