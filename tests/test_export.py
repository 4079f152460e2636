"""An exported file holds the same numbers and header in another tool's form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from studio.export import default_out, export, widest
from trainers.errors import AdapterError
from trainers.lora.adapter import Adapter, AdapterInfo, content_digest
from trainers.lora.pair import LoraPair

CONV, TEXT = "unet.mid_block.resnets.0.conv1", "text_encoder.text_model.encoder.layers.0.mlp.fc1"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """rsLoRA-like alphas, a convolution, a text encoder, a header."""
    pairs = {
        CONV: LoraPair(torch.randn(3, 4, 3, 3).half(), torch.randn(8, 3, 1, 1).half(), 8 * 3**0.5),
        TEXT: LoraPair(torch.randn(2, 6).half(), torch.randn(5, 2).half(), 1.0),
    }
    header = AdapterInfo({"ss_output_name": "ink", "modelspec.trigger_phrase": "inkstyle"})
    first = Adapter(pairs, header).save(tmp_path / "ink.safetensors")
    return first


def test_kohya_to_diffusers_to_peft_to_kohya_is_the_same_file(path: Path, tmp_path: Path) -> None:
    at = path
    for to, name in (
        ("diffusers", "ink.diffusers.safetensors"),
        ("peft", "ink.peft"),
        ("kohya", "ink.kohya.safetensors"),
    ):
        at = export(at, to).path
        assert at == tmp_path / name
        assert Adapter.load(at).info.metadata["modelspec.trigger_phrase"] == "inkstyle"
    assert at.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("name", "to", "wanted"),
    [
        ("ink.safetensors", "peft", "ink.peft"),
        ("ink.peft", "diffusers", "ink.diffusers.safetensors"),
        ("ink.v2.safetensors", "kohya", "ink.v2.kohya.safetensors"),
    ],
)
def test_the_default_place_is_beside_the_file(name: str, to: str, wanted: str) -> None:
    assert default_out(Path("a") / name, to) == Path("a") / wanted


def test_the_kind_of_number_is_the_files_own_or_the_one_asked(path: Path, tmp_path: Path) -> None:
    for dtype, kind in (
        (None, torch.float16),
        ("bf16", torch.bfloat16),
        ("fp32", torch.float32),
        ("fp16", torch.float16),
    ):
        made = export(path, "diffusers", dtype=dtype, out=tmp_path / f"{dtype}.safetensors")
        assert {tensor.dtype for tensor in load_file(made.path).values()} == {made.dtype} == {kind}
    mixed = LoraPair(torch.ones(1, 2).half(), torch.ones(2, 1).bfloat16(), 1.0)
    assert widest(Adapter({"unet.conv_in": mixed})) == torch.float32


def test_a_rank_is_cut_to_and_the_header_says_so(path: Path, tmp_path: Path) -> None:
    made = export(path, "kohya", rank=2, out=tmp_path / "x")
    assert {name: pair.rank for name, pair in made.adapter.pairs.items()} == {CONV: 2, TEXT: 2}
    metadata = Adapter.load(tmp_path / "x").info.metadata
    assert json.loads(metadata["stylora.converted"]) == {"LoRA, cut to rank 2": 1}
    assert (metadata["ss_network_dim"], metadata["ss_output_name"]) == ("2", "ink")


def test_lycoris_becomes_plain_lora(tmp_path: Path) -> None:
    loha = {f"lora_unet_conv_in.hada_{name}": torch.randn(2, 2) for name in ("w1_a", "w1_b", "w2_a", "w2_b")}
    save_file(loha, tmp_path / "x.safetensors", {"ss_network_module": "lycoris.kohya"})
    made = export(tmp_path / "x.safetensors", "diffusers")
    assert made.adapter.info.metadata["ss_network_module"] == "networks.lora"
    assert content_digest(Adapter.load(made.path)) == content_digest(made.adapter)


def test_dora_takes_the_bases_weight(path: Path, tmp_path: Path) -> None:
    tensors = load_file(path) | {"lora_unet_mid_block_resnets_0_conv1.dora_scale": torch.ones(8, 1, 1, 1)}
    save_file(tensors, tmp_path / "d.safetensors")
    with pytest.raises(AdapterError, match=r"no base was given(.|\n)*--base"):
        export(tmp_path / "d.safetensors", "kohya")
    made = export(tmp_path / "d.safetensors", "kohya", weight_of={CONV: torch.randn(8, 4, 3, 3)}.__getitem__)
    assert [entry.reason for entry in made.entries if entry.verdict == "converted"] == ["DoRA, cut to rank 6"]


def test_nothing_is_written_over_unasked(path: Path, tmp_path: Path) -> None:
    for to in ("diffusers", "peft"):
        out = export(path, to).path
        with pytest.raises(AdapterError, match="exists"):
            export(path, to)
        assert export(path, to, rank=1, overwrite=True).path == out
        assert {pair.rank for pair in Adapter.load(out).pairs.values()} == {1}


def test_a_folder_comes_back_when_the_new_one_cannot_be_written(path: Path, tmp_path: Path) -> None:
    had = content_digest(Adapter.load(export(path, "peft").path))
    large = Adapter({CONV: LoraPair(torch.full((1, 4, 3, 3), 1e6), torch.ones(8, 1, 1, 1), 1.0)})
    large.save(tmp_path / "large", dtype=torch.float32)
    with pytest.raises(AdapterError, match="too large a number"):
        export(tmp_path / "large", "peft", dtype="fp16", out=tmp_path / "ink.peft", overwrite=True)
    assert content_digest(Adapter.load(tmp_path / "ink.peft")) == had
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ink.peft", "ink.safetensors", "large"]


def test_a_folder_with_other_things_is_not_written_over(path: Path, tmp_path: Path) -> None:
    folder = export(path, "peft").path
    (folder / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for to, out in (("peft", folder), ("kohya", folder), ("peft", tmp_path / "file")):
        with pytest.raises(AdapterError, match=r"in the way|would be"):
            export(path, to, out=out, overwrite=True)
    assert (folder / "notes.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    assert Adapter.load(folder).pairs


def test_every_unknown_word_is_named(path: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        export(path, "gguf", dtype="int8")
    assert [fault.split(",")[0] for fault in caught.value.faults] == ["--to is 'gguf'", "--dtype is 'int8'"]
