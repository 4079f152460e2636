"""The ledger counts every tensor once, its share is an energy, and what isn't whole isn't used unasked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from trainers.errors import AdapterError
from trainers.lora.adapter import Adapter, AdapterInfo
from trainers.lora.fit import Shape
from trainers.lora.ledger import Ledger, fitted, ledger_of, read
from trainers.lora.pair import LoraPair

PROJ, CONV = "unet.mid_block.attentions.0.proj_in", "unet.conv_in"
SHAPES: dict[str, Shape] = {PROJ: (4, 6), CONV: (4, 2, 3, 3)}
FILE = {
    "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.ones(4, 1),
    "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(1, 6),
    "lora_unet_conv_in.lora_up.weight": torch.ones(4, 1, 1, 1),
    "lora_unet_conv_in.lora_down.weight": torch.full((1, 2, 3, 3), 2.0),
}  # energies 24 and 288


def ledger(path: Path, tensors: dict[str, Tensor], shapes: dict[str, Shape] = SHAPES) -> Ledger:
    save_file(tensors, path)
    made = ledger_of(read(path), shapes)
    assert sorted(key for entry in made.entries for key in entry.keys) == sorted(tensors)  # every tensor, once
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.safetensors"


def test_a_file_that_fits_is_whole(path: Path) -> None:
    found = ledger(path, FILE)
    assert (found.whole, found.share, found.unknown) == (True, 1.0, 0)
    assert found.data()["tensors"] == {"applied": 4}
    adapter, same = fitted(path, SHAPES)
    assert (sorted(adapter.pairs), same) == ([CONV, PROJ], found)


def test_a_module_of_another_size_is_refused_with_its_energy(path: Path) -> None:
    found = ledger(path, FILE, SHAPES | {CONV: (4, 9, 3, 3)})
    assert (found.whole, found.unknown) == (False, 0)
    assert found.share == pytest.approx(24 / 312)
    assert [e.reason for e in found.entries if e.verdict == "refused"] == [
        "made for (4, 2, 3, 3), the base has (4, 9, 3, 3)"
    ]
    with pytest.raises(AdapterError, match=r"conv_in: made for.*\(2 tensors\)(.|\n)*--partial") as caught:
        fitted(path, SHAPES | {CONV: (4, 9, 3, 3)})
    assert len(caught.value.faults) == 1
    adapter, _ = fitted(path, SHAPES | {CONV: (4, 9, 3, 3)}, partial=True)
    assert list(adapter.pairs) == [PROJ]


def test_a_foreign_tensor_makes_the_share_an_upper_bound(path: Path) -> None:
    found = ledger(path, FILE | {"foreign": torch.ones(1)})
    assert (found.whole, found.share, found.unknown) == (False, 1.0, 1)
    with pytest.raises(AdapterError, match="foreign: an unknown name"):
        fitted(path, SHAPES)
    with pytest.raises(AdapterError, match="foreign: an unknown name"):
        Adapter.load(path)


def test_a_broken_module_is_refused_and_the_rest_is_read(path: Path) -> None:
    found = ledger(path, FILE | {"lora_unet_conv_in.lora_up.weight": torch.full((4, 1, 1, 1), torch.nan)})
    assert [(e.path, e.verdict) for e in found.entries] == [(CONV, "refused"), (PROJ, "applied")]
    assert found.unknown == 2


def test_a_tensor_that_stands_there_twice_is_refused(path: Path) -> None:
    twice = "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha", "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha"
    found = ledger(path, FILE | {key: torch.ones(()) for key in twice})
    refused = [entry for entry in found.entries if entry.verdict == "refused"]
    assert {entry.keys for entry in refused} == {(twice[0],), (twice[1],)}  # one as a lone alpha
    assert any("stands in the file twice" in entry.reason for entry in refused)
    assert not [entry for entry in found.entries if entry.verdict == "left aside"]


def test_embeddings_beside_an_adapter_are_left_aside(path: Path) -> None:
    found = ledger(path, FILE | {"bundle_emb.cat.clip_l": torch.ones(2, 3)})
    assert found.whole
    assert found.data()["tensors"] == {"applied": 4, "left aside": 1}


def test_what_a_cut_loses_is_not_applied_and_yet_whole(path: Path) -> None:
    diff = torch.diag(torch.tensor([3.0, 1.0, 1.0, 1.0]))
    save_file({"lora_unet_mid_block_attentions_0_proj_in.diff": diff}, path)
    made = ledger_of(read(path, rank=1), {PROJ: (4, 4)})
    assert made.whole
    assert made.share == pytest.approx(9 / 12)


@pytest.mark.parametrize(("width", "says"), [(2048, ", Stable Diffusion XL"), (5, "")])
def test_where_nothing_fits_partial_does_not_help(path: Path, width: int, says: str) -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    save_file(
        {f"unet.{name}.lora_A.weight": torch.ones(1, width), f"unet.{name}.lora_B.weight": torch.ones(8, 1)}, path
    )
    with pytest.raises(AdapterError) as caught:
        fitted(path, {f"unet.{name}": (8, 768)}, partial=True)
    assert f"made for another base{says}; this one is Stable Diffusion 1.x" in caught.value.what


def test_a_language_models_adapter_on_a_picture_base_and_the_reverse(tmp_path: Path) -> None:
    pair, name = LoraPair(torch.ones(1, 4), torch.ones(8, 1), 1.0), "model.model.layers.0.mlp.up_proj"
    header = AdapterInfo({"stylora.base": "owner/some-lm"})
    text = Adapter({name: pair}, header).save(tmp_path / "text", "peft")
    picture = Adapter({PROJ: pair}, AdapterInfo({"ss_base_model_version": "sd_v1"})).save(tmp_path / "x")
    cross = {"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (8, 768)}
    cases = {
        (text, "lm"): "made for another base, a language model; this one is Stable Diffusion 1.x",
        (picture, "sd1"): "made for another base, Stable Diffusion 1.x; this one is a language model",
    }
    for (path, own), says in cases.items():
        with pytest.raises(AdapterError) as caught:
            fitted(path, cross if own == "lm" else {name: (8, 4)})
        assert caught.value.what.endswith(says)
    with pytest.raises(AdapterError) as caught:
        fitted(text, {name: (9, 4)})  # another language model
    assert caught.value.what.endswith("made for another base, a language model")
    assert "owner/some-lm" in caught.value.next_step


def test_where_nothing_can_be_read_it_says_so(path: Path) -> None:
    dora = {key: tensor for key, tensor in FILE.items() if "conv_in" in key}
    save_file(dora | {"lora_unet_conv_in.dora_scale": torch.ones(4, 1, 1, 1)}, path)
    with pytest.raises(AdapterError, match=r"nothing of this adapter can be applied(.|\n)*conv_in: DoRA(.|\n)*--base"):
        fitted(path, SHAPES, partial=True)
    adapter, found = fitted(path, SHAPES, weight_of={CONV: torch.rand(4, 2, 3, 3)}.__getitem__)
    assert (list(adapter.pairs), found.whole) == ([CONV], True)
    assert 0.5 < found.share < 1
