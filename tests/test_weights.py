"""A base's weights by canonical path: the same from a folder, from shards and from a single file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import random_adapter, single_file
from safetensors.torch import load_file, save_file

from studio.merge.weights import Weights, open_base
from trainers import bases, tensorfile
from trainers.errors import BaseError
from trainers.families.stable_diffusion import StableDiffusion
from trainers.lora.fit import candidates, canonical, shapes
from trainers.tensorfile import TensorFile


def same(one: Weights, other: Weights) -> bool:
    names = one.tensors.keys() == other.tensors.keys()
    return names and all(
        torch.equal(one.tensors[name].tensor().flatten(), other.tensors[name].tensor().flatten())
        for name in one.tensors
    )


def test_shapes_and_weights_are_those_of_the_loaded_models(tiny_base: Path) -> None:
    parts, weights = StableDiffusion(tiny_base).parts(), open_base(tiny_base)
    assert weights.shapes == shapes(parts)
    for component, model in parts.items():
        for path, module in candidates(model).items():
            assert torch.equal(weights.weight(canonical(component, path)), module.weight)


def test_opening_reads_headers_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TensorFile, "pieces", lambda *_: pytest.fail("a tensor was read"))
    weights = open_base("tiny-sd")
    assert weights.shapes["unet.conv_in"] == (64, 8, 3, 3)
    assert weights.tensors["unet.conv_in.weight"].dtype == "F16"


def test_the_stored_dtype_is_kept() -> None:
    assert open_base("tiny-sd").weight("unet.conv_in").dtype == torch.float16


def test_shards(tiny_base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_base, tmp_path / "sharded")
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        whole = folder / part / f"{stem}.safetensors"
        tensors = load_file(whole)
        names = {key: f"{stem}-0000{1 + k % 2}-of-00002.safetensors" for k, key in enumerate(sorted(tensors))}
        for name in set(names.values()):
            save_file({key: tensor for key, tensor in tensors.items() if names[key] == name}, folder / part / name)
        (folder / part / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        whole.unlink()
    assert len(open_base(folder).files) == 5
    assert same(open_base(folder), open_base(tiny_base))
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    for text in ("[]", "{", json.dumps({"weight_map": {"a": "../vae/diffusion_pytorch_model.safetensors"}})):
        index.write_text(text)
        with pytest.raises(BaseError, match=r"index\.json"):
            open_base(folder)


@pytest.mark.parametrize("open_clip", [False, True])
def test_a_single_file_has_the_same_weights(tiny_base: Path, tmp_path: Path, open_clip: bool) -> None:
    path = single_file(tiny_base, tmp_path / "one.safetensors", open_clip)
    one = open_base(path)
    assert one.single_file
    assert one.shapes == open_base(tiny_base).shapes
    assert same(one, open_base(tiny_base))
    q = one.tensors["text_encoder.text_model.encoder.layers.0.self_attn.k_proj.weight"]
    assert q.rows == (slice(32, 64) if open_clip else None)


def test_sdxl_shapes_can_be_read(tmp_path: Path) -> None:
    names = {
        "model.diffusion_model.input_blocks.4.1.proj_in.weight": ("F32", (4, 2)),
        "model.diffusion_model.input_blocks.3.0.op.weight": ("F32", (2, 2, 3, 3)),
        "conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight": ("F32", (4, 2)),
        "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight": ("F32", (6, 2)),
        "conditioner.embedders.1.model.text_projection": ("F32", (2, 3)),
    }
    head = tensorfile.header(names, {})
    (tmp_path / "xl.safetensors").write_bytes(head + bytes(4 * (8 + 36 + 8 + 12 + 6)))
    weights = open_base(tmp_path / "xl.safetensors")
    assert weights.sdxl
    assert weights.shapes == {
        "unet.down_blocks.1.attentions.0.proj_in": (4, 2),
        "unet.down_blocks.0.downsamplers.0.conv": (2, 2, 3, 3),
        "text_encoder.text_model.encoder.layers.0.mlp.fc1": (4, 2),
        **{f"text_encoder_2.text_model.encoder.layers.0.self_attn.{q}_proj": (2, 2) for q in "qkv"},
        "text_encoder_2.text_projection": (3, 2),
    }


def test_what_is_no_base(tiny_base: Path, tmp_path: Path) -> None:
    random_adapter(tiny_base, 0).save(tmp_path / "lora.safetensors")
    (tmp_path / "old.ckpt").write_bytes(b"x")
    (tmp_path / "broken.safetensors").write_bytes(b"x")
    bare = shutil.copytree(tiny_base, tmp_path / "bare")
    (bare / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    for name, said in (
        ("lora.safetensors", "no Stable Diffusion checkpoint"),
        ("old.ckpt", "only .safetensors"),
        ("broken.safetensors", "not a whole"),
        ("bare", "can't be read"),
        ("nowhere", "there is no folder"),
    ):
        with pytest.raises(BaseError, match=said) as caught:
            open_base(tmp_path / name)
        assert caught.value.next_step


def test_the_alias_is_found() -> None:
    assert open_base("tiny-sd").root == bases.find("tiny-sd")
