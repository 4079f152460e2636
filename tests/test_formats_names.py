"""Flattened names come apart again, and strangers are called by their names."""

from __future__ import annotations

import pytest
from bases import CLIP_L, SD15, SDXL, clip, unet

from trainers.lora.formats.names import foreign_faults, foreign_kind, split_suffix, unflatten
from trainers.lora.formats.sgm import to_original


@pytest.mark.parametrize("model", [unet(SD15), unet(SDXL), clip(CLIP_L)], ids=["sd15", "sdxl", "clip"])
def test_every_module_name_comes_back_from_its_flattened_form(model: object) -> None:
    paths = [path for path, _ in model.named_modules() if path]  # type: ignore[attr-defined]
    paths += [original for path in paths if (original := to_original(path))]
    flat = [path.replace(".", "_") for path in paths]
    assert len(set(flat)) == len(set(paths)) > 100
    assert {name: unflatten(name) for name in flat} == dict(zip(flat, paths, strict=True))


def test_a_word_that_is_not_in_the_table_has_no_path() -> None:
    assert unflatten("mid_block_attentions_0_to_nowhere") is None
    assert unflatten("double_blocks_0_img_attn_proj") is None
    assert unflatten("") is None


def test_a_suffix_has_a_role() -> None:
    assert split_suffix("x.alpha", {".alpha": "alpha"}) == ("x", "alpha")
    assert split_suffix("x.beta", {".alpha": "alpha"}) == ("", "")


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("unet:0:up", "cloneofsimo"),
        ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", "FLUX"),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "FLUX"),
        ("lora_unet_mid_block_attentions_0_norm.w_norm", "normalisation"),
        ("lora_unet_mid_block_attentions_0_proj_in.oft_blocks", "OFT"),
        ("base_model.model.embed_tokens.lora_embedding_A", "embedding"),
        ("base_model.model.q_proj.lora_B.bias", "with a bias"),
        ("base_model.model.score.weight", "whole modules"),
        ("blk.0.attn_q.weight.lora_b", "GGUF"),
    ],
)
def test_what_is_not_read_is_called_by_its_name(key: str, kind: str) -> None:
    assert kind in foreign_kind(key)


def test_faults_count_each_kind() -> None:
    faults = foreign_faults([*(f"unet:{n}:up" for n in range(5)), "some.thing"])
    assert faults == [
        "5 tensors are cloneofsimo's old numbering: unet:0:up, unet:1:up, unet:2:up, …",
        "1 tensors are unknown names: some.thing",
    ]
