"""Single-file checkpoints, as A1111, ComfyUI and Civitai know them: what their tensors are called in diffusers' layout.

The original (CompVis, OpenAI, OpenCLIP) names become diffusers' here, by tables; the number of residual blocks of a
level is read from the names themselves. OpenCLIP fuses query, key and value into one tensor of three times the rows.

Try it: python -c "from trainers.single_file import pieces; print(pieces(['model.diffusion_model.out.2.weight']))"
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from trainers.lora.formats import sgm

UNET = sgm.CHECKPOINT_PREFIX
VAE = "first_stage_model."
CLIP = {  # prefix -> component, transformers' own names
    "cond_stage_model.transformer.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
}
OPEN_CLIP = {  # prefix -> component, OpenCLIP's names
    "cond_stage_model.model.": "text_encoder",
    "conditioner.embedders.1.model.": "text_encoder_2",
}
SDXL = "conditioner.embedders."

OPEN_CLIP_HEADS = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight", "ln_final.bias": "final_layer_norm.bias",
}  # fmt: skip
OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}  # fmt: skip
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


@dataclass(frozen=True)
class Piece:
    """A tensor of the diffusers layout, as (part of) one of the single file."""

    component: str  # unet, text_encoder, text_encoder_2, vae
    name: str  # with the level `text_model.` as files keep it
    third: int | None = None  # 0, 1, 2: these rows of a fused query, key, value
    transposed: bool = False  # stored as its transpose


def pieces(keys: Iterable[str]) -> dict[str, list[Piece]]:
    """{name in the file: the diffusers tensors it holds}; names that no component of a pipeline has are left out."""
    keys = list(keys)
    per_level, ups = _per_level(keys), _vae_levels(keys)
    found = {}
    for key in keys:
        if key.startswith(UNET):
            here = _named("unet", sgm.from_original(key.removeprefix(UNET), per_level))
        elif key.startswith(VAE):
            here = _named("vae", vae_name(key.removeprefix(VAE), ups))
        else:
            here = _text(key)
        if here:
            found[key] = here
    return found


def _named(component: str, name: str | None) -> list[Piece]:
    return [Piece(component, name)] if name else []


def _per_level(keys: Iterable[str]) -> int:
    """Residual blocks of a level: the first downsampler's number less one; of one level, all but conv_in."""
    pattern = re.compile(rf"{re.escape(UNET)}input_blocks\.(\d+)\.(0\.op)?")
    found = [(int(match[1]), bool(match[2])) for key in keys if (match := pattern.match(key))]
    most = max((number for number, _ in found), default=2)
    return min((number - 1 for number, op in found if op), default=most)


def _vae_levels(keys: Iterable[str]) -> int:
    pattern = re.compile(rf"{re.escape(VAE)}decoder\.up\.(\d+)\.")
    return max((int(match[1]) + 1 for key in keys if (match := pattern.match(key))), default=0)


def vae_name(key: str, levels: int) -> str | None:
    """ "decoder.up.3.block.0.nin_shortcut.weight" -> "decoder.up_blocks.0.resnets.0.conv_shortcut.weight" (of 4)."""
    if match := re.match(r"(encoder|decoder)\.mid\.attn_1\.(norm|q|k|v|proj_out)\.(weight|bias)$", key):
        return f"{match[1]}.mid_block.attentions.0.{VAE_ATTENTION[match[2]]}.{match[3]}"
    if not key.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")):
        return None
    key = re.sub(r"\.mid\.block_(\d)\.", lambda m: f".mid_block.resnets.{int(m[1]) - 1}.", key)
    key = re.sub(r"\.down\.(\d+)\.", r".down_blocks.\1.", key)
    key = re.sub(r"\.up\.(\d+)\.", lambda m: f".up_blocks.{levels - 1 - int(m[1])}.", key)
    key = key.replace(".block.", ".resnets.").replace(".nin_shortcut.", ".conv_shortcut.")
    key = key.replace(".downsample.", ".downsamplers.0.").replace(".upsample.", ".upsamplers.0.")
    return key.replace(".norm_out.", ".conv_norm_out.")


def _text(key: str) -> list[Piece]:
    for prefix, component in CLIP.items():
        if key.startswith(prefix):
            inner = key.removeprefix(prefix).removeprefix("text_model.")
            return [] if inner.endswith("position_ids") else [Piece(component, _rooted(inner))]
    for prefix, component in OPEN_CLIP.items():
        if key.startswith(prefix):
            return _open_clip(component, key.removeprefix(prefix))
    return []


def _rooted(inner: str) -> str:
    return inner if inner.startswith("text_projection") else f"text_model.{inner}"


def _open_clip(component: str, key: str) -> list[Piece]:
    if key in OPEN_CLIP_HEADS:
        return [Piece(component, _rooted(OPEN_CLIP_HEADS[key]))]
    if key == "text_projection":  # SD 2's text encoder has none in diffusers' layout
        return [Piece(component, "text_projection.weight", transposed=True)] if component == "text_encoder_2" else []
    match = re.match(r"transformer\.resblocks\.(\d+)\.(.+)[._](weight|bias)$", key)
    if not match:
        return []
    layer, inner, end = f"text_model.encoder.layers.{match[1]}", match[2], match[3]
    if inner == "attn.in_proj":
        return [Piece(component, f"{layer}.self_attn.{q}_proj.{end}", third) for third, q in enumerate("qkv")]
    return [Piece(component, f"{layer}.{OPEN_CLIP_LAYER[inner]}.{end}")] if inner in OPEN_CLIP_LAYER else []
