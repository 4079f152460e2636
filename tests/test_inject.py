"""LoRA goes in without a trace, comes out as data, and comes off leaving the very same base."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainers.errors import ConfigError
from trainers.lora import fit, inject
from trainers.lora.adapter import Adapter
from trainers.lora.gains import Gain
from trainers.lora.inject import PRESETS, Shape
from trainers.lora.pair import LoraPair
from trainers.lora.rack import Rack

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden" / "kohya_sd15_unet_r8.json"
CONVOLUTION = [r"resnets\.0\.conv1$"]
CHOICES = [*PRESETS["unet"], CONVOLUTION]
SMALL = Shape(2)
Parts = dict[str, nn.Module]


@pytest.fixture(scope="module")
def loaded(tiny_base: Path) -> Parts:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    unet: Any = UNet2DConditionModel.from_pretrained(tiny_base / "unet")
    text: Any = CLIPTextModel.from_pretrained(tiny_base / "text_encoder")
    return {"unet": unet.eval(), "text_encoder": text.eval()}


@pytest.fixture
def parts(loaded: Parts) -> Parts:
    return copy.deepcopy(loaded)


def output(parts: Parts) -> Tensor:
    """What the UNet says to the text encoder's words: every module of both has a say in it."""
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        words = parts["text_encoder"](torch.arange(2 * 77).view(2, 77)).last_hidden_state
        out: Tensor = parts["unet"](latents, torch.tensor([10, 700]), words).sample
    return out


def put(parts: Parts, choice: str | list[str] = "attention", shape: Shape = SMALL, seed: int = 0) -> None:
    """Inject into both parts; own patterns are the UNet's."""
    for part, model in parts.items():
        wish = "attention" if isinstance(choice, list) and part == "text_encoder" else choice
        inject.inject(part, model, inject.targets(part, model, wish), shape, seed)


def learn(parts: Parts, seed: int = 5) -> dict[str, LoraPair]:
    """Give every `up` some numbers, as training would; returns what was learned."""
    made = torch.Generator().manual_seed(seed)
    pairs = {}
    for part, model in parts.items():
        for name, parameter in inject.trainable(part, model):
            if name.endswith(".up"):
                parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=made))
        pairs |= inject.extract(part, model)
    return pairs


def modules(parts: Parts) -> dict[str, nn.Module]:
    return {fit.canonical(part, path): m for part, model in parts.items() for path, m in model.named_modules()}


# --- in ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_a_fresh_injection_changes_nothing(parts: Parts, choice: str | list[str]) -> None:
    before = output(parts)
    put(parts, choice)
    assert torch.equal(output(parts), before)


def test_only_lora_is_trained_and_has_the_names_that_files_keep(parts: Parts) -> None:
    put(parts)
    for part, model in parts.items():
        named = inject.trainable(part, model)
        free = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
        assert {id(parameter) for _, parameter in named} == free
    layers = [f"text_encoder.text_model.encoder.layers.{n}.self_attn" for n in (0, 1)]
    wanted = {
        f"{at}.{m}.{half}"
        for at in layers
        for m in ("q_proj", "k_proj", "v_proj", "out_proj")
        for half in ("down", "up")
    }
    assert {name for name, _ in inject.trainable("text_encoder", parts["text_encoder"])} == wanted
    unet = dict(inject.trainable("unet", parts["unet"]))
    assert unet["unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.down"].shape == (2, 32)
    assert unet["unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.up"].shape == (64, 2)


def test_the_base_gets_no_gradient_and_lora_does(parts: Parts) -> None:
    put(parts)
    learn(parts)
    words = parts["text_encoder"](torch.arange(77)[None]).last_hidden_state
    parts["unet"](torch.ones(1, 4, 8, 8), torch.tensor([3]), words).sample.square().sum().backward()
    for part, model in parts.items():
        names = {id(parameter) for _, parameter in inject.trainable(part, model)}
        for parameter in model.parameters():
            moved = parameter.grad is not None and bool(parameter.grad.any())
            assert moved == (id(parameter) in names)


def test_the_start_depends_on_the_seed_and_the_place_alone(parts: Parts) -> None:
    def downs(choice: str, seed: int) -> dict[str, Tensor]:
        twin = copy.deepcopy(parts)
        put(twin, choice, seed=seed)
        named = [item for part, model in twin.items() for item in inject.trainable(part, model)]
        assert not any(parameter.any() for name, parameter in named if name.endswith(".up"))
        return {name: parameter.data for name, parameter in named if name.endswith(".down")}

    few, many, other = downs("attention", 7), downs("all-linear", 7), downs("attention", 8)
    assert few.keys() == other.keys() < many.keys()
    assert all(torch.equal(few[name], many[name]) for name in few)
    assert not any(torch.equal(few[name], other[name]) for name in few)
    assert len({tensor.sum().item() for tensor in many.values()}) == len(many)  # each place has its own


def test_lora_is_float32_in_a_half_precision_base(parts: Parts) -> None:
    unet = parts["unet"].to(torch.bfloat16)
    inject.inject("unet", unet, inject.targets("unet", unet, "attention"), Shape(2), 0)
    assert {parameter.dtype for _, parameter in inject.trainable("unet", unet)} == {torch.float32}
    latents, words = torch.ones(1, 4, 8, 8, dtype=torch.bfloat16), torch.ones(1, 77, 32, dtype=torch.bfloat16)
    assert unet(latents, torch.tensor([3]), words).sample.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("shape", "scale"),
    [
        (Shape(4), 1.0),
        (Shape(4, alpha=8.0), 2.0),
        (Shape(8, alpha=1.0), 1 / 8),
        (Shape(4, rslora=True), 2.0),
        (Shape(9, alpha=6.0, rslora=True), 2.0),
    ],
    ids=str,
)
def test_the_scale_is_alpha_over_rank_or_over_its_root(shape: Shape, scale: float) -> None:
    assert math.isclose(shape.scale, scale)
    made = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5))
    x = torch.randn(3, 6, generator=made)
    base = model(x).detach()
    inject.inject("unet", model, ["0"], shape, 0)
    (_, down), (_, up) = inject.trainable("unet", model)
    up.data.normal_(generator=made)
    torch.testing.assert_close(model(x), base + scale * x @ down.T @ up.T)
    assert math.isclose(inject.extract("unet", model)["unet.0"].scale, scale)


def test_dropout_acts_in_training_only(parts: Parts) -> None:
    put(parts, shape=Shape(2, dropout=0.5))
    learn(parts)
    assert not torch.equal(output(parts), output(parts))
    for model in parts.values():
        model.eval()
    assert torch.equal(output(parts), output(parts))


# --- where ------------------------------------------------------------------------------------------------------------


def test_presets_grow(parts: Parts) -> None:
    for part, model in parts.items():
        few, more, all_of_them = (set(inject.targets(part, model, preset)) for preset in PRESETS[part])
        assert few < more < all_of_them or (part == "text_encoder" and few < more <= all_of_them)
        linear = {path for path, module in fit.candidates(model).items() if isinstance(module, nn.Linear)}
        assert few | more <= linear


@pytest.fixture(scope="module")
def sd15() -> nn.Module:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet: nn.Module = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    return unet


def test_presets_on_the_shape_of_sd15(sd15: nn.Module) -> None:
    paths = {preset: inject.targets("unet", sd15, preset) for preset in PRESETS["unet"]}
    assert {preset: len(found) for preset, found in paths.items()} == {
        "attention": 16 * 8,
        "attention+ff": 16 * 10,
        "all-linear": 16 * 12 + 22,  # and 22 resnets' time embeddings
    }


def test_all_linear_is_what_kohya_trains_on_sd15_and_a_little_more(sd15: nn.Module) -> None:
    if not GOLDEN.is_file():
        pytest.skip(f"no table of kohya's names at {GOLDEN}")
    golden = {key: tuple(shape) for key, shape in json.loads(GOLDEN.read_text()).items()}
    inject.inject("unet", sd15, inject.targets("unet", sd15, "all-linear"), Shape(8), 0)
    ours: dict[str, tuple[int, ...]] = {}
    for name, parameter in inject.trainable("unet", sd15):
        path, _, half = name.rpartition(".")
        key = "lora_" + path.replace(".", "_")
        ours |= {f"{key}.lora_{half}.weight": tuple(parameter.shape), f"{key}.alpha": ()}
    inject.remove(sd15)
    assert len(golden) == 576
    assert {key: ours.get(key) for key in golden} == golden
    assert all("time_emb_proj" in key for key in ours.keys() - golden.keys())


def test_own_patterns_choose_by_the_path_with_its_component(parts: Parts) -> None:
    unet, text = parts["unet"], parts["text_encoder"]
    found = inject.targets("unet", unet, [r"^unet\.mid_block.*to_q$", r"conv_in"])
    assert found == ["conv_in", *(f"mid_block.attentions.0.transformer_blocks.0.attn{n}.to_q" for n in (1, 2))]
    assert len(inject.targets("text_encoder", text, r"text_encoder\..*fc1")) == 2


def test_patterns_that_are_broken_or_match_nothing_are_all_named(parts: Parts) -> None:
    with pytest.raises(ConfigError) as caught:
        inject.targets("unet", parts["unet"], ["to_q$", "to_z$", "(", "text_model"])
    assert [fault.split()[0] for fault in caught.value.faults] == ["'to_z$'", "'('", "'text_model'"]
    assert "attention+ff" in caught.value.next_step
    with pytest.raises(ConfigError, match="text_encoder"):
        inject.targets("text_encoder", parts["text_encoder"], "attn1")


# --- out and on again -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "shape"),
    [("attention", Shape(3)), ("all-linear", Shape(4, alpha=6.0, rslora=True)), (CONVOLUTION, Shape(3, alpha=7.0))],
    ids=str,
)
def test_what_is_extracted_acts_the_same_in_a_fresh_model(parts: Parts, choice: str | list[str], shape: Shape) -> None:
    fresh, base = copy.deepcopy(parts), output(parts)
    put(parts, choice, shape)
    pairs = learn(parts)
    wanted = output(parts)
    assert float((wanted - base).abs().mean()) > 1e-2
    with Rack(fresh) as rack:
        rack.set([{rack.add(Adapter(pairs)): Gain()}])
        torch.testing.assert_close(output(fresh), wanted, rtol=1e-5, atol=1e-5)


def test_extracted_numbers_are_copies(parts: Parts) -> None:
    put(parts)
    pairs = learn(parts)
    before = {name: pair.up.clone() for name, pair in pairs.items()}
    learn(parts, seed=9)
    assert all(torch.equal(pairs[name].up, up) for name, up in before.items())
    assert {pair.down.dtype for pair in pairs.values()} == {torch.float32}


# --- off --------------------------------------------------------------------------------------------------------------


def test_removing_gives_back_the_very_same_modules(parts: Parts) -> None:
    there, base = modules(parts), output(parts)
    keys = {part: list(model.state_dict()) for part, model in parts.items()}
    for choice in ("attention+ff", "all-linear"):
        put(parts, choice)
        learn(parts)
        assert not torch.equal(output(parts), base)
        for model in parts.values():
            inject.remove(model)
        now = modules(parts)
        assert now.keys() == there.keys()
        assert all(now[name] is there[name] for name in there)
        assert {part: list(model.state_dict()) for part, model in parts.items()} == keys
        assert torch.equal(output(parts), base)
        assert not any(hasattr(model, "peft_config") for model in parts.values())


def test_removing_from_a_bare_model_does_nothing(parts: Parts) -> None:
    there = modules(parts)
    for model in parts.values():
        inject.remove(model)
    assert modules(parts) == there


# --- language models --------------------------------------------------------------------------------------------------

LMS = ("llama", "qwen", "gpt2", "gemma")
IDS = torch.arange(3, 43).view(2, 20)


@pytest.fixture(scope="module")
def lm_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from tests.lms import lm

    return {kind: lm(kind, tmp_path_factory.mktemp(kind)) for kind in LMS}


@pytest.fixture
def lms(lm_folders: dict[str, Path]) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    return {kind: AutoModelForCausalLM.from_pretrained(folder).eval() for kind, folder in lm_folders.items()}


@torch.no_grad()
def logits(model: Any) -> Tensor:
    out: Tensor = model(IDS).logits
    return out


def taught(model: nn.Module, shape: Shape, choice: str = "all-linear") -> dict[str, LoraPair]:
    """LoRA with some numbers in it."""
    inject.inject("model", model, inject.targets("model", model, choice), shape, 0)
    made = torch.Generator().manual_seed(3)
    for name, parameter in inject.trainable("model", model):
        if name.endswith(".up"):
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=made))
        elif name.endswith(".magnitude"):
            parameter.data *= torch.linspace(0.8, 1.3, len(parameter))
    return inject.extract("model", model)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kind", LMS)
def test_language_models_take_lora_in_and_give_it_out_again(lms: dict[str, Any], kind: str, dora: bool) -> None:
    model = lms[kind]
    base, there = logits(model), dict(model.named_modules())
    inject.inject("model", model, inject.targets("model", model, "all-linear"), Shape(3, dora=dora), 0)
    assert torch.equal(logits(model), base)
    inject.remove(model)
    pairs = taught(model, Shape(3, 6.0, dora=dora))
    wanted = logits(model)
    assert (wanted - base).abs().max() > 0.1
    model(IDS).logits.square().sum().backward()
    named = inject.trainable("model", model)
    assert {id(parameter) for _, parameter in named} == {id(p) for p in model.parameters() if p.grad is not None}
    assert all(parameter.grad is not None and parameter.grad.any() for _, parameter in named)
    assert inject.magnitudes("model", model).keys() == (pairs.keys() if dora else set())
    inject.remove(model)
    assert torch.equal(logits(model), base)
    assert dict(model.named_modules()) == there
    if not dora:
        with Rack({"model": model}) as rack:
            rack.set([{rack.add(Adapter(pairs)): Gain()}])
            torch.testing.assert_close(logits(model), wanted, atol=1e-4, rtol=1e-4)
            rack.set([{rack.resident[0]: Gain(blocks={"L01": 0.0})}, {rack.resident[0]: Gain()}])
            torch.testing.assert_close(logits(model)[1], wanted[1], atol=1e-4, rtol=1e-4)
            assert (logits(model)[0] - wanted[0]).abs().max() > 0.01


def test_the_joint_forward_trains_as_pefts_own(lms: dict[str, Any]) -> None:
    for kind in ("qwen", "gpt2"):
        model = lms[kind]
        taught(model, Shape(3, 6.0))

        def gradients(model: Any = model) -> list[Tensor]:
            model.zero_grad()
            model(IDS).logits.square().mean().backward()
            return [p.grad.clone() for _, p in inject.trainable("model", model)]

        ours = gradients()
        for _, layer in inject.layers(model):
            assert vars(layer).pop("forward").func is inject._joined
            layer.lora_variant.clear()
        for got, wanted in zip(ours, gradients(), strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-3)


def test_a_hook_on_the_base_layer_still_has_its_say(lms: dict[str, Any]) -> None:
    model = lms["llama"]
    taught(model, Shape(3), "attention")
    before = logits(model)
    layer = dict(inject.layers(model))["model.layers.0.self_attn.o_proj"].get_base_layer()
    layer.register_forward_hook(lambda _, __, out: out * 0)
    assert not torch.equal(logits(model), before)


def test_presets_of_language_models(lms: dict[str, Any]) -> None:
    def words(kind: str, choice: str) -> set[str]:
        return {path.rpartition(".")[2] for path in inject.targets("model", lms[kind], choice)}

    for kind in ("llama", "qwen", "gemma"):
        assert words(kind, "attention") == {"q_proj", "k_proj", "v_proj", "o_proj"}
        assert words(kind, "all-linear") == words(kind, "attention") | {"gate_proj", "up_proj", "down_proj"}
    assert words("gpt2", "attention") == {"c_attn", "c_proj"}
    assert words("gpt2", "attention+ff") == words("gpt2", "all-linear") == {"c_attn", "c_proj", "c_fc"}
    assert len(inject.targets("model", lms["gpt2"], "attention")) == 4  # not the feed-forward's c_proj


@pytest.mark.parametrize(
    ("path", "presets"),
    [
        ("model.layers.0.self_attn.qkv_proj", 3), ("model.layers.0.mlp.gate_up_proj", 2),
        ("gpt_neox.layers.3.attention.query_key_value", 3), ("gpt_neox.layers.3.mlp.dense_h_to_4h", 2),
        ("transformer.h.0.self_attention.dense", 3), ("model.decoder.layers.9.fc1", 2),
        ("model.decoder.layers.9.self_attn.out_proj", 3), ("transformer.blocks.1.attn.Wqkv", 3),
        ("backbone.layers.2.mixer.in_proj", 1), ("model.layers.0.block_sparse_moe.experts.3.w1", 2),
        ("model.layers.0.mlp.shared_expert.gate_proj", 2), ("model.layers.0.mlp.gate", 0),
        ("model.layers.0.block_sparse_moe.gate", 0), ("model.layers.0.mlp.shared_expert_gate", 0),
        ("model.layers.0.feed_forward.router", 0), ("lm_head", 0), ("model.decoder.project_in", 0),
    ],
)  # fmt: skip
def test_a_preset_knows_every_architectures_words_and_no_router(path: str, presets: int) -> None:
    model = nn.Module()
    *parents, last = path.split(".")
    at = model
    for name in parents:
        at.add_module(name, nn.Module())
        at = at.get_submodule(name)
    at.add_module(last, nn.Linear(2, 2))
    choices = list(PRESETS["model"])
    for choice in choices[len(choices) - presets :]:
        assert inject.targets("model", model, choice) == [path]
    for choice in choices[: len(choices) - presets]:
        with pytest.raises(ConfigError, match="matches no linear layer"):
            inject.targets("model", model, choice)


def test_an_output_layer_tied_to_the_embedding_is_refused(lms: dict[str, Any]) -> None:
    assert inject.targets("model", lms["qwen"], "lm_head") == ["lm_head"]
    for kind in ("llama", "gpt2"):
        with pytest.raises(ConfigError, match="embedding's own weight"):
            inject.targets("model", lms[kind], ["lm_head"])


@pytest.mark.parametrize("dora", [False, True])
def test_lora_in_a_half_precision_language_model_is_float32_and_starts_at_nothing(
    lms: dict[str, Any], dora: bool
) -> None:
    model = lms["llama"].to(torch.bfloat16)
    base = logits(model)
    inject.inject("model", model, inject.targets("model", model, "all-linear"), Shape(3, dora=dora), 0)
    assert {parameter.dtype for _, parameter in inject.trainable("model", model)} == {torch.float32}
    assert torch.equal(logits(model), base)


@pytest.mark.parametrize("dora", [False, True])
def test_four_bit_layers_are_trained_around(dora: bool) -> None:
    from bitsandbytes.nn import Linear4bit

    packed = Linear4bit(64, 64, quant_type="nf4", compute_dtype=torch.float32)
    packed.load_state_dict(nn.Linear(64, 64).state_dict())
    model = nn.ModuleDict({"layers": nn.ModuleList([packed.to("cpu")])})
    model.is_loaded_in_4bit = True
    x, codes = torch.randn(2, 3, 64), model["layers"][0].weight.clone()

    def run() -> Tensor:
        out: Tensor = model.get_submodule("layers.0")(x)
        return out

    base = run().detach()
    inject.inject("model", model, ["layers.0"], Shape(4, dora=dora), 0)
    assert torch.equal(run(), base)
    for name, parameter in inject.trainable("model", model):
        if name.endswith(".up"):
            parameter.data.normal_(generator=torch.Generator().manual_seed(0))
    pair, wanted = inject.extract("model", model)["model.layers.0"], run()
    wanted.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for _, p in inject.trainable("model", model))
    if not dora:
        torch.testing.assert_close(wanted, base + x @ pair.delta().T, atol=1e-4, rtol=1e-4)
    inject.remove(model)
    assert torch.equal(model["layers"][0].weight, codes)
    assert torch.equal(run(), base)
