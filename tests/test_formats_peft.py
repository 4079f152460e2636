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
from trainers.lora import fit, inject
from trainers.lora.adapter import Adapter, AdapterInfo, content_digest, read, save_dora
from trainers.lora.fit import canonical
from trainers.lora.formats import FORMATS, Grouped, foreign_kind, peft
from trainers.lora.gains import Gain
from trainers.lora.pair import LoraPair, Pairs
from trainers.lora.rack import Rack

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
    assert peft.component_of(paths, {"task_type": "CAUSAL_LM"}) == "model"


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


# --- language models --------------------------------------------------------------------------------------------------

LMS = ("llama", "qwen", "gpt2", "gemma")
IDS = torch.arange(3, 43).view(2, 20)
QUIET = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing.*:FutureWarning", "ignore:.*save_embedding_layers.*:UserWarning"
)


@pytest.fixture(scope="module")
def lm_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from tests.lms import lm

    return {kind: lm(kind, tmp_path_factory.mktemp(kind)) for kind in LMS}


def opened(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    out: Tensor = model(IDS).logits
    return out


@torch.no_grad()
def racked(model: Any, adapter: Adapter) -> Tensor:
    with Rack({"model": model}) as rack:
        rack.set([{rack.add(adapter): Gain()}])
        return logits(model)


def trained(model: Any, shape: inject.Shape) -> Pairs:
    """LoRA in all linear layers of the decoder, with numbers; it stays in the model."""
    inject.inject("model", model, inject.targets("model", model, "all-linear"), shape, 0)
    g = torch.Generator().manual_seed(3)
    for name, parameter in inject.trainable("model", model):
        if name.endswith(".up"):
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=g))
        elif name.endswith(".magnitude"):
            parameter.data *= torch.linspace(0.8, 1.3, len(parameter))
    return inject.extract("model", model)


@QUIET
@pytest.mark.parametrize("kind", LMS)
def test_a_language_models_folder_says_in_peft_what_the_rack_says(
    tmp_path: Path, lm_folders: dict[str, Path], kind: str
) -> None:
    from peft import PeftModel

    model = opened(lm_folders[kind])
    pairs = trained(model, inject.Shape(3, 6.0, rslora=True))
    inject.remove(model)
    first = sorted(pairs)[0]  # a rank and an alpha of its own
    pairs[first] = LoraPair(pairs[first].down[:2].clone(), pairs[first].up[:, :2].clone(), 1.25)
    said = {"stylora.base": "owner/some-lm", "stylora.kind": "text"}
    path = Adapter(pairs, AdapterInfo(said)).save(tmp_path / "made", "peft", torch.float32)
    loaded, again = Adapter.load(path), Adapter.load(path / peft.TENSORS_FILE)
    assert content_digest(loaded) == content_digest(Adapter(pairs)) == content_digest(again)
    assert loaded.info.metadata.items() >= said.items()
    config = json.loads((path / peft.CONFIG_FILE).read_text())
    assert (config["task_type"], config["base_model_name_or_path"]) == ("CAUSAL_LM", "owner/some-lm")
    assert config["fan_in_fan_out"] == (kind == "gpt2")
    assert loaded.save(tmp_path / "twice", "peft", torch.float32).is_dir()
    for name in (peft.CONFIG_FILE, peft.TENSORS_FILE):
        assert (path / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()
    wanted = racked(model, loaded)
    assert (wanted - logits(model)).abs().max() > 0.1
    torch.testing.assert_close(logits(PeftModel.from_pretrained(model, path)), wanted, atol=1e-4, rtol=1e-4)


@QUIET
@pytest.mark.parametrize("kind", ["qwen", "gpt2"])
def test_what_peft_saves_of_a_language_model_acts_the_same_in_the_rack(
    tmp_path: Path, lm_folders: dict[str, Path], kind: str
) -> None:
    from peft import LoraConfig, get_peft_model

    targets = ["c_attn", "mlp.c_proj"] if kind == "gpt2" else ["q_proj", "down_proj", "lm_head"]
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=targets, use_rslora=True, task_type="CAUSAL_LM", init_lora_weights=False,
        alpha_pattern={targets[1]: 3}, rank_pattern={targets[0]: 2}, fan_in_fan_out=kind == "gpt2",
    )  # fmt: skip
    model = get_peft_model(opened(lm_folders[kind]), config).eval()
    model.save_pretrained(tmp_path)
    reading = read(tmp_path)
    assert {entry.reason for entry in reading.entries} <= {"", "a copy of the base's own weight"}
    adapter = reading.whole(tmp_path)
    assert all(path.startswith("model.") for path in adapter.pairs)
    assert any(path == "model.lm_head" for path in adapter.pairs) == (kind == "qwen")
    torch.testing.assert_close(racked(opened(lm_folders[kind]), adapter), logits(model), atol=1e-4, rtol=1e-4)


@QUIET
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_trained_dora_is_a_peft_folder_and_converts_with_the_bases_weights(
    tmp_path: Path, lm_folders: dict[str, Path], kind: str
) -> None:
    from peft import PeftModel

    model = opened(lm_folders[kind])
    pairs = trained(model, inject.Shape(3, 6.0, rslora=True, dora=True))
    wanted, magnitudes = logits(model), inject.magnitudes("model", model)
    inject.remove(model)
    base = logits(model)
    assert (wanted - base).abs().max() > 0.1
    path = save_dora(tmp_path / "dora", Adapter(pairs), magnitudes, torch.float32)
    modules = fit.modules({"model": model})
    converted = Adapter.load(path, rank=99, weight_of=lambda name: fit.weight(modules[name]))
    torch.testing.assert_close(racked(model, converted), wanted, atol=1e-3, rtol=1e-3)
    with pytest.raises(AdapterError, match="name the base"):
        Adapter.load(path)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(model, path)), wanted, atol=1e-4, rtol=1e-4)


def test_dora_that_lacks_a_magnitude_is_not_written(tmp_path: Path) -> None:
    pair = LoraPair(torch.ones(1, 2), torch.ones(3, 1), 1.0)
    adapter = Adapter({"model.a": pair, "model.b": pair})
    with pytest.raises(AdapterError) as caught:
        save_dora(tmp_path / "x", adapter, {"model.a": torch.ones(2)})
    assert [fault.split(":")[0] for fault in caught.value.faults] == ["model.a", "model.b"]
    with pytest.raises(AdapterError, match="NaN"):
        save_dora(tmp_path / "x", adapter, dict.fromkeys(adapter.pairs, torch.full((3,), torch.nan)))
    with pytest.raises(AdapterError, match="no magnitudes"):
        save_dora(tmp_path / "x", adapter, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("base", ["/home/me/llama", "./llama", "../llama", "a/b/c", "C:\\llama", ""])
def test_a_path_of_this_machine_is_not_written(base: str) -> None:
    pairs = {"model.a": LoraPair(torch.ones(1, 2), torch.ones(3, 1), 1.0)}
    [(_, config)] = peft.write_folder(pairs, torch.float16, base=base).values()
    assert config["base_model_name_or_path"] is None
    [(_, config)] = peft.write_folder(pairs, torch.float16, base="tiny-lm").values()
    assert config["base_model_name_or_path"] == "tiny-lm"


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_other_formats_refuse_language_models(format: str) -> None:
    pairs = {"model.model.layers.0.mlp.up_proj": LoraPair(torch.ones(1, 2), torch.ones(3, 1), 1.0)}
    with pytest.raises(AdapterError, match="a language model's adapter can't be written") as caught:
        FORMATS[format].write(pairs, torch.float16)
    assert "peft" in caught.value.next_step
