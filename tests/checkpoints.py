"""Single-file checkpoints made of a diffusers folder, by names written out here; and an adapter of random numbers."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from studio.merge.probe import Answers, Probe, answers, family_of
from studio.merge.weights import open_base
from trainers.lora.adapter import Adapter
from trainers.lora.formats.sgm import layout_of, to_original
from trainers.lora.pair import LoraPair

RESBLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
TOP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def single_file(folder: Path, out: Path, open_clip: bool = False, metadata: dict[str, str] | None = None) -> Path:
    """The checkpoint that a diffusers folder would have been, with CLIP's or OpenCLIP's names in its text encoder."""
    unet, text, vae = (
        load_file(folder / part / f"{stem}.safetensors")
        for part, stem in (
            ("unet", "diffusion_pytorch_model"),
            ("text_encoder", "model"),
            ("vae", "diffusion_pytorch_model"),
        )
    )
    layout = layout_of(unet)
    tensors = {f"model.diffusion_model.{to_original(key, layout)}": tensor for key, tensor in unet.items()}
    tensors |= {f"first_stage_model.{key}": tensor for key, tensor in vae_names(vae).items()}
    text = {key.removeprefix("text_model."): tensor for key, tensor in text.items()}
    if open_clip:
        tensors |= {f"cond_stage_model.model.{key}": tensor for key, tensor in fused(text).items()}
    else:
        tensors |= {f"cond_stage_model.transformer.text_model.{key}": tensor for key, tensor in text.items()}
    tensors["betas"] = torch.linspace(0, 1, 5, dtype=torch.float64)  # such files hold what no pipeline reads
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, out, metadata)
    return out


def fused(text: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's names, query, key and value in one tensor."""
    found = {}
    for key, tensor in text.items():
        layer = re.match(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)$", key)
        if not layer:
            found[TOP[key]] = tensor
        elif layer[2] in RESBLOCK:
            found[f"transformer.resblocks.{layer[1]}.{RESBLOCK[layer[2]]}.{layer[3]}"] = tensor
        elif layer[2] == "self_attn.q_proj":
            three = [text[key.replace("q_proj", f"{q}_proj")] for q in "qkv"]
            found[f"transformer.resblocks.{layer[1]}.attn.in_proj_{layer[3]}"] = torch.cat(three)
    return found


def vae_names(vae: dict[str, Tensor]) -> dict[str, Tensor]:
    """CompVis' names; attention is 1 x 1 convolutions there."""
    levels = 1 + max(int(found[1]) for key in vae if (found := re.match(r"decoder\.up_blocks\.(\d+)", key)))
    made = {}
    for key, tensor in vae.items():
        coder, _, rest = key.partition(".")
        if found := re.match(r"mid_block\.attentions\.0\.(.+)\.(weight|bias)$", rest):
            rest = f"mid.attn_1.{VAE_ATTENTION[found[1]]}.{found[2]}"
            tensor = tensor[..., None, None] if tensor.dim() == 2 else tensor
        elif found := re.match(r"mid_block\.resnets\.(\d)\.(.+)$", rest):
            rest = f"mid.block_{int(found[1]) + 1}.{found[2]}"
        elif found := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d)\.(.+)$", rest):
            level = int(found[2]) if found[1] == "down" else levels - 1 - int(found[2])
            inner = f"block.{found[4]}" if found[3] == "resnets" else found[3].removesuffix("rs")
            rest = f"{found[1]}.{level}.{inner}.{found[5].replace('conv_shortcut', 'nin_shortcut')}"
        made[f"{coder}.{rest.replace('conv_norm_out', 'norm_out')}"] = tensor
    return made


def here(model: Path, probe: Probe, settings: Mapping[str, bytes]) -> Answers:
    """The answers of a model on disk, loaded in this process: what a fresh one says, sooner."""
    with tempfile.TemporaryDirectory() as folder:
        return answers(family_of(model, settings, Path(folder)), probe)


def random_adapter(base: Path, seed: int, rank: int = 4, kinds: tuple[str, ...] = ("attn", "conv1", "mlp")) -> Adapter:
    """Pairs of random numbers on every layer whose path has one of `kinds` in it, convolutions among them."""
    g = torch.Generator().manual_seed(seed)
    pairs = {}
    for path, (out, *inner) in open_base(base).shapes.items():
        if any(kind in path for kind in kinds):
            down, up = torch.randn(rank, *inner, generator=g), torch.randn(out, rank, generator=g)
            pairs[path] = LoraPair(0.1 * down, 0.1 * up.reshape(out, rank, *[1] * (len(inner) - 1)), rank / 2)
    return Adapter(pairs)
