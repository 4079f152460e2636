"""A card tells what stands in the file, and nothing that doesn't."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from studio.look.card import read_card, save_thumbnail
from trainers.errors import AdapterError
from trainers.lora.adapter import Adapter, AdapterInfo, content_digest
from trainers.lora.metadata import kohya_metadata, modelspec_metadata
from trainers.lora.pair import LoraPair

CROSS = "unet.up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_k"
TEXT = "text_encoder.text_model.encoder.layers.0.mlp.fc1"


def jpeg() -> bytes:
    drawn = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(drawn, "JPEG")
    return drawn.getvalue()


@pytest.fixture
def adapter() -> Adapter:
    tags = {"10_ink": {"ink style": 16, "a cat": 2}, "1_more": {"ink style": 1}}
    metadata = kohya_metadata(base_version="sd_v1", rank=2, alpha=1, name="ink", tag_frequency=tags)
    metadata |= modelspec_metadata(base_version="sd_v1", title="Ink", trigger="inkstyle", thumbnail=jpeg())
    pairs = {
        CROSS: LoraPair(torch.ones(2, 768), torch.ones(4, 2), 1.0),
        "unet.conv_in": LoraPair(torch.ones(2, 4, 3, 3), torch.ones(4, 2, 1, 1), 2.0),
        TEXT: LoraPair(torch.ones(1, 768), torch.ones(3, 1), 2.0),
    }
    return Adapter(pairs, AdapterInfo(metadata))


@pytest.fixture
def path(adapter: Adapter, tmp_path: Path) -> Path:
    return adapter.save(tmp_path / "ink.safetensors")


def test_the_facts_of_a_file(path: Path) -> None:
    card = read_card(path)
    assert (card.name, card.format, card.family, card.trigger) == ("Ink", "kohya", "sd1", "inkstyle")
    assert (card.ranks, card.alphas, card.dtypes) == ({2: 2, 1: 1}, {2.0: 2, 1.0: 1}, {"float16": 3})
    assert card.modules == {"text_encoder": {"BASE": 1}, "unet": {"IN00": 1, "OUT05": 1}}
    assert card.norms["text_encoder"] == pytest.approx((3 * 768 * 4) ** 0.5)
    assert card.norms["unet"] == pytest.approx((768 * 4 * 1 + 4 * 36 * 4) ** 0.5)
    assert card.tags == {"ink style": 17, "a cat": 2}
    assert card.parameters == 2 * 768 + 8 + 72 + 8 + 768 + 3
    assert card.size == path.stat().st_size
    assert card.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert card.content == content_digest(Adapter.load(path))
    assert (card.converted, card.refused, card.thumbnail) == ([], [], jpeg())


def test_the_base_is_named(tmp_path: Path) -> None:
    text = Adapter(
        {"model.model.layers.0.mlp.up_proj": LoraPair(torch.ones(1, 2), torch.ones(3, 1), 2.0)},
        AdapterInfo({"stylora.base": "tiny-lm"}),
    )
    card = read_card(text.save(tmp_path / "pirate", "peft"))
    assert (card.family, card.base, card.modules) == ("lm", "tiny-lm", {"model": {"L00": 1}})
    header = AdapterInfo({"ss_sd_model_name": "tiny-sd"})
    assert read_card(Adapter(text.pairs, header).save(tmp_path / "ink", "peft")).base == "tiny-sd"


def test_a_card_is_json_without_the_picture(path: Path) -> None:
    told = json.loads(json.dumps(read_card(path).data()))
    assert told["thumbnail"] == len(jpeg())
    assert "modelspec.thumbnail" not in told["metadata"]
    assert told["metadata"]["ss_output_name"] == "ink"


def test_a_folder_has_a_card_too(adapter: Adapter, tmp_path: Path) -> None:
    card = read_card(adapter.save(tmp_path / "ink.peft", "peft"))
    files = [file for file in (tmp_path / "ink.peft").rglob("*") if file.is_file()]
    assert (card.format, card.name, card.modules["unet"]) == ("peft", "Ink", {"IN00": 1, "OUT05": 1})
    assert (len(files), card.size) == (4, sum(file.stat().st_size for file in files))


def test_what_is_converted_and_what_is_refused_is_said(tmp_path: Path) -> None:
    loha = {f"lora_unet_conv_out.hada_w{n}": torch.ones(1, 1) for n in ("1_a", "1_b", "2_a", "2_b")}
    save_file(loha | {"stranger": torch.ones(1)}, tmp_path / "x")
    card = read_card(tmp_path / "x")
    assert card.converted == ["1 modules: LoHa (LyCORIS), exact"]
    assert card.refused == ["stranger: an unknown name (1 tensor)"]
    assert (card.name, card.family, card.tags, card.thumbnail) == ("x", "", {}, None)


def test_the_thumbnail_is_saved_as_it_is_or_as_png(path: Path, tmp_path: Path) -> None:
    card = read_card(path)
    save_thumbnail(card, tmp_path / "t.jpg")
    assert (tmp_path / "t.jpg").read_bytes() == jpeg()
    save_thumbnail(card, tmp_path / "t.PNG")
    with Image.open(tmp_path / "t.PNG") as picture:
        assert (picture.format, picture.size) == ("PNG", (8, 6))


def test_a_thumbnail_that_cannot_be_saved(path: Path, tmp_path: Path) -> None:
    card = read_card(path)
    (tmp_path / "there.jpg").write_bytes(b"old")
    broken = Adapter({TEXT: LoraPair(torch.ones(1, 2), torch.ones(3, 1), 2.0)})
    none = read_card(broken.save(tmp_path / "none"))
    info = AdapterInfo({"modelspec.thumbnail": "data:image/jpeg;base64,AAAA"})
    odd = read_card(Adapter(broken.pairs, info).save(tmp_path / "odd"))
    for which, out, says in (
        (card, "there.jpg", "exists"), (card, "t.gif", ".jpg or .png"), (card, "no/t.jpg", "can't be written"),
        (none, "t.jpg", "no thumbnail"), (odd, "t.png", "can't be written"),
    ):  # fmt: skip
        with pytest.raises(AdapterError, match=says):
            save_thumbnail(which, tmp_path / out)
    assert (tmp_path / "there.jpg").read_bytes() == b"old"
    save_thumbnail(card, tmp_path / "there.jpg", overwrite=True)
    assert (tmp_path / "there.jpg").read_bytes() == jpeg()
