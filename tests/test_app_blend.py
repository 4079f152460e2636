"""The Blend page without a browser: a blend and its certificate, the comparison, merge with receipt, export."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lms import lm
from pages import DESK, draft, engine_of, finished, said, visit

from studio.app.parts import adapter, beside, cutting
from studio.app.views import blend
from studio.blend.methods import METHODS
from studio.desk import downloads
from studio.desk.engine import Engine
from tests.checkpoints import random_adapter
from trainers.lora.adapter import Adapter, content_digest, save_dora
from trainers.lora.formats import FORMATS
from trainers.lora.kinds import NEEDS_BASE


@pytest.fixture
def engine(tmp_path: Path, tiny_base: Path) -> Iterator[Engine]:
    (tmp_path / "home").mkdir()
    with engine_of(tmp_path / "home", str(tiny_base), "tiny-lm") as opened:
        yield opened


@pytest.fixture
def hung(engine: Engine, tiny_base: Path) -> list[dict[str, object]]:
    """Two adapters of the library, in the rack."""
    for seed, name in enumerate(("ink", "neon")):
        random_adapter(tiny_base, seed, kinds=("attn",)).save(engine.home / f"{name}.safetensors")
    engine.library.refresh()
    return [{"id": entry.id, "weight": 0.5} for entry in engine.library.cards()]


def test_an_empty_library_says_how_to_begin(engine: Engine) -> None:
    at = visit(engine, "blend")
    assert "Nothing to blend yet" in said(at)
    at.button(key="blend.train").click().run()
    assert draft(at, "train.style") == "ink"


def test_a_blend_lands_in_the_library_with_its_certificate(engine: Engine, hung: list[dict[str, object]]) -> None:
    at = visit(engine, "blend", generate__rack=hung)
    at.button(key="blend.take").click().run()
    at.segmented_control(key="w.blend.cut").set_value("rank").run()
    at.slider(key="w.blend.rank").set_value(3).run()
    at.button(key="blend.go").click().run()
    at = finished(at, engine, draft(at, "blend.job.blend")["job"])
    assert [metric.label for metric in at.metric] == ["Energy kept", "In the file", "Ranks"]
    assert at.metric[2].value == "3"
    (entry,) = (one for one in engine.library.cards() if one.name == "ink and neon")
    with adapter._file_of(entry.id) as stream:
        assert stream.read() == entry.path.read_bytes()
    at.button(key="blend.go").click().run()  # the name is taken by now
    assert "in the library already" in said(finished(at, engine, draft(at, "blend.job.blend")["job"]))


def test_the_live_blend_beside_the_file(
    engine: Engine, hung: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    at = visit(engine, "blend", blend__rack=hung, blend__method="concat", blend__dtype="fp32")
    at.button(key="blend.go").click().run()
    at = finished(at, engine, draft(at, "blend.job.blend")["job"])
    monkeypatch.setattr(beside, "job", _quick)
    at.button(key="blend.compare").click().run()
    at = finished(at, engine, *draft(at, "blend.beside")["jobs"])
    live, file = (engine.store.job(job).spec["recipe"] for job in draft(at, "blend.beside")["jobs"])
    assert (live.count("[[adapter]]"), file.count("[[adapter]]")) == (2, 1)
    assert len(engine.store.pictures(None)) == 2
    at.button(key="blend.then.merge").click().run()
    assert len(draft(at, "blend.rack")) == 1
    assert at.button(key="blend.merge")


def _quick(kind: str, base: str, uses: tuple[object, ...]) -> object:
    from studio.desk.jobs import Draw
    from studio.draw.recipe import Recipe

    return Draw(Recipe("x", base=base, adapters=uses, steps=1, guidance=1.0))  # type: ignore[arg-type]


def test_a_merge_shows_its_receipt_and_is_a_base_from_then_on(engine: Engine, hung: list[dict[str, object]]) -> None:
    at = visit(engine, "blend", blend__rack=hung, blend__what="merge", blend__merged="both")
    at.button(key="blend.merge").click().run()
    at = finished(at, engine, draft(at, "blend.job.merge")["job"])
    assert "Proved" in said(at)
    assert "of what the adapters do" in said(at)
    made = engine.file(draft(at, "blend.job.merge")["job"], DESK)
    at.run()
    assert "both (merged here)" in at.selectbox(key="w.blend.base.pictures").options
    with downloads.opened(made, engine.home) as stream, zipfile.ZipFile(stream) as archive:
        assert "both/model_index.json" in archive.namelist()
    assert not [box for box in at.checkbox if "Replace" in box.label]  # two of one name lie beside each other


def test_an_export_reads_back(engine: Engine, hung: list[dict[str, object]]) -> None:
    at = visit(engine, "blend", blend__rack=hung, blend__what="export", blend__to__pictures="diffusers")
    at.button(key="blend.export").click().run()
    job = draft(at, "blend.job.export")["job"]
    at = finished(at, engine, job)
    assert "modules as" in said(at)
    path = engine.file(job, engine.store.job(job).desk)
    assert content_digest(Adapter.load(path)) == hung[0]["id"]


@pytest.fixture
def dora(engine: Engine, tmp_path: Path) -> tuple[str, str]:
    """A DoRA of the library, its base."""
    base = lm("llama", tmp_path)
    plain = random_adapter(base, 3, kinds=("q_proj",))
    save_dora(engine.home / "bard", plain, {path: torch.ones(len(pair.up)) for path, pair in plain.pairs.items()})
    engine.library.refresh()
    return next(entry.id for entry in engine.library.cards() if entry.name == "bard"), str(base)


def test_a_dora_is_blended_exported_and_measured_with_its_base(engine: Engine, dora: tuple[str, str]) -> None:
    id, base = dora
    rack = [{"id": id, "weight": 0.5}]
    at = visit(engine, "blend", blend__rack=rack, blend__base__text=base, blend__name="softer")
    at.button(key="blend.go").click().run()
    at = finished(at, engine, draft(at, "blend.job.blend")["job"])
    assert "softer" in [entry.name for entry in engine.library.cards()], said(at)
    at = visit(engine, "blend", blend__rack=rack, blend__what="export", blend__to__text="peft")
    at.button(key="blend.export").click().run()
    at = finished(at, engine, draft(at, "blend.job.export")["job"])
    assert "modules as" in said(at)
    at = visit(engine, "library", library__open=id, library__section="Anatomy", library__base_of__text=base)
    at.button(key="one.measure").click().run()
    at = finished(at, engine, draft(at, f"library.anatomy.{id[:16]}"))
    assert at.json, said(at)


def test_without_a_dora_no_base_is_asked_for(engine: Engine, hung: list[dict[str, object]]) -> None:
    at = visit(engine, "blend", blend__rack=hung)
    assert not [box for box in at.selectbox if box.label == "Base"]
    assert adapter.DORA in NEEDS_BASE


def test_lists_are_those_of_the_library_code() -> None:
    assert {name: (row.about, row.takes) for name, row in METHODS.items()} == cutting.METHODS
    assert set(blend.FORMATS) == {*FORMATS, "gguf"}


EARLY = "unet.down_blocks.0.attentions.0.proj_in"


def test_what_a_layer_kept_is_a_share() -> None:
    table = {"layers": {"unet.mid_block.x": [4, 3.0, 1.0, 1.0], EARLY: [2, 0.0, 0.0, 0.0]}}
    rows = cutting.kept(table)["data"]["values"]
    assert [(row["path"], row["kept"]) for row in rows] == [(EARLY, 100.0), ("unet.mid_block.x", 75.0)]
