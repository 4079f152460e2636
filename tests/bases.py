"""The real bases' models without weights, and what in them can carry LoRA; what the golden tables speak of."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

SD15 = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8}
SD2 = SD15 | {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}


def unet(config: dict[str, Any]) -> nn.Module:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel(**config)


def clip(config: dict[str, Any]) -> nn.Module:
    """A text encoder as transformers 5 has it: no level `text_model.`."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        return CLIPTextModel(CLIPTextConfig(**config))


def linears(model: nn.Module) -> dict[str, list[int]]:
    """{path: the weight's shape} of every linear layer and convolution."""
    kinds = (nn.Linear, nn.Conv2d)
    return {name: list(module.weight.shape) for name, module in model.named_modules() if isinstance(module, kinds)}


@cache
def shapes_of(base: str) -> dict[str, list[int]]:
    """{canonical path: the weight's shape} of "sd15" or "sdxl"."""
    parts = {"unet": unet(SDXL if base == "sdxl" else SD15), "text_encoder": clip(CLIP_L)}
    parts |= {"text_encoder_2": clip(CLIP_G)} if base == "sdxl" else {}
    level = {part: "" if part == "unet" else "text_model." for part in parts}
    return {f"{part}.{level[part]}{name}": s for part, model in parts.items() for name, s in linears(model).items()}


def golden(name: str) -> dict[str, list[int]]:
    """{key: shape} of a file of another tool; made by tests/golden/make.py."""
    plain = Path(__file__).parent / "golden" / f"{name}.json"
    raw = plain.read_bytes() if plain.exists() else gzip.decompress(plain.with_suffix(".json.gz").read_bytes())
    return dict(json.loads(raw))


def hollow(table: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Tensors of these shapes without numbers."""
    return {key: torch.empty(shape, device="meta") for key, shape in table.items()}
