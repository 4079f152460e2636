"""kohya's names: SDXL's two namings, alphas, faults, and the same effect in diffusers' own loader."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from bases import SDXL

from trainers.errors import AdapterError
from trainers.lora.formats import kohya
from trainers.lora.pair import LoraPair

FC1 = "text_model.encoder.layers.0.mlp.fc1"


def pair(alpha: float = 1.0, rank: int = 1) -> LoraPair:
    return LoraPair(torch.ones(rank, 2), torch.ones(2, rank), alpha)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("lora_unet_input_blocks_4_1_proj_in", "unet.down_blocks.1.attentions.0.proj_in"),
        ("lora_unet_down_blocks_1_attentions_0_proj_in", "unet.down_blocks.1.attentions.0.proj_in"),
        ("lora_unet_output_blocks_2_2_conv", "unet.up_blocks.0.upsamplers.0.conv"),
        ("lora_unet_out_2", "unet.conv_out"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", f"text_encoder.{FC1}"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", f"text_encoder.{FC1}"),
        ("lora_te_encoder_layers_0_mlp_fc1", f"text_encoder.{FC1}"),  # by LyCORIS with transformers 5
        ("lora_te2_text_projection", "text_encoder_2.text_projection"),
        ("lora_unet_double_blocks_0_img_attn_proj", None),
        ("lora_vae_conv_in", None),
    ],
)
def test_paths_of_names(name: str, path: str | None) -> None:
    assert kohya.kohya_path(name) == path


@pytest.mark.parametrize(
    "path",
    [
        f"text_encoder_2.{FC1}",
        "unet.up_blocks.0.attentions.1.transformer_blocks.9.attn1.to_q",
        "unet.add_embedding.linear_1",
    ],
)
def test_what_only_sdxl_has_is_written_by_its_original_names(path: str) -> None:
    tensors, _ = kohya.write({path: pair(), "unet.mid_block.attentions.0.proj_in": pair()}, torch.float16)
    assert "lora_unet_middle_block_1_proj_in.alpha" in tensors


def test_words_of_2048_numbers_are_sdxls() -> None:
    path = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    wide, narrow = (LoraPair(torch.ones(1, width), torch.ones(2, 1), 1.0) for width in (2048, 768))
    assert (kohya.is_sdxl({path: wide}), kohya.is_sdxl({path: narrow})) == (True, False)


def test_two_text_encoders_are_te1_and_te2() -> None:
    pairs = {f"text_encoder.{FC1}": pair(), f"text_encoder_2.{FC1}": pair()}
    tensors, extra = kohya.write(pairs, torch.float16)
    assert {key.split("_text_")[0] for key in tensors} == {"lora_te1", "lora_te2"}
    assert kohya.group(tensors, extra).modules.keys() == pairs.keys()
    alone, _ = kohya.write({f"text_encoder.{FC1}": pair()}, torch.float16)
    assert {key.split("_text_")[0] for key in alone} == {"lora_te"}


def test_without_an_alpha_tensor_alpha_is_the_rank() -> None:
    assert kohya.group({}, {}).alpha_of("unet.conv_in", 4) == 4.0


def test_an_alpha_that_half_precision_would_round_is_kept_in_float32() -> None:
    alpha = 8 * math.sqrt(32)
    tensors, _ = kohya.write({"unet.conv_in": pair(alpha, 32), "unet.conv_out": pair(0.5)}, torch.bfloat16)
    assert tensors["lora_unet_conv_in.alpha"].dtype == torch.float32
    assert tensors["lora_unet_conv_in.alpha"].item() == pytest.approx(alpha, rel=1e-7)
    assert tensors["lora_unet_conv_out.alpha"].dtype == torch.bfloat16


def test_strangers_and_doubles_are_told_apart_and_embeddings_tolerated() -> None:
    keys = ["lora_te_encoder_layers_0_mlp_fc1.alpha", "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha"]
    keys += ["lora_unet_conv_in.w_norm", "lora_unet_nowhere.alpha", "bundle_emb.<ink>.clip_l"]
    grouped = kohya.group({key: torch.ones(1) for key in keys}, {})
    assert grouped.modules.keys() == {f"text_encoder.{FC1}"}
    assert grouped.unknown == ["lora_unet_conv_in.w_norm", "lora_unet_nowhere.alpha"]
    assert grouped.doubled == {
        keys[1]: f"text_encoder.{FC1}: alpha stands in the file twice, the first time as {keys[0]}"
    }
    assert grouped.faults == []


def test_sdxl_levels_with_another_number_of_blocks_have_no_original_name() -> None:
    deep = {
        "unet.down_blocks.0.resnets.2.conv1": pair(),
        "unet.up_blocks.0.attentions.0.transformer_blocks.1.ff.net.2": pair(),
    }
    with pytest.raises(AdapterError, match=r"resnets\.2"):
        kohya.write(deep, torch.float16)


def tiny_sdxl() -> Any:
    """SDXL's UNet in miniature, with the pipeline that loads adapters into it; its text encoders aren't needed."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

    small = {
        "block_out_channels": (8, 16, 16),
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": 16,
    }
    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel(
        **SDXL
        | small
        | {"transformer_layers_per_block": (1, 1, 2), "sample_size": 8}
        | {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 32}
    )
    none: Any = dict.fromkeys(("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    return StableDiffusionXLPipeline(unet=unet.eval(), scheduler=EulerDiscreteScheduler(), **none)


@torch.no_grad()
def output(unet: Any) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    added = {"text_embeds": torch.randn(1, 8, generator=g), "time_ids": torch.ones(1, 6)}
    noise, words = torch.randn(1, 4, 8, 8, generator=g), torch.randn(1, 5, 16, generator=g)
    return unet(noise, 10, words, added_cond_kwargs=added).sample


def test_diffusers_own_loader_finds_sdxls_original_names() -> None:
    pipeline = tiny_sdxl()
    g = torch.Generator().manual_seed(2)
    summed, pairs = copy.deepcopy(pipeline.unet), {}
    for path, module in pipeline.unet.named_modules():
        if path.endswith(
            ("to_q", "to_out.0", "ff.net.2", "proj_in", "conv1", "downsamplers.0.conv", "upsamplers.0.conv")
        ):
            out, *inner = module.weight.shape
            down = torch.randn(2, *inner, generator=g) / 4
            up = torch.randn(out, 2, *[1] * (len(inner) - 1), generator=g) / 4
            pairs[f"unet.{path}"] = one = LoraPair(down, up, 3.0)
            summed.get_submodule(path).weight.data += one.delta()
    tensors, _ = kohya.write(pairs, torch.float32)
    assert {key.split("_")[2] for key in tensors} == {"input", "middle", "output"}
    before = output(pipeline.unet)
    pipeline.load_lora_weights(tensors)
    torch.testing.assert_close(output(pipeline.unet), output(summed), rtol=1e-4, atol=1e-4)
    assert (output(summed) - before).abs().max() > 0.05
