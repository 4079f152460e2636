"""The original names of the real bases' tensors become diffusers' own; what belongs to no pipeline has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bases
import pytest
import torch
from checkpoints import RESBLOCK, single_file

from studio.merge.weights import open_base
from trainers.lora.formats.sgm import layout_of, to_original
from trainers.single_file import Piece, pieces


@pytest.mark.parametrize("config", [bases.SD15, bases.SD2, bases.SDXL], ids=["sd15", "sd2", "sdxl"])
def test_every_tensor_of_the_unet(config: dict[str, Any]) -> None:
    names = list(bases.unet(config).state_dict())
    layout = layout_of(names)
    originals = {f"model.diffusion_model.{to_original(name, layout)}": name for name in names}
    assert len(originals) == len(names)
    assert pieces(originals) == {key: [Piece("unet", name)] for key, name in originals.items()}


@pytest.mark.parametrize(
    ("prefix", "component"),
    [("cond_stage_model.transformer.", "text_encoder"), ("conditioner.embedders.0.transformer.", "text_encoder")],
)
def test_clip_keeps_its_names_with_and_without_their_root(prefix: str, component: str) -> None:
    name = "text_model.encoder.layers.3.mlp.fc1.weight"
    for inner in (name, name.removeprefix("text_model.")):
        assert pieces([prefix + inner]) == {prefix + inner: [Piece(component, name)]}
    assert pieces([f"{prefix}text_model.embeddings.position_ids"]) == {}


@pytest.mark.parametrize(
    ("prefix", "component"),
    [("cond_stage_model.model.", "text_encoder"), ("conditioner.embedders.1.model.", "text_encoder_2")],
)
def test_open_clip(prefix: str, component: str) -> None:
    layer = f"{prefix}transformer.resblocks.7."
    fused = pieces([f"{layer}attn.in_proj_weight", f"{layer}attn.in_proj_bias"])
    root = "text_model.encoder.layers.7"
    for end in ("weight", "bias"):
        wanted = [Piece(component, f"{root}.self_attn.{q}_proj.{end}", third) for third, q in enumerate("qkv")]
        assert fused[f"{layer}attn.in_proj_{end}"] == wanted
    for ours, theirs in RESBLOCK.items():
        assert pieces([f"{layer}{theirs}.bias"]) == {f"{layer}{theirs}.bias": [Piece(component, f"{root}.{ours}.bias")]}
    projection = pieces([f"{prefix}text_projection"])
    assert len(projection) == (component == "text_encoder_2")
    assert all(found[0].transposed for found in projection.values())


def test_other_names_have_no_place() -> None:
    names = (
        "betas",
        "model_ema.diffusion_modelout2weight",
        "cond_stage_model.model.logit_scale",
        "unet.conv_in.weight",
        "model.diffusion_model.odd.0.weight",
        "first_stage_model.loss.logvar",
    )
    assert pieces(names) == {}


@pytest.mark.parametrize("open_clip", [False, True])
def test_diffusers_own_reader_agrees(tiny_base: Path, tmp_path: Path, open_clip: bool) -> None:
    """Every tensor that diffusers' from_single_file loads is the one found here."""
    from diffusers import StableDiffusionPipeline

    path = single_file(tiny_base, tmp_path / "one.safetensors", open_clip)
    loaded: Any = StableDiffusionPipeline.from_single_file(
        str(path), config=str(tiny_base), local_files_only=True, safety_checker=None
    )
    found = open_base(path).tensors
    for component in ("unet", "text_encoder", "vae"):
        theirs = dict(getattr(loaded, component).named_parameters())
        root = "text_model." if component == "text_encoder" else ""
        ours = {name for name in found if name.startswith(f"{component}.")}
        assert ours == {f"{component}.{root}{key}" for key in theirs}
        for key, tensor in theirs.items():
            assert torch.equal(found[f"{component}.{root}{key}"].tensor().flatten(), tensor.flatten()), key


def test_a_vae_of_four_levels() -> None:
    names = {
        "decoder.up.3.block.0.nin_shortcut.weight": "decoder.up_blocks.0.resnets.0.conv_shortcut.weight",
        "decoder.up.0.block.2.conv1.bias": "decoder.up_blocks.3.resnets.2.conv1.bias",
        "encoder.down.2.downsample.conv.bias": "encoder.down_blocks.2.downsamplers.0.conv.bias",
        "encoder.norm_out.weight": "encoder.conv_norm_out.weight",
    }
    found = pieces(f"first_stage_model.{key}" for key in names)
    assert found == {f"first_stage_model.{key}": [Piece("vae", name)] for key, name in names.items()}
