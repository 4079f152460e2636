"""An adapter's file: exact bytes, whole or absent, every fault named, and read alike by diffusers itself."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainers.errors import AdapterError
from trainers.lora.adapter import Adapter, AdapterInfo, LoraPair, components, content_digest, digest
from trainers.lora.metadata import kohya_metadata, modelspec_metadata

ATTN = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1"
TEXT = "text_encoder.text_model.encoder.layers.0"


def pair(rank: int, inner: int, out: int, alpha: float, dtype: torch.dtype = torch.float16) -> LoraPair:
    down = torch.arange(rank * inner, dtype=torch.float32).reshape(rank, inner) / 8
    return LoraPair(down.to(dtype), -torch.arange(out * rank).reshape(out, rank).to(dtype) / 4, alpha)


@pytest.fixture
def adapter() -> Adapter:
    metadata = kohya_metadata(base_version="sd_v1", rank=3, alpha=1.5, name="ink", base_digest="ab" * 32)
    metadata |= modelspec_metadata(base_version="sd_v1", title="Ink", trigger="inkstyle", thumbnail=b"\xff\xd8")
    pairs = {f"{ATTN}.to_q": pair(3, 5, 7, 1.5), f"{TEXT}.mlp.fc1": pair(1, 3, 3, 2.0)}
    return Adapter(pairs, AdapterInfo(metadata))


def header_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_the_bytes_of_a_file_are_exactly_these(tmp_path: Path) -> None:
    one = LoraPair(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]]), 0.5)
    raw = Adapter({"unet.conv_in": one}, AdapterInfo({"b": "2", "a": "1"})).save(tmp_path / "x").read_bytes()
    tensors = bytes.fromhex("0038003c00400042")  # 0.5, (1, 2), 3 in float16: sorted by name
    total = hashlib.sha256(tensors).hexdigest()
    header = (
        '{"__metadata__":{"a":"1","b":"2","modelspec.hash_sha256":"0xTOTAL","sshs_model_hash":"TOTAL"},'
        '"lora_unet_conv_in.alpha":{"data_offsets":[0,2],"dtype":"F16","shape":[]},'
        '"lora_unet_conv_in.lora_down.weight":{"data_offsets":[2,6],"dtype":"F16","shape":[1,2]},'
        '"lora_unet_conv_in.lora_up.weight":{"data_offsets":[6,8],"dtype":"F16","shape":[1,1]}}'
    ).replace("TOTAL", total)
    header += " " * (-len(header) % 8)
    assert raw == len(header).to_bytes(8, "little") + header.encode() + tensors


@pytest.mark.parametrize("format", ["kohya", "diffusers"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_what_is_saved_is_what_safetensors_reads(
    adapter: Adapter, tmp_path: Path, format: str, dtype: torch.dtype
) -> None:
    path = adapter.save(tmp_path / "ink.safetensors", format, dtype)
    assert len(load_file(path)) == (6 if format == "kohya" else 4)
    back = Adapter.load(path)
    assert back.info.format == format
    assert back.pairs.keys() == adapter.pairs.keys()
    for name, had in adapter.pairs.items():
        got = back.pairs[name]
        assert (got.down.dtype, got.alpha) == (dtype, had.alpha)
        assert torch.equal(got.down.float(), had.down.to(dtype).float())
        assert torch.equal(got.up.float(), had.up.to(dtype).float())


def test_content_decides_the_bytes_and_order_does_not(adapter: Adapter, tmp_path: Path) -> None:
    info = AdapterInfo(dict(reversed(adapter.info.metadata.items())))
    shuffled = Adapter(dict(reversed(adapter.pairs.items())), info)
    assert digest(adapter.save(tmp_path / "a")) == digest(shuffled.save(tmp_path / "b"))
    assert digest(tmp_path / "a") == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()


def test_kohya_to_diffusers_to_kohya_gives_the_same_file(adapter: Adapter, tmp_path: Path) -> None:
    first, middle, last = (tmp_path / name for name in ("first", "middle", "last"))
    adapter.save(first)
    Adapter.load(first).save(middle, "diffusers")
    Adapter.load(middle).save(last, "kohya")
    assert first.read_bytes() == last.read_bytes()


def test_the_hashes_in_the_header_are_over_everything_behind_it(adapter: Adapter, tmp_path: Path) -> None:
    for format in ("kohya", "diffusers"):
        path = adapter.save(tmp_path / format, format)
        raw = path.read_bytes()
        total = hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()
        assert header_of(path)["sshs_model_hash"] == total
        assert header_of(path)["modelspec.hash_sha256"] == f"0x{total}"


def test_tensors_of_mixed_width_lie_aligned(tmp_path: Path) -> None:
    odd = Adapter({"unet.conv_in": pair(3, 5, 7, 8 * 3**0.5), "unet.conv_out": pair(1, 3, 1, 1.0)})
    raw = odd.save(tmp_path / "x").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8 : 8 + length])
    widths = {"F32": 4, "F16": 2}
    tensors = [entry for name, entry in entries.items() if name != "__metadata__"]
    assert {entry["dtype"] for entry in tensors} == {"F32", "F16"}
    assert [e for e in tensors if e["data_offsets"][0] % widths[e["dtype"]]] == []
    assert length % 8 == 0


def test_info_speaks_of_the_header(adapter: Adapter, tmp_path: Path) -> None:
    info = Adapter.load(adapter.save(tmp_path / "x")).info
    assert (info.name, info.title, info.trigger, info.base_version) == ("ink", "Ink", "inkstyle", "sd_v1")
    assert (info.base_digest, info.thumbnail) == ("ab" * 32, b"\xff\xd8")
    nothing = AdapterInfo({"modelspec.thumbnail": "data:image/jpeg;base64,?"})
    assert (nothing.title, nothing.trigger, nothing.thumbnail) == ("", "", None)


def test_components_and_content_digest(adapter: Adapter) -> None:
    assert components(adapter) == ("text_encoder", "unet")
    had = content_digest(adapter)
    assert content_digest(Adapter(adapter.pairs)) == had  # metadata isn't content
    to_q = adapter.pairs[f"{ATTN}.to_q"]
    for other in (LoraPair(to_q.down, to_q.up, 1.0), LoraPair(to_q.down + 1, to_q.up, to_q.alpha)):
        assert content_digest(Adapter(adapter.pairs | {f"{ATTN}.to_q": other})) != had
    moved = {name.replace("to_q", "to_k"): one for name, one in adapter.pairs.items()}
    assert content_digest(Adapter(moved)) != had


# --- PEFT folders -----------------------------------------------------------------------------------------------------


def test_a_peft_folder_holds_the_same_adapter(adapter: Adapter, tmp_path: Path) -> None:
    folder = adapter.save(tmp_path / "ink.peft", "peft")
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    parts = ("text_encoder", "unet")
    assert files == [f"{part}/adapter_{name}" for part in parts for name in ("config.json", "model.safetensors")]
    back = Adapter.load(folder)
    assert (back.info.format, content_digest(back)) == ("peft", content_digest(adapter))
    assert back.info.title == "Ink"
    lone = Adapter.load(folder / "unet")  # as peft itself would load it
    assert list(lone.pairs) == [f"{ATTN}.to_q"]


def test_the_digest_of_a_folder_is_over_its_adapter_files(adapter: Adapter, tmp_path: Path) -> None:
    one, two = adapter.save(tmp_path / "one", "peft"), adapter.save(tmp_path / "two", "peft")
    (one / "README.md").write_text("not the adapter's")
    assert digest(one) == digest(two)
    config = two / "unet" / "adapter_config.json"
    config.write_text(config.read_text() + " ")
    assert digest(one) != digest(two)


def test_a_folder_that_holds_anything_is_left_alone(adapter: Adapter, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    adapter.save(tmp_path / "empty", "peft")
    with pytest.raises(AdapterError, match="isn't an empty folder"):
        adapter.save(tmp_path / "empty", "peft")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("adapter_config.json", "{", "adapter_config.json: can't be read"),
        ("adapter_config.json", "[]", "isn't a table"),
        ("adapter_model.safetensors", None, "adapter_model.safetensors: there is no such file"),
    ],
)
def test_a_broken_folder(adapter: Adapter, tmp_path: Path, name: str, content: str | None, says: str) -> None:
    file = adapter.save(tmp_path / "ink", "peft") / "unet" / name
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(AdapterError, match=says):
        Adapter.load(tmp_path / "ink")


# --- whole or absent --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_old_file_and_no_litter(
    adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "ink.safetensors"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(AdapterError, match="No space left"):
        adapter.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["ink.safetensors"]
    assert path.read_bytes() == b"old"
    with pytest.raises(AdapterError, match="No space left"):
        adapter.save(tmp_path / "ink.peft", "peft")
    assert [file.name for file in tmp_path.iterdir()] == ["ink.safetensors"]


@pytest.mark.parametrize("where", ["no/such/folder/x", "."])
def test_a_place_that_cannot_be_written_is_named(adapter: Adapter, tmp_path: Path, where: str) -> None:
    with pytest.raises(AdapterError, match="can't be written"):
        adapter.save(tmp_path / where)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_when_anything_is_wrong_and_all_of_it_is_said(adapter: Adapter, tmp_path: Path) -> None:
    nan = LoraPair(torch.full((1, 2), torch.nan), torch.ones(2, 1), 1.0)
    bad = Adapter({"unet.conv_in": nan}, AdapterInfo({"n": 1, "s": "\ud800"}))  # type: ignore[dict-item]
    with pytest.raises(AdapterError) as caught:
        bad.save(tmp_path / "x", "safetensors", torch.int8)
    assert len(caught.value.faults) == 5
    assert "wanted one of kohya, diffusers" in str(caught.value)
    with pytest.raises(AdapterError, match="no modules"):
        Adapter({}).save(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_numbers_too_large_for_half_precision_are_refused(tmp_path: Path) -> None:
    large = Adapter({"unet.conv_in": LoraPair(torch.full((1, 2), 1e5), torch.ones(2, 1), 1.0)})
    with pytest.raises(AdapterError, match=r"lora_down.weight: too large a number for torch.float16"):
        large.save(tmp_path / "x")
    assert Adapter.load(large.save(tmp_path / "x", dtype=torch.bfloat16)).pairs


# --- files that are no adapter ----------------------------------------------------------------------------------------


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="there is no such file"):
        Adapter.load(tmp_path / "x")
    with pytest.raises(AdapterError, match="a folder without an adapter"):
        Adapter.load(tmp_path)
    with pytest.raises(AdapterError, match="can't be read"):
        digest(tmp_path / "x")


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_a_truncated_file_is_not_a_whole_one(adapter: Adapter, tmp_path: Path, cut: int) -> None:
    path = adapter.save(tmp_path / "x")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(AdapterError, match="not a whole safetensors file"):
        Adapter.load(path)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (["model.diffusion_model.out.2.weight"], "no LoRA in it"),
        (["base_model.model.q_proj.lora_A.weight"], "give the folder that holds both files"),
        (["unet:0:up", "unet:0:down"], "cloneofsimo's old numbering: unet:0:down, unet:0:up"),
        (["some.lora_thing"], "1 tensors are unknown names: some.lora_thing"),
        (["lora_unet_conv_in.lokr_w1"], "unet.conv_in: LoKr (LyCORIS): has lokr_w1, lacks lokr_w2 (1 tensor)"),
    ],
)
def test_what_is_no_plain_lora_is_called_by_its_name(tmp_path: Path, keys: list[str], says: str) -> None:
    save_file({key: torch.ones(1) for key in keys}, tmp_path / "x")
    with pytest.raises(AdapterError) as caught:
        Adapter.load(tmp_path / "x")
    assert says in str(caught.value)


# --- diffusers itself -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def pipeline() -> Any:
    """A complete, tiny, random Stable Diffusion 1.x (no VAE: nothing here paints)."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8,
        cross_attention_dim=32, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    config = CLIPTextConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=None, text_encoder=CLIPTextModel(config).eval(), tokenizer=None, unet=unet.eval(),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


@torch.no_grad()
def outputs(unet: Any, text_encoder: Any) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    words = text_encoder(torch.randint(3, 40, (1, 16), generator=g))[0]
    return words, unet(torch.randn(1, 4, 8, 8, generator=g), 10, torch.randn(1, 16, 32, generator=g))[0]


def random_adapter(pipeline: Any, targets: tuple[str, ...], ranks: list[int], alphas: list[float]) -> Adapter:
    g = torch.Generator().manual_seed(2)
    pairs: dict[str, LoraPair] = {}
    for component, level in (("unet", ""), ("text_encoder", "text_model.")):
        for name, module in getattr(pipeline, component).named_modules():
            if name.endswith(targets):
                shape, n = module.weight.shape, len(pairs)
                down = 0.3 * torch.randn(ranks[n % len(ranks)], *shape[1:], generator=g)
                up = 0.3 * torch.randn(shape[0], len(down), *[1] * (len(shape) - 2), generator=g)
                path = f"{component}.{level}{name.removeprefix('text_model.')}"
                pairs[path] = LoraPair(down, up, alphas[n % len(alphas)])
    return Adapter(pairs)


def by_hand(pipeline: Any, adapter: Adapter) -> tuple[Tensor, Tensor]:
    """The outputs with delta() added to the weights themselves."""
    models = {part: copy.deepcopy(getattr(pipeline, part)) for part in ("unet", "text_encoder")}
    for path, one in adapter.pairs.items():
        component, _, name = path.partition(".")
        flat = not hasattr(models[component], "text_model")  # transformers 5 has no such level
        module = models[component].get_submodule(name.removeprefix("text_model.") if flat else name)
        module.weight.data += one.delta()
    return outputs(**models)


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
WITH_CONVS = (*ATTENTION, "net.2", "proj_in", "conv1", "time_emb_proj", "conv_shortcut", "fc1")
FEED_FORWARD = ("ff.net.0.proj", "fc1", "fc2")


@pytest.mark.parametrize(
    ("format", "targets", "ranks", "alphas"),
    [
        ("kohya", ATTENTION, [4], [3.0]),
        ("diffusers", ATTENTION, [4], [3.0]),
        ("kohya", WITH_CONVS, [4, 2], [3.0]),
        ("diffusers", WITH_CONVS, [4, 2, 3], [3.0, 8.0, 0.5]),  # each module with its own rank and alpha
        ("kohya", FEED_FORWARD, [4], [3.0]),
        ("diffusers", FEED_FORWARD, [4], [3.0]),
        ("kohya", ("q_proj", "out_proj"), [4], [3.0]),
    ],
)
def test_diffusers_own_loader_does_what_delta_says(
    pipeline: Any, tmp_path: Path, format: str, targets: tuple[str, ...], ranks: list[int], alphas: list[float]
) -> None:
    adapter = random_adapter(pipeline, targets, ranks, alphas)
    path = adapter.save(tmp_path / "ink.safetensors", format, torch.float32)
    untouched, wanted = outputs(pipeline.unet, pipeline.text_encoder), by_hand(pipeline, adapter)
    pipeline.load_lora_weights(str(path))
    try:
        got = outputs(pipeline.unet, pipeline.text_encoder)
    finally:
        pipeline.unload_lora_weights()
    for base, have, want, part in zip(untouched, got, wanted, ("text_encoder", "unet"), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-4)
        moved = bool((base - want).abs().max() > 0.05)
        assert moved is (part in components(adapter))


def test_diffusers_loads_what_loha_became(pipeline: Any, tmp_path: Path) -> None:
    name, g = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q", torch.Generator().manual_seed(3)
    width = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight.shape[0]
    shapes = {"w1_a": (width, 2), "w1_b": (2, width), "w2_a": (width, 3), "w2_b": (3, width)}
    factors = {half: torch.randn(shape, generator=g) for half, shape in shapes.items()}
    save_file({f"{name}.hada_{half}": factor for half, factor in factors.items()}, tmp_path / "loha.safetensors")
    adapter = Adapter.load(tmp_path / "loha.safetensors")
    assert [one.rank for one in adapter.pairs.values()] == [6]
    pipeline.load_lora_weights(str(adapter.save(tmp_path / "lora.safetensors", "diffusers", torch.float32)))
    try:
        got = outputs(pipeline.unet, pipeline.text_encoder)[1]
    finally:
        pipeline.unload_lora_weights()
    torch.testing.assert_close(got, by_hand(pipeline, adapter)[1], rtol=1e-4, atol=1e-4)
    assert bool((got - outputs(pipeline.unet, pipeline.text_encoder)[1]).abs().max() > 0.01)
