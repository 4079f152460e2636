"""The original names of a UNet's parts: as diffusers' own conversion of single files has them, and back."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from bases import SD2, SD15, SDXL, linears, unet

from trainers.lora.formats import sgm

ONE_A_LEVEL = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 32,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
BASES = {"sd15": SD15, "sd2": SD2, "sdxl": SDXL, "one a level": ONE_A_LEVEL}


@cache
def model(base: str) -> Any:
    return unet(BASES[base])


@pytest.mark.parametrize("base", BASES)
def test_every_weight_has_the_name_that_diffusers_conversion_expects_and_comes_back(base: str) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    names = list(model(base).state_dict())
    layout = sgm.layout_of(names)
    original = {str(sgm.to_original(name, layout)): name for name in names}
    checkpoint = {sgm.CHECKPOINT_PREFIX + theirs: ours for theirs, ours in original.items()}
    assert len(original) == len(names)
    assert convert_ldm_unet_checkpoint(checkpoint, dict(model(base).config)) == {name: name for name in names}
    assert {theirs: sgm.from_original(theirs, layout.per_level) for theirs in original} == original


@pytest.mark.parametrize("base", BASES)
def test_module_paths_are_mapped_as_their_weights_are(base: str) -> None:
    for path in linears(model(base)):
        assert sgm.to_original(f"{path}.weight") == f"{sgm.to_original(path)}.weight"
        assert sgm.from_original(str(sgm.to_original(path))) == path or base == "one a level"


def test_layouts_of_the_known_bases() -> None:
    assert sgm.layout_of(linears(model("sd15"))) == sgm.SD
    assert sgm.layout_of(linears(model("sd2"))) == sgm.SD
    assert sgm.layout_of(linears(model("one a level"))) == sgm.Layout(1, frozenset({0}))
    assert sgm.layout_of([]) == sgm.SDXL
    paths = list(linears(model("sdxl")))
    assert [sgm.to_original(path, sgm.layout_of(paths)) for path in paths] == [sgm.to_original(path) for path in paths]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
            "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
        ),
        ("down_blocks.0.resnets.0.conv1", "input_blocks.1.0.in_layers.2"),
        ("down_blocks.1.resnets.0.conv_shortcut", "input_blocks.4.0.skip_connection"),
        ("down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
        ("mid_block.attentions.0.proj_in", "middle_block.1.proj_in"),
        ("mid_block.resnets.1.time_emb_proj", "middle_block.2.emb_layers.1"),
        ("up_blocks.0.attentions.1.norm", "output_blocks.1.1.norm"),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
        ("conv_in", "input_blocks.0.0"),
        ("conv_out.bias", "out.2.bias"),
        ("add_embedding.linear_2", "label_emb.0.2"),
    ],
)
def test_names_of_sdxl_by_hand(ours: str, theirs: str) -> None:
    assert sgm.to_original(ours) == theirs
    assert sgm.from_original(theirs) == ours


@pytest.mark.parametrize(
    "name",
    [
        "",
        "conv",
        "down_blocks",
        "down_blocks.0.resnets.0.conv3",
        "input_blocks.0.0",
        "vae.x",
        "down_blocks.0.resnets.2.conv1",
        "up_blocks.0.resnets.3.conv1",
    ],
)
def test_what_the_original_lacks_has_no_original_name(name: str) -> None:
    assert sgm.to_original(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        "conv_in",
        "input_blocks.0.1.proj_in",
        "input_blocks.4.2.proj_in",
        "middle_block.3.x",
        "output_blocks.0.2.conv",
    ],
)
def test_names_that_are_not_original_ones(name: str) -> None:
    assert sgm.from_original(name) is None


def test_an_upsampler_takes_the_place_of_attention_where_a_level_has_none() -> None:
    conv = "upsamplers.0.conv.weight"
    assert sgm.to_original(f"up_blocks.0.{conv}", sgm.SD) == "output_blocks.2.1.conv.weight"
    assert sgm.to_original(f"up_blocks.1.{conv}", sgm.SD) == "output_blocks.5.2.conv.weight"
    assert sgm.from_original("output_blocks.2.1.conv.weight") == f"up_blocks.0.{conv}"
