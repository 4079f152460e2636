"""The family is told by sizes, else by the header, and not guessed where neither speaks."""

from __future__ import annotations

import pytest
import torch

from trainers.lora.family import FAMILIES, family_of, is_text, shapes_of
from trainers.lora.pair import LoraPair

CROSS = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(("width", "family"), [(768, "sd1"), (1024, "sd2"), (2048, "sdxl"), (32, "")])
def test_the_width_of_the_words(width: int, family: str) -> None:
    assert family_of({CROSS: (1280, width), "unet.conv_in": (320, 4, 3, 3)}) == family
    assert family in (*FAMILIES, "")


def test_text_encoders() -> None:
    assert family_of({TEXT: (768, 768)}) == "sd1"
    assert family_of({TEXT: (1024, 1024)}) == "sd2"
    assert family_of({TEXT: (768, 768), TEXT.replace("encoder.", "encoder_2.", 1): (1280, 1280)}) == "sdxl"
    assert family_of({TEXT: (768, 768), CROSS: (640, 2048)}) == "sdxl"


@pytest.mark.parametrize(
    ("metadata", "family"),
    [
        ({"ss_base_model_version": "sd_v2_v"}, "sd2"),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "sdxl"),
        ({"modelspec.architecture": "stable-diffusion-v1/lora"}, "sd1"),
        ({"ss_base_model_version": "flux1"}, ""),
        ({}, ""),
    ],
)
def test_the_header_speaks_where_sizes_do_not(metadata: dict[str, str], family: str) -> None:
    assert family_of({CROSS: (64, 32)}, metadata) == family
    assert family_of({CROSS: (640, 768)}, metadata) == "sd1"


def test_shapes_of_pairs() -> None:
    pair = LoraPair(torch.ones(2, 4, 3, 3), torch.ones(8, 2, 1, 1), 1.0)
    assert shapes_of({"unet.conv_in": pair}) == {"unet.conv_in": (8, 4, 3, 3)}


def test_a_language_model_is_none_of_them() -> None:
    paths = {"model.model.layers.0.self_attn.q_proj": (768, 768)}  # as wide as CLIP
    assert family_of(paths, {"ss_base_model_version": "sd_v1"}) == "lm"
    assert (is_text(paths), is_text([TEXT, CROSS])) == (True, False)


def test_language_models() -> None:
    assert family_of({"model.model.layers.0.self_attn.q_proj": (768, 768)}) == "lm"
    assert family_of({}, {"stylora.kind": "text"}) == "lm"
