"""W' = W + gain * delta in the base's own kinds of number; every other byte of the base is as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("gguf", reason="the extra `gguf` isn't installed")

import gguf

from studio.draw.use import Use
from studio.gguf import merge as merging
from studio.gguf.merge import NOTE, merge_gguf
from studio.gguf.numbers import FLOATS, slack
from studio.gguf.package import value
from tests.ggufs import DOWN, MODULES, SHAPES, K, Q, as_in_ggml, numbers, saved, small, uneven
from trainers.errors import AdapterError, BaseError, ConfigError, RunError, StyloraError
from trainers.lora.adapter import Adapter, content_digest
from trainers.lora.gains import Gain
from trainers.lora.pair import LoraPair


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return small(tmp_path / "base.gguf")


def use(adapter: Adapter, path: Path, weight: float = 1.0) -> Use:
    return Use(saved(adapter, path), Gain(weight))


@pytest.mark.parametrize("kind", FLOATS)
def test_the_sum_is_in_the_file(kind: str, tmp_path: Path) -> None:
    base = small(tmp_path / "base.gguf", kind)
    one, two = uneven(SHAPES), uneven({Q: (64, 64), K: (32, 64)}, seed=1)
    uses = [use(one, tmp_path / "one", 0.5), use(two, tmp_path / "two", -2.0)]
    made = merge_gguf(base, uses, tmp_path / "merged.gguf")
    was, now = numbers(base), numbers(made.path)
    for path, (tensor, _) in MODULES.items():
        delta = 0.5 * one.pairs[path].delta()
        delta = delta - 2.0 * two.pairs[path].delta() if path in two.pairs else delta
        wanted = was[tensor] + as_in_ggml(path, delta)
        assert bool(((now[tensor] - wanted).abs() <= slack(kind, wanted) + 1e-6).all())
        lost = (now[tensor] - wanted).norm() / delta.norm()
        assert made.changed[tensor] == pytest.approx(float(lost), rel=0.05, abs=1e-6)
    assert made.error == max(made.changed.values())


def test_all_else_is_the_bases_to_the_byte(base: Path, tmp_path: Path) -> None:
    adapter = uneven({Q: (64, 64)})
    made = merge_gguf(base, [use(adapter, tmp_path / "a", 0.5)], tmp_path / "merged.gguf")
    old, new = gguf.GGUFReader(base), gguf.GGUFReader(made.path)
    named = {
        key: [part.tobytes() for part in field.parts] for key, field in old.fields.items() if key != "GGUF.kv_count"
    }
    found = {
        key: [part.tobytes() for part in field.parts] for key, field in new.fields.items() if key != "GGUF.kv_count"
    }
    story = json.loads(value(new, NOTE))
    found.pop(NOTE)
    assert list(found) == list(named)
    assert found == named
    assert story["adapters"][0] | {"content": content_digest(adapter), "weight": 0.5} == story["adapters"][0]
    assert [(one.name, one.tensor_type, one.shape.tolist()) for one in new.tensors] == [
        (one.name, one.tensor_type, one.shape.tolist()) for one in old.tensors
    ]
    same = {
        one.name for one, two in zip(old.tensors, new.tensors, strict=True) if one.data.tobytes() == two.data.tobytes()
    }
    assert same == {one.name for one in old.tensors} - {"blk.0.attn_q.weight"}
    assert new.data_offset % 64 == 0


def test_a_merged_base_can_be_merged_into(base: Path, tmp_path: Path) -> None:
    adapter = use(uneven(SHAPES), tmp_path / "a")
    once = merge_gguf(base, [adapter], tmp_path / "once.gguf").path
    twice = merge_gguf(once, [adapter], tmp_path / "twice.gguf").path
    reader = gguf.GGUFReader(twice)
    assert value(reader, NOTE) == value(reader, f"{NOTE}.1")


def test_blocks_of_rows_make_no_difference(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uses = [use(uneven(SHAPES), tmp_path / "a")]
    whole = merge_gguf(base, uses, tmp_path / "whole.gguf").path.read_bytes()
    monkeypatch.setattr(merging, "BLOCK", 700)
    monkeypatch.setattr(merging, "COPY", 1000)
    assert merge_gguf(base, uses, tmp_path / "parts.gguf").path.read_bytes() == whole


def test_kinds_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(BaseError, match=r"blk.0.attn_q.weight is Q4_0(.|\n)*F16 GGUF(.|\n)*llama-quantize"):
        merge_gguf(small(tmp_path / "b.gguf", "Q4_0"), [use(uneven(SHAPES), tmp_path / "a")], tmp_path / "m.gguf")


def test_all_that_keeps_it_from_being_made_is_said(base: Path, tmp_path: Path) -> None:
    path = saved(uneven(SHAPES), tmp_path / "a")
    scheduled = Use(path, Gain(schedule=((0.0, 1.0), (1.0, 0.0))))
    with pytest.raises(ConfigError) as caught:
        merge_gguf(base, [scheduled], tmp_path / "a")
    assert [fault.partition(": ")[2][:9] for fault in caught.value.faults] == ["has a sch", "the base ", "exists"]
    with pytest.raises(ConfigError, match=r"that is the base"):
        merge_gguf(base, [Use(path)], base, overwrite=True)
    with pytest.raises(ConfigError, match=r"every weight is 0"):
        merge_gguf(base, [Use(path, Gain(0.0))], tmp_path / "m.gguf")
    with pytest.raises(ConfigError, match=r"no adapter"):
        merge_gguf(base, [], tmp_path / "m.gguf")
    with pytest.raises(AdapterError, match=r"stands there twice"):
        merge_gguf(base, [Use(path), Use(path)], tmp_path / "m.gguf")
    with pytest.raises(AdapterError, match=r"isn't the adapter of the recipe"):
        merge_gguf(base, [Use(path, digest="0" * 64)], tmp_path / "m.gguf")


def test_part_of_an_adapter(base: Path, tmp_path: Path) -> None:
    more = uneven({**SHAPES, "model.lm_head": (3, 64), DOWN.replace(".0.", ".1."): (64, 96)})
    uses = [use(more, tmp_path / "a")]
    with pytest.raises(AdapterError, match=r"only part(.|\n)*lm_head"):
        merge_gguf(base, uses, tmp_path / "m.gguf")
    made = merge_gguf(base, uses, tmp_path / "m.gguf", partial=True)
    assert len(made.changed) == 4
    assert "of its energy acts in this base" in made.notes[0]


def test_what_rounding_takes_is_said(tmp_path: Path) -> None:
    base, adapter = small(tmp_path / "b.gguf", "BF16"), uneven(SHAPES, size=0.02)
    made = merge_gguf(base, [use(adapter, tmp_path / "a")], tmp_path / "m.gguf")
    assert made.error > 0.1
    assert made.notes == (
        f"rounding took up to {made.error:.0%} of the change in 4 tensors; wider numbers would keep it",
    )
    with pytest.raises(RunError, match=r"rounding has eaten the adapters"):
        merge_gguf(base, [use(adapter, tmp_path / "c", 1e-4)], tmp_path / "n.gguf")
    assert not (tmp_path / "n.gguf").exists()


def test_numbers_too_large_for_the_base(base: Path, tmp_path: Path) -> None:
    pair = LoraPair(torch.full((1, 64), 1e3), torch.full((64, 1), 1e3), 1.0)
    with pytest.raises(RunError, match=r"blk.0.attn_q.weight: too large a number for F16"):
        merge_gguf(base, [use(Adapter({Q: pair}), tmp_path / "a")], tmp_path / "m.gguf")


@pytest.mark.parametrize("what", ["number", "other", "header"])
def test_a_result_that_is_something_else_is_not_kept(
    what: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, copy, header = merging.encode, merging._copy, merging._header
    if what == "number":
        monkeypatch.setattr(merging, "encode", lambda kind, wide: encode(kind, wide + 0.01))
    elif what == "other":
        monkeypatch.setattr(merging, "_copy", lambda stream, data: copy(stream, data ^ 1))
    else:
        monkeypatch.setattr(merging, "_header", lambda *all: header(*all).replace(b"any.number", b"any.nomber"))
    with pytest.raises(StyloraError, match=r"off by|isn't the base's|not a whole GGUF"):
        merge_gguf(base, [use(uneven({Q: (64, 64)}), tmp_path / "a")], tmp_path / "m.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "base.gguf"]


def test_a_modelfile_beside_it(base: Path, tmp_path: Path) -> None:
    uses = [use(uneven(SHAPES), tmp_path / "a")]
    merge_gguf(base, uses, tmp_path / "m.gguf", with_modelfile=True)
    assert (tmp_path / "Modelfile").read_text() == "FROM ./m.gguf\n"
    with pytest.raises(ConfigError, match=r"Modelfile: exists"):
        merge_gguf(base, uses, tmp_path / "n.gguf", with_modelfile=True)
