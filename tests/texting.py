"""What the tests that write share: adapters of random numbers for a language model, strong enough to be read."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from trainers.lora import fit
from trainers.lora.adapter import Adapter
from trainers.lora.pair import LoraPair


def styled(base: Path, path: Path, seed: int = 1, rank: int = 2) -> Path:
    """A PEFT folder with LoRA on the attention of a Llama, in float32."""
    g = torch.Generator().manual_seed(seed)
    shapes = fit.shapes({"model": AutoModelForCausalLM.from_pretrained(base)})
    pairs = {
        name: LoraPair(torch.randn(rank, shape[1], generator=g), torch.randn(shape[0], rank, generator=g), 2.0)
        for name, shape in shapes.items()
        if ".self_attn" in name
    }
    return Adapter(pairs).save(path, "peft", torch.float32)
