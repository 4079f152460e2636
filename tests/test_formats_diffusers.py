"""diffusers' names: every spelling of their history, and scales that stand in the header."""

from __future__ import annotations

import json
import math

import pytest
import torch

from trainers.lora.formats import diffusers
from trainers.lora.formats.diffusers import DIFFUSERS_HEADER
from trainers.lora.pair import LoraPair

Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
TEXT = "text_encoder.text_model.encoder.layers.0"
TEXT_2 = "text_encoder_2.text_model.encoder.layers.0"


@pytest.mark.parametrize(
    ("key", "path", "role"),
    [
        (f"unet.{Q}.to_q.lora_A.weight", f"unet.{Q}.to_q", "down"),
        (f"unet.{Q}.to_q.lora_B.weight", f"unet.{Q}.to_q", "up"),
        (f"unet.{Q}.to_q.lora.down.weight", f"unet.{Q}.to_q", "down"),
        (f"unet.{Q}.to_out.0.lora.up.weight", f"unet.{Q}.to_out.0", "up"),
        (f"unet.{Q}.processor.to_q_lora.down.weight", f"unet.{Q}.to_q", "down"),
        (f"unet.{Q}.processor.to_out_lora.down.weight", f"unet.{Q}.to_out.0", "down"),
        (f"{Q}.processor.to_k_lora.down.weight", f"unet.{Q}.to_k", "down"),
        (f"unet.{Q}.to_q.alpha", f"unet.{Q}.to_q", "alpha"),
        (f"unet.{Q}.to_q.lora_magnitude_vector", f"unet.{Q}.to_q", "dora_scale"),
        (f"unet.{Q}.to_q.lora_magnitude_vector.weight", f"unet.{Q}.to_q", "dora_scale"),
        (f"{TEXT}.self_attn.q_proj.lora_linear_layer.down.weight", f"{TEXT}.self_attn.q_proj", "down"),
        (f"{TEXT}.mlp.fc1.lora_linear_layer.up.weight", f"{TEXT}.mlp.fc1", "up"),
        (f"{TEXT}.self_attn.to_q_lora.down.weight", f"{TEXT}.self_attn.q_proj", "down"),
        (f"{TEXT}.self_attn.to_out_lora.down.weight", f"{TEXT}.self_attn.out_proj", "down"),
        ("text_encoder.encoder.layers.0.self_attn.q_proj.lora_A.weight", f"{TEXT}.self_attn.q_proj", "down"),
        (f"{TEXT_2}.mlp.fc2.lora_A.weight", f"{TEXT_2}.mlp.fc2", "down"),
        ("text_encoder_2.text_projection.lora_A.weight", "text_encoder_2.text_projection", "down"),
    ],
)
def test_every_spelling_of_diffusers_history_has_its_place(key: str, path: str, role: str) -> None:
    assert diffusers.place(key) == (path, role)
    assert diffusers.detect([key]) is (role != "alpha")


@pytest.mark.parametrize(
    "key", ["unet.lora_A.weight", "vae.conv_in.lora_A.weight", f"unet.{Q}.to_q.weight", "lora_A.weight"]
)
def test_what_names_no_module_or_role_has_no_place(key: str) -> None:
    assert diffusers.place(key) is None


def alpha(rank: int = 4, path: str = f"unet.{Q}.to_q", **fields: object) -> float:
    header = json.dumps({f"unet.{name}": value for name, value in fields.items()})
    return diffusers.group({}, {DIFFUSERS_HEADER: header}).alpha_of(path, rank)


def test_alpha_comes_from_the_header_and_is_the_rank_without_one() -> None:
    assert alpha(r=4, lora_alpha=2) == 2.0
    assert alpha() == 4.0
    assert alpha(lora_alpha=2, path=f"{TEXT}.mlp.fc1") == 4.0
    assert alpha(lora_alpha=8, use_rslora=True) == 8 * math.sqrt(4)
    assert alpha(lora_alpha=2, alpha_pattern={f"^{Q}.to_q": 6}) == 6.0
    assert alpha(lora_alpha=2, alpha_pattern={r"attn\d.to_[qk]": 6}) == 6.0
    assert alpha(lora_alpha=2, alpha_pattern={"to_k": 6}) == 2.0


@pytest.mark.parametrize("header", ["{", "[1]", '{"unet.lora_alpha": "much"}', '{"unet.alpha_pattern": {"(": 1}}'])
def test_a_broken_header_is_a_fault_and_not_a_guess(header: str) -> None:
    [fault] = diffusers.group({}, {DIFFUSERS_HEADER: header}).faults
    assert DIFFUSERS_HEADER in fault


def test_the_header_speaks_of_every_component_in_the_file() -> None:
    pairs = {f"unet.{Q}.to_q": LoraPair(torch.ones(4, 3), torch.ones(3, 4), 1.0)}
    pairs |= {f"{TEXT}.mlp.fc1": LoraPair(torch.ones(2, 3), torch.ones(3, 2), 0.5)}
    pairs |= {f"{TEXT}.mlp.fc2": LoraPair(torch.ones(2, 3), torch.ones(3, 2), 4.0)}
    _, extra = diffusers.write(pairs, torch.float16)
    header = json.loads(extra[DIFFUSERS_HEADER])
    assert {key.split(".")[0] for key in header} == {"unet", "text_encoder"}
    assert (header["text_encoder.r"], header["unet.lora_alpha"]) == (2, 1.0)
    assert header["text_encoder.target_modules"] == ["encoder.layers.0.mlp.fc1", "encoder.layers.0.mlp.fc2"]
    assert header["text_encoder.alpha_pattern"] == {"encoder.layers.0.mlp.fc2": 4.0}  # no "^": live paths may be longer
