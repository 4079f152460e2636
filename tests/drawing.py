"""What the tests that draw share: adapters of random numbers, strong enough to be seen, and pictures as numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from trainers.families.stable_diffusion import StableDiffusion
from trainers.lora import fit
from trainers.lora.adapter import Adapter
from trainers.lora.pair import LoraPair

Pixels = np.ndarray[Any, np.dtype[np.int_]]


def wild(base: Path, path: Path, seed: int = 1, rank: int = 4) -> Path:
    """LoRA on the attention of both parts, in float32."""
    g = torch.Generator().manual_seed(seed)
    pairs = {
        name: LoraPair(torch.randn(rank, shape[1], generator=g) * 0.3, torch.randn(shape[0], rank, generator=g), 1.0)
        for name, shape in fit.shapes(StableDiffusion(base).parts()).items()
        if ".attn" in name or ".self_attn" in name
    }
    return Adapter(pairs).save(path, dtype=torch.float32)


def pixels(picture: Image.Image | Path) -> Pixels:
    """(H, W, 3)"""
    if isinstance(picture, Path):
        with Image.open(picture) as opened:
            return pixels(opened.copy())
    return np.asarray(picture.convert("RGB"), dtype=int)


def largest(one: Image.Image | Path, other: Image.Image | Path) -> int:
    return int(np.abs(pixels(one) - pixels(other)).max())
