"""PEFT folders: peft itself loads what is written, and every setting that can't be honoured is a fault."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainers.errors import AdapterError
from trainers.lora.fit import canonical
from trainers.lora.formats import FORMATS, Grouped, foreign_kind, peft
from trainers.lora.pair import LoraPair, Pairs

PLAIN = {"peft_type": "LORA", "lora_alpha": 8, "r": 4}
LAYER = "text_model.encoder.layers.0.mlp.fc1"
TARGETS = ("to_q", "to_out.0", "ff.net.2", "proj_in", "conv1", "time_emb_proj", "q_proj", "fc1")


def models() -> dict[str, Any]:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = CLIPTextConfig(**sizes, max_position_embeddings=8, bos_token_id=1, eos_token_id=2)
    unet: Any = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    encoders = {"text_encoder": CLIPTextModel(config), "text_encoder_2": CLIPTextModelWithProjection(config)}
    return {name: model.eval() for name, model in {"unet": unet, **encoders}.items()}


def adapter_for(parts: dict[str, Any]) -> Pairs:
    """Pairs for many modules of every model, each with its own rank and alpha."""
    g = torch.Generator().manual_seed(1)
    pairs: Pairs = {}
    for component, model in parts.items():
        for path, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and path.endswith(TARGETS):
                n = len(pairs)
                out, *inner = module.weight.shape
                rank, alpha = (4, 2, 3)[n % 3], (3.0, 1 / 3, 8.0, 0.1)[n % 4]
                down = torch.randn(rank, *inner, generator=g) / 4
                up = torch.randn(out, rank, *[1] * (len(inner) - 1), generator=g) / 4
                pairs[canonical(component, path)] = LoraPair(down, up, alpha)
    return pairs


@torch.no_grad()
def output(component: str, model: Any) -> Tensor:
    g = torch.Generator().manual_seed(2)
    if component == "unet":
        return model(torch.randn(1, 4, 8, 8, generator=g), 10, torch.randn(1, 5, 16, generator=g)).sample
    return model(torch.randint(3, 40, (1, 8), generator=g)).last_hidden_state


def summed(component: str, model: Any, pairs: Pairs) -> Any:
    model = copy.deepcopy(model)
    for path, module in model.named_modules():
        if found := pairs.get(canonical(component, path)):
            module.weight.data += found.delta()
    return model


def save(folder: Path, parts: peft.Parts) -> None:
    for name, (tensors, config) in parts.items():
        (folder / name).mkdir(parents=True)
        save_file(tensors, folder / name / peft.TENSORS_FILE)
        (folder / name / peft.CONFIG_FILE).write_text(json.dumps(config))


def load(folder: Path, *names: str) -> Grouped:
    return peft.group_folder(
        {
            n: (load_file(folder / n / peft.TENSORS_FILE), json.loads((folder / n / peft.CONFIG_FILE).read_text()))
            for n in names
        }
    )


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_peft_itself_loads_every_subfolder_and_adds_the_same_deltas(tmp_path: Path) -> None:
    from peft import PeftModel

    parts = models()
    pairs = adapter_for(parts)
    save(tmp_path, peft.write_folder(pairs, torch.float32))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(parts)
    for component, model in parts.items():
        wanted, bare = output(component, summed(component, model, pairs)), output(component, model)
        loaded = PeftModel.from_pretrained(model, tmp_path / component)
        torch.testing.assert_close(output(component, loaded), wanted, rtol=1e-4, atol=1e-4)
        assert (wanted - bare).abs().max() > 0.02


@pytest.mark.parametrize("dora", [False, True])
def test_what_peft_itself_saves_is_read_and_written_alike(tmp_path: Path, dora: bool) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4, lora_alpha=3, target_modules=["to_q", "to_k"], rank_pattern={"to_k": 2}, alpha_pattern={"attn1.to_k": 5},
        use_rslora=True, use_dora=dora,
    )  # fmt: skip
    model = get_peft_model(models()["unet"], config)
    model.save_pretrained(tmp_path)
    grouped = load(tmp_path, "")
    assert (grouped.faults, grouped.unknown) == ([], [])
    for path, found in grouped.modules.items():
        layer = model.get_submodule("base_model.model." + path.removeprefix("unet."))
        assert found.keys() == {"down", "up", *(["dora_scale"] if dora else [])}
        rank = len(found["down"])
        assert grouped.alpha_of(path, rank) / rank == pytest.approx(layer.scaling["default"], rel=1e-15)
    if not dora:
        pairs = {
            p: LoraPair(f["down"], f["up"], grouped.alpha_of(p, len(f["down"]))) for p, f in grouped.modules.items()
        }
        tensors, _ = peft.write_folder(pairs, torch.float32)["unet"]
        theirs = load_file(tmp_path / peft.TENSORS_FILE)
        assert tensors.keys() == theirs.keys()
        assert all(torch.equal(tensors[key], theirs[key]) for key in theirs)


def test_a_language_models_folder_is_the_folder_itself() -> None:
    path = "model.layers.0.self_attn.q_proj"
    key = f"base_model.model.{path}.lora_A.weight"
    grouped = peft.group_folder({"": ({key: torch.ones(4, 2)}, PLAIN)})
    assert grouped.keys == {f"model.{path}": {"down": key}}
    parts = peft.write_folder({f"model.{path}": LoraPair(torch.ones(1, 2), torch.ones(2, 1), 1.0)}, torch.float16)
    assert parts.keys() == {""}
    assert key in parts[""][0]
    assert parts[""][1]["task_type"] == "CAUSAL_LM"
    mixed = dict.fromkeys((f"model.{path}", "unet.conv_in"), LoraPair(torch.ones(1, 2), torch.ones(2, 1), 1.0))
    with pytest.raises(AdapterError, match="without unet"):
        peft.write_folder(mixed, torch.float16)


@pytest.mark.parametrize(
    ("paths", "kind", "component"),
    [
        (["mid_block.attentions.0.proj_in"], None, "unet"),
        (["time_embedding.linear_1"], None, "unet"),
        (["encoder.layers.0.mlp.fc1"], None, "text_encoder"),
        ([LAYER], None, "text_encoder"),
        ([LAYER], "CLIPTextModelWithProjection", "text_encoder_2"),
        (["model.layers.0.mlp.up_proj"], "LlamaForCausalLM", "model"),
        (["transformer.h.0.attn.c_attn"], None, "model"),
    ],
)
def test_whose_adapter_a_lone_folder_is(paths: list[str], kind: str | None, component: str) -> None:
    assert peft.component_of(paths, {"auto_mapping": kind and {"base_model_class": kind}}) == component


def test_a_subfolders_name_is_its_component_and_stands_in_the_keys() -> None:
    tensors = {f"base_model.model.{LAYER}.lora_A.weight": torch.ones(4, 2)}
    grouped = peft.group_folder(
        {"text_encoder_2": (tensors, PLAIN), "text_encoder": (tensors, PLAIN | {"lora_alpha": 2})}
    )
    assert grouped.modules.keys() == {f"text_encoder.{LAYER}", f"text_encoder_2.{LAYER}"}
    assert grouped.keys[f"text_encoder.{LAYER}"]["down"] == f"text_encoder/base_model.model.{LAYER}.lora_A.weight"
    assert [grouped.alpha_of(f"{part}.{LAYER}", 4) for part in ("text_encoder", "text_encoder_2")] == [2.0, 8.0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peft_type", "LOHA"),
        ("bias", "lora_only"),
        ("modules_to_save", ["conv_out"]),
        ("fan_in_fan_out", True),
        ("init_lora_weights", "pissa_niter_4"),
        ("lora_bias", True),
        ("alpha_pattern", {"(": 1}),
        ("lora_alpha", None),
    ],
)
def test_a_setting_that_cannot_be_honoured_is_a_fault_with_its_name(field: str, value: object) -> None:
    faults = peft.group_folder({"unet": ({}, PLAIN | {field: value})}).faults
    assert len(faults) == 1
    assert faults[0].startswith("unet/adapter_config.json: ")
    assert field.removesuffix("_pattern") in faults[0]


def test_all_faults_of_a_folder_are_named_at_once() -> None:
    tensors = {f"base_model.model.conv_in.{part}": torch.ones(1) for part in ("lora_A.weight", "weight", "lora_B.bias")}
    grouped = peft.group_folder({"unet": (tensors, {}), "default": (tensors, PLAIN | {"bias": "all"})})
    text = "\n".join([*grouped.faults, *grouped.doubled.values()])
    for part in (
        "peft_type is missing",
        "lora_alpha is missing",
        "bias is 'all'",
        "second adapter of the unet",
        "twice",
    ):
        assert part in text
    assert {foreign_kind(key) for key in grouped.unknown} == {
        "whole modules or biases of a PEFT folder, not LoRA",
        "LoRA with a bias",
    }


def test_a_tensors_file_without_its_folder_is_refused_and_none_is_written() -> None:
    tensors = {"base_model.model.conv_in.lora_A.weight": torch.ones(4, 2)}
    grouped = FORMATS["peft"].group(tensors, {})
    assert grouped.modules.keys() == {"unet.conv_in"}
    assert "adapter_config.json" in grouped.faults[0]
    with pytest.raises(AdapterError, match="is a folder"):
        FORMATS["peft"].write({}, torch.float16)
