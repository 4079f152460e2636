"""Stored names and live ones: what transformers would load where, without loading anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lms import KINDS, VOCABULARY, lm
from safetensors import safe_open
from transformers import AutoModelForCausalLM, HrmTextConfig, MixtralConfig

from trainers.errors import BaseError
from trainers.families.skeleton import Spot, skeleton
from trainers.lora.fit import candidates, weight_shape

SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}


def stored(folder: Path) -> list[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return list(file.keys())


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_live_model_without_its_numbers(tmp_path: Path, kind: str) -> None:
    folder = lm(kind, tmp_path / kind)
    live = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    found = skeleton(folder, stored(folder))
    names = {spot.name for spots in found.tensors.values() for spot in spots}
    assert names | {f"{path}.weight" for path in found.tied} == live.state_dict().keys()
    assert found.layers == {path: weight_shape(module) for path, module in candidates(live).items()}
    assert found.tied == (set() if kind == "qwen" else {"lm_head"})
    assert bool(found.turned) == (kind == "gpt2")


def test_prefixes_come_and_go_and_strangers_are_nothing(tmp_path: Path) -> None:
    folder = lm("gpt2", tmp_path / "gpt2")
    names = ["h.0.ln_1.weight", "transformer.h.0.ln_1.bias", "h.0.attn.bias", "rotary.inv_freq"]
    found = skeleton(folder, names).tensors
    assert found[names[0]] == [Spot("transformer.h.0.ln_1.weight")]
    assert found[names[1]] == [Spot("transformer.h.0.ln_1.bias")]
    assert found[names[2]] == found[names[3]] == []


def test_experts_that_are_fused_are_no_tensors_of_their_own(tmp_path: Path) -> None:
    sizes = {**SIZES, "num_hidden_layers": 1, "num_key_value_heads": 2, "num_local_experts": 2}
    MixtralConfig(**sizes, architectures=["MixtralForCausalLM"]).save_pretrained(tmp_path)
    names = [f"model.layers.0.block_sparse_moe.experts.{k}.w{n}.weight" for k in (0, 1) for n in (1, 2, 3)]
    found = skeleton(tmp_path, [*names, "model.layers.0.self_attn.q_proj.weight"])
    assert all(found.tensors[name] == [] for name in names)
    assert found.tensors["model.layers.0.self_attn.q_proj.weight"]


def test_a_tensor_that_is_cut_is_blocks_of_rows(tmp_path: Path) -> None:
    HrmTextConfig(**SIZES, architectures=["HrmTextForCausalLM"]).save_pretrained(tmp_path)
    (name, *_) = [path for path in skeleton(tmp_path, []).layers if path.endswith("mlp.gate_proj")]
    fused = f"{name.removesuffix('gate_proj')}gate_up_proj.weight"
    up = name.replace("gate_proj", "up_proj")
    assert skeleton(tmp_path, [fused]).tensors[fused] == [Spot(f"{name}.weight", 0, 2), Spot(f"{up}.weight", 1, 2)]


def test_what_has_no_skeleton(tmp_path: Path) -> None:
    folder = lm("llama", tmp_path / "llama")
    config = json.loads((folder / "config.json").read_text())
    for changes, said in (({"quantization_config": {}}, "stored quantised"), ({"model_type": "x"}, "can't be read")):
        (folder / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(BaseError, match=said):
            skeleton(folder, [])
