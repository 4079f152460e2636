"""Names: the tables against real module lists, real files' key lists (tests/golden) and each other.

The goldens are made anew by `python tests/test_formats.py`, after which `git diff` shows what other tools would notice.
"""

from __future__ import annotations

import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from trainers.errors import AdapterError
from trainers.lora.formats import DIFFUSERS_HEADER, FORMATS, diffusers_path, kohya_path, unflatten
from trainers.lora.pair import LoraPair

HERE = Path(__file__).parent
GOLDEN = {name: HERE / "golden" / f"{name}_sd15_attention_ff_r8.json" for name in FORMATS}
THEIRS = HERE.parents[1] / "shared" / "golden" / "kohya_sd15_unet_r8.json"  # made by kohya-ss/sd-scripts itself
ATTENTION_FF = re.compile(r"attentions\.\d+\.(proj_in|proj_out|.*(to_[qkv]|to_out\.0|ff\.net\.0\.proj|ff\.net\.2))$")
LINEARS = (nn.Linear, nn.Conv2d)


@cache
def sd15() -> dict[str, Any]:
    """SD 1.5's UNet and text encoder without weights: {component: module}."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8
        )
        text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        return {"unet": unet, "text_encoder": CLIPTextModel(text)}


def canonical(component: str, name: str) -> str:
    level = "text_model." if component == "text_encoder" and not name.startswith("text_model.") else ""
    return f"{component}.{level}{name}"


def modules() -> dict[str, Any]:
    found = {canonical(c, name): m for c, model in sd15().items() for name, m in model.named_modules() if name}
    found.pop("text_encoder.text_model.text_model", None)  # transformers 4 has the level itself
    return found


def pair_for(module: nn.Linear | nn.Conv2d, rank: int = 8) -> LoraPair:
    out, *inner = module.weight.shape
    ones = [1] * (len(inner) - 1)
    return LoraPair(torch.empty(rank, *inner, device="meta"), torch.empty(out, rank, *ones, device="meta"), rank)


@cache
def attention_ff() -> dict[str, LoraPair]:
    return {
        path: pair_for(module)
        for path, module in modules().items()
        if isinstance(module, LINEARS) and (path.startswith("text_encoder.") or ATTENTION_FF.search(path))
    }


def written(name: str) -> dict[str, list[int]]:
    tensors, _ = FORMATS[name].write(attention_ff(), torch.float16)
    return {key: list(tensor.shape) for key, tensor in sorted(tensors.items())}


def small() -> dict[str, LoraPair]:
    def pair(rank: int, alpha: float, seed: int, kernel: tuple[int, ...] = ()) -> LoraPair:
        g = torch.Generator().manual_seed(seed)
        down, up = torch.randn(rank, 6, *kernel, generator=g), torch.randn(5, rank, *[1] * len(kernel), generator=g)
        return LoraPair(down.half(), up.half(), alpha)

    return {
        "text_encoder.text_model.encoder.layers.0.mlp.fc1": pair(2, 3.0, 0),
        "text_encoder.text_model.encoder.layers.1.self_attn.out_proj": pair(2, 2.0, 1),
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0": pair(4, 1.0, 2),
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": pair(4, 0.5, 3),
        "unet.down_blocks.0.resnets.1.conv1": pair(3, 8.0, 4, (3, 3)),
        "unet.mid_block.attentions.0.proj_in": pair(2, 4.0, 5, (1, 1)),
    }


def same(left: dict[str, LoraPair], right: dict[str, LoraPair]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(left[path].down, right[path].down)
        and torch.equal(left[path].up, right[path].up)
        and left[path].alpha == right[path].alpha
        for path in left
    )


def test_every_module_name_of_sd15_comes_back_from_its_flattened_form() -> None:
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
    wrong = {}
    for path in modules():
        component, _, inner = path.partition(".")
        name = prefixes[component] + inner.replace(".", "_")
        if kohya_path(name) != path:
            wrong[name] = kohya_path(name)
    assert len(modules()) > 800
    assert wrong == {}


def test_no_two_modules_of_sd15_share_a_flattened_name() -> None:
    names = [path.replace(".", "_") for path in modules()]
    assert len(names) == len(set(names))


def test_a_word_that_is_not_in_the_table_has_no_path() -> None:
    assert unflatten("mid_block_attentions_0_to_nowhere") is None
    assert unflatten("") is None
    assert kohya_path("lora_unet_double_blocks_0_img_attn_proj") is None


@pytest.mark.parametrize("name", FORMATS)
def test_written_keys_and_shapes_are_the_golden_ones(name: str) -> None:
    golden = json.loads(GOLDEN[name].read_text())
    assert written(name) == golden
    assert len(golden) == 264 * (3 if name == "kohya" else 2)


def test_the_unet_part_is_what_kohya_itself_writes() -> None:
    if not THEIRS.exists():
        pytest.skip(f"no {THEIRS}: kohya's own key list isn't beside this checkout")
    theirs = json.loads(THEIRS.read_text())
    assert {key: shape for key, shape in written("kohya").items() if key.startswith("lora_unet_")} == theirs


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_detects_its_own_golden_and_no_other(name: str) -> None:
    keys = {other: json.loads(GOLDEN[other].read_text()).keys() for other in FORMATS}
    assert {other: FORMATS[name].detect(keys[other]) for other in FORMATS} == {o: o == name for o in FORMATS}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "key",
    [
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "blk.0.attn_q.weight.lora_a",
        "model.diffusion_model.input_blocks.0.0.weight",
        "down_blocks.0.resnets.0.conv1.weight",
        "unet.down_blocks.0.resnets.0.conv1.weight",
        "unet:0:up",
    ],
)
def test_no_format_claims_a_foreign_file(name: str, key: str) -> None:
    assert not FORMATS[name].detect([key])


@pytest.mark.parametrize("name", FORMATS)
def test_reading_what_was_written_gives_the_same_pairs(name: str) -> None:
    assert same(FORMATS[name].read(*FORMATS[name].write(small(), torch.float16)), small())


def test_kohya_to_diffusers_to_kohya_is_bit_for_bit() -> None:
    kohya, diffusers = FORMATS["kohya"], FORMATS["diffusers"]
    first, extra = kohya.write(small(), torch.float16)
    middle = diffusers.read(*diffusers.write(kohya.read(first, extra), torch.float16))
    last, _ = kohya.write(middle, torch.float16)
    assert first.keys() == last.keys()
    assert all(torch.equal(first[key], last[key]) and first[key].dtype == last[key].dtype for key in first)


def test_kohya_without_alpha_means_alpha_is_the_rank() -> None:
    tensors = {key: t for key, t in FORMATS["kohya"].write(small(), torch.float16)[0].items() if "alpha" not in key}
    assert {pair.alpha / pair.rank for pair in FORMATS["kohya"].read(tensors, {}).values()} == {1.0}


def test_an_alpha_that_half_precision_would_round_is_kept_in_float32() -> None:
    alpha = 8 * math.sqrt(32)
    pair = LoraPair(torch.ones(32, 4), torch.ones(4, 32), alpha)
    tensors, _ = FORMATS["kohya"].write({"unet.conv_in": pair, "unet.conv_out": small().popitem()[1]}, torch.bfloat16)
    assert tensors["lora_unet_conv_in.alpha"].dtype == torch.float32
    assert tensors["lora_unet_conv_in.alpha"].item() == pytest.approx(alpha, rel=1e-7)
    assert tensors["lora_unet_conv_out.alpha"].dtype == torch.bfloat16


def test_two_text_encoders_are_te1_and_te2() -> None:
    pair = LoraPair(torch.ones(1, 2), torch.ones(2, 1), 1.0)
    inner = "text_model.encoder.layers.0.self_attn.q_proj"
    pairs = {f"text_encoder.{inner}": pair, f"text_encoder_2.{inner}": pair}
    tensors, extra = FORMATS["kohya"].write(pairs, torch.float16)
    assert {key.split("_text_")[0] for key in tensors} == {"lora_te1", "lora_te2"}
    assert FORMATS["kohya"].read(tensors, extra).keys() == pairs.keys()


UNET_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
TEXT = "text_encoder.text_model.encoder.layers.0"


@pytest.mark.parametrize(
    ("key", "path"),
    [
        (f"unet.{UNET_Q}.to_q.lora_A.weight", f"unet.{UNET_Q}.to_q"),
        (f"unet.{UNET_Q}.to_q.lora.down.weight", f"unet.{UNET_Q}.to_q"),
        (f"unet.{UNET_Q}.to_out.0.lora.down.weight", f"unet.{UNET_Q}.to_out.0"),
        (f"unet.{UNET_Q}.processor.to_q_lora.down.weight", f"unet.{UNET_Q}.to_q"),
        (f"unet.{UNET_Q}.processor.to_out_lora.down.weight", f"unet.{UNET_Q}.to_out.0"),
        (f"{UNET_Q}.processor.to_k_lora.down.weight", f"unet.{UNET_Q}.to_k"),
        (f"{TEXT}.self_attn.q_proj.lora_linear_layer.down.weight", f"{TEXT}.self_attn.q_proj"),
        (f"{TEXT}.mlp.fc1.lora_linear_layer.down.weight", f"{TEXT}.mlp.fc1"),
        (f"{TEXT}.self_attn.to_q_lora.down.weight", f"{TEXT}.self_attn.q_proj"),
        (f"{TEXT}.self_attn.to_out_lora.down.weight", f"{TEXT}.self_attn.out_proj"),
        (f"{TEXT}.self_attn.q_proj.lora_A.weight", f"{TEXT}.self_attn.q_proj"),
        ("text_encoder.encoder.layers.0.self_attn.q_proj.lora_A.weight", f"{TEXT}.self_attn.q_proj"),
        (
            f"{TEXT.replace('encoder.', 'encoder_2.', 1)}.mlp.fc2.lora_A.weight",
            "text_encoder_2" + TEXT[12:] + ".mlp.fc2",
        ),
    ],
)
def test_every_spelling_of_diffusers_history_is_read(key: str, path: str) -> None:
    swapped = {"lora_A": "lora_B", ".down.": ".up."}
    other = next(key.replace(old, new) for old, new in swapped.items() if old in key)
    tensors = {key: torch.ones(2, 3), other: torch.ones(4, 2)}
    assert FORMATS["diffusers"].detect(tensors)
    [(found, pair)] = FORMATS["diffusers"].read(tensors, {}).items()
    assert found == path
    assert (pair.down.shape, pair.up.shape, pair.alpha) == ((2, 3), (4, 2), 2.0)


def test_diffusers_paths_of_sd15_are_themselves() -> None:
    linears = [path for path, module in modules().items() if isinstance(module, LINEARS)]
    assert [path for path in linears if diffusers_path(path) != path] == []


def with_header(**fields: object) -> LoraPair:
    key = f"unet.{UNET_Q}.to_q"
    tensors = {f"{key}.lora_A.weight": torch.ones(4, 3), f"{key}.lora_B.weight": torch.ones(3, 4)}
    header = json.dumps({f"unet.{name}": value for name, value in fields.items()})
    return FORMATS["diffusers"].read(tensors, {DIFFUSERS_HEADER: header})[key]


def test_diffusers_alpha_comes_from_the_header() -> None:
    assert with_header(r=4, lora_alpha=2).scale == 0.5
    assert with_header().scale == 1.0
    assert with_header(lora_alpha=8, use_rslora=True).scale == pytest.approx(8 / math.sqrt(4))
    assert with_header(lora_alpha=2, alpha_pattern={f"^{UNET_Q}.to_q": 6}).alpha == 6.0
    assert with_header(lora_alpha=2, alpha_pattern={r"attn\d.to_[qk]": 6}).alpha == 6.0
    assert with_header(lora_alpha=2, alpha_pattern={"to_k": 6}).alpha == 2.0


@pytest.mark.parametrize("header", ["{", "[1]", '{"unet.lora_alpha": "much"}', '{"unet.alpha_pattern": {"(": 1}}'])
def test_a_broken_header_is_a_fault_and_not_a_guess(header: str) -> None:
    tensors, _ = FORMATS["diffusers"].write(small(), torch.float16)
    with pytest.raises(AdapterError, match=DIFFUSERS_HEADER):
        FORMATS["diffusers"].read(tensors, {DIFFUSERS_HEADER: header})


def test_the_header_speaks_of_every_component_in_the_file() -> None:
    _, extra = FORMATS["diffusers"].write(small(), torch.float16)
    header = json.loads(extra[DIFFUSERS_HEADER])
    assert {key.split(".")[0] for key in header} == {"unet", "text_encoder"}
    assert header["text_encoder.r"] == 2
    assert not [name for name in header["text_encoder.target_modules"] if "text_model" in name]


def test_reading_lists_all_faults_of_a_kohya_file_at_once() -> None:
    tensors, _ = FORMATS["kohya"].write(small(), torch.float16)
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    del tensors[f"{stem}.lora_up.weight"]
    tensors["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"][0, 0] = torch.nan
    tensors |= {"lora_unet_conv_in.hada_w1_a": torch.ones(1), "lora_unet_input_blocks_4_1_proj_in.alpha": torch.ones(1)}
    tensors |= {"bundle_emb.<ink>.clip_l": torch.ones(1)}
    with pytest.raises(AdapterError) as caught:
        FORMATS["kohya"].read(tensors, {})
    text = "\n".join(caught.value.faults)
    assert len(caught.value.faults) == 4
    for part in ("lacks up", "NaN or Inf in down", "LoHa", "SDXL's original (sgm) names"):
        assert part in text


@pytest.mark.parametrize("name", FORMATS)
def test_a_path_that_could_not_be_read_back_is_not_written(name: str) -> None:
    pair = LoraPair(torch.ones(1, 2), torch.ones(2, 1), 1.0)
    with pytest.raises(AdapterError, match="vision"):
        FORMATS[name].write({"vision.tower": pair}, torch.float16)


if __name__ == "__main__":
    for golden_name, golden_path in GOLDEN.items():
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(shape)}" for key, shape in written(golden_name).items())
        golden_path.write_text(f"{{\n{lines}\n}}\n")
