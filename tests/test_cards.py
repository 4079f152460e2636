"""What the library says of a file: an id that is its numbers', facts or a fault, never an exception."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from shelves import CROSS, style, voice

from studio.desk import cards
from studio.desk.cards import described
from trainers.errors import StyloraError
from trainers.lora.adapter import Adapter, content_digest, digest, save_dora
from trainers.lora.formats.names import CONFIG_FILE


def test_the_id_is_the_numbers(tmp_path: Path) -> None:
    one = described(style(1, trigger="a").save(tmp_path / "a.safetensors"))
    same = described(style(1, trigger="b").save(tmp_path / "b.safetensors"))
    other = described(style(2).save(tmp_path / "c.safetensors"))
    assert one.id == same.id == content_digest(Adapter.load(tmp_path / "a.safetensors")) != other.id
    assert (one.facts or {})["trigger"] == "a"


def test_where_not_all_can_be_read_the_id_is_the_files(tmp_path: Path) -> None:
    for number in (1.0, 2.0):
        save_dora(tmp_path / f"{number}", style(number), {CROSS: torch.ones(4)})
    first, second = (described(tmp_path / name) for name in ("1.0", "2.0"))
    assert (first.id, second.id) == (digest(tmp_path / "1.0"), digest(tmp_path / "2.0"))
    assert first.error is None
    assert (first.facts or {})["kind"] == "pictures"
    assert "DoRA" in (first.facts or {})["refused"][0]
    save_dora(tmp_path / "lm", voice(), dict.fromkeys(voice().pairs, torch.ones(3)))
    assert (described(tmp_path / "lm").facts or {})["kind"] == "text"


def test_facts_are_json_of_a_small_size(tmp_path: Path) -> None:
    adapter = style(thumbnail=b"x" * 100_000)
    adapter.info.metadata["ss_long"] = "y" * 100_000
    facts = described(adapter.save(tmp_path / "a.safetensors")).facts or {}
    assert len(json.dumps(facts)) < 5_000
    assert facts["metadata"]["ss_long"].startswith("yyy")
    assert str(tmp_path) not in json.dumps(facts)


@pytest.mark.parametrize(
    ("said", "base"),
    [("owner/name", "owner/name"), ("/home/me/models/llama", "llama"), ("./llama", "llama"), (None, ""), ([], "")],
)
def test_a_peft_folder_names_its_base(tmp_path: Path, said: object, base: str) -> None:
    adapter = Adapter(voice().pairs)
    adapter.save(tmp_path / "p", "peft")
    config = json.loads((tmp_path / "p" / CONFIG_FILE).read_text()) | {"base_model_name_or_path": said}
    (tmp_path / "p" / CONFIG_FILE).write_text(json.dumps(config))
    assert (described(tmp_path / "p").facts or {})["base"] == base


def test_faults_are_told_without_the_servers_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"junk")
    save_file({"lora_unet_conv_out.oft_blocks": torch.ones(1)}, tmp_path / "b.safetensors")
    save_file({"lora_unet_conv_out.lora_down.weight": torch.ones(1, 1)}, tmp_path / "c.safetensors")
    save_file({"weight": torch.ones(1)}, tmp_path / "base.safetensors")
    found = [described(path) for path in sorted(tmp_path.iterdir())]
    assert [one.id.startswith("broken-") for one in found] == [True] * 4
    assert len({one.id for one in found}) == 4
    for name, one in zip(("a", "b", "base", "c"), found, strict=True):
        assert one.error is not None
        assert one.error["what"].startswith(f"{name}.safetensors: ")
        assert one.error["faults"]
        assert one.error["next_step"]
        assert str(tmp_path) not in json.dumps(one.error)
    monkeypatch.setattr(cards, "read_card", lambda path: [][0])
    told = described(tmp_path / "a.safetensors").error or {}
    assert told["what"] == "a.safetensors: can't be read"


def test_a_base_is_not_fetched_to_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    path = style().save(tmp_path / "a.safetensors")
    for base in ("owner/name", "sd15", str(tmp_path / "nowhere"), "a b"):
        with pytest.raises(StyloraError, match="isn't on this machine yet"):
            cards.fit(path, base)
