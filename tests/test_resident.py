"""Adapters made resident: their digests, twins and swapped files told, what of them is lost, all faults at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from studio.draw.use import Use, located
from studio.resident import base_of, check_digests, hang
from trainers.errors import AdapterError, BaseError
from trainers.lora.adapter import Adapter, AdapterInfo
from trainers.lora.pair import LoraPair
from trainers.lora.rack import Rack


@pytest.fixture
def rack() -> Rack:
    return Rack({"model": nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})})


def use_of(path: Path, *names: str) -> Use:
    pairs = {f"model.{name}": LoraPair(torch.randn(1, 4), torch.randn(4, 1), 1.0) for name in names}
    return Use(Adapter(pairs).save(path, "peft"))


def test_adapters_are_resident_and_have_their_digests(rack: Rack, tmp_path: Path) -> None:
    wanted = [use_of(tmp_path / "one", "a", "b"), use_of(tmp_path / "two", "a")]
    uses, notes = hang(rack, wanted)
    assert rack.resident == tuple(use.digest for use in uses)
    assert [replace(use, digest="", sha256="") for use in uses] == wanted
    assert notes == ()
    assert hang(Rack(rack.parts), uses)[0] == uses


def test_a_part_that_is_lost(rack: Rack, tmp_path: Path) -> None:
    use = use_of(tmp_path / "one", "a", "gone")
    with pytest.raises(AdapterError, match="only part of this adapter"):
        hang(rack, [use])
    assert "of its energy acts in this base" in hang(rack, [use], partial=True)[1][0]


NAMES = [("stylora.base", "tiny-lm", "1"), ("ss_sd_model_name", "tiny-sd", "1")]
SILENT = [("ss_sd_model_name", "other", "1"), ("ss_sd_model_name", "tiny-sd", "2"), ("ss_sd_model_name", "tiny-sd", "")]


@pytest.mark.parametrize(("key", "name", "known"), NAMES + SILENT)
def test_another_base_of_the_same_name(rack: Rack, tmp_path: Path, key: str, name: str, known: str) -> None:
    """Nothing is said of an adapter on a base of another name, nor where its digest is the same or isn't known."""
    header = {key: name, "stylora.base_digest": known * 64, "ss_new_sd_model_hash": "1" * 64}
    pairs = {"model.a": LoraPair(torch.randn(1, 4), torch.randn(4, 1), 1.0)}
    use = Use(Adapter(pairs, AdapterInfo(header)).save(tmp_path / "ink", "peft"))
    base = f"/bases/{name}" if (key, name, known) in NAMES else "tiny-sd"
    notes = hang(rack, [use], base=base, base_digest="2" * 64)[1]
    told = f"ink was trained on another {name} (its digest is 11111111, this base's is 22222222): it may not act"
    assert [note.startswith(told) for note in notes] == [True] * ((key, name, known) in NAMES)


def test_all_that_is_wrong_is_told(rack: Rack, tmp_path: Path) -> None:
    one, two = use_of(tmp_path / "one", "a"), use_of(tmp_path / "two", "gone")
    with pytest.raises(AdapterError, match="the same adapter as"):
        hang(rack, [one, replace(one, name="twin")])
    with pytest.raises(AdapterError, match="2 adapters can't be used") as caught:
        hang(rack, [two, replace(one, digest="ab")])
    faults = "\n".join(caught.value.faults)
    assert "made for another base" in faults
    assert "not the adapter of the recipe" in faults


def test_bases(tmp_path: Path) -> None:
    assert [base_of(base) for base in ("tiny-lm", "owner/name")] == ["tiny-lm", "owner/name"]
    assert base_of(str(tmp_path / ".." / tmp_path.name)) == str(located(tmp_path))
    check_digests("a", {"model": "1"}, {"model": "1", "tokenizer": "2"})
    with pytest.raises(BaseError) as caught:
        check_digests("a", {"model": "1", "tokenizer": "2"}, {"model": "3", "tokenizer": "4"})
    assert len(caught.value.faults) == 2
