"""DoRA as a plain change of the weight, which takes the base's own weight (weight decomposition, Liu et al. 2024).

Try it: python -c "import torch; from trainers.lora.dora import *; w = torch.eye(2); print(change(w, w, torch.ones(2)))"
"""

from __future__ import annotations

import torch
from torch import Tensor


def change(weight: Tensor, delta: Tensor, magnitude: Tensor) -> Tensor:
    """m (W + d) / ||W + d|| - W in float64; `weight` (out, in[, kh, kw]), `delta` of as many numbers.

    The norm is each output's for a magnitude (out,) or (out, 1[, 1, 1]), as in the paper, peft and LyCORIS today, and
    each input's for (1, in[, 1, 1]), LyCORIS' older form. ValueError: sizes that don't fit.
    """
    if delta.numel() != weight.numel() or len(delta) != len(weight):
        raise ValueError(f"made for {tuple(delta.shape)}, the base has {tuple(weight.shape)}")
    whole = weight.double() + delta.double().reshape(weight.shape)
    sides = magnitude.double().flatten(1) if magnitude.ndim > 1 else magnitude.double()[:, None]
    if sides.shape not in ((len(whole), 1), (1, whole.shape[1])):
        raise ValueError(f"dora_scale {list(magnitude.shape)} belongs to neither side of {tuple(weight.shape)}")
    kept = 0 if sides.shape[1] == 1 and len(sides) == len(whole) else 1
    others = [side for side in range(whole.ndim) if side != kept]
    norm = torch.linalg.vector_norm(whole, dim=others, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    changed: Tensor = whole * (sides.reshape(norm.shape) / norm)
    return changed - weight.double()


def by_output(magnitude: Tensor) -> Tensor:
    """peft's magnitude, (out,) or for a convolution (1, out, 1, 1), as (out, 1): its norm is always each output's."""
    return magnitude.reshape(-1, 1)
