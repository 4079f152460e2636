"""The Train page without a browser: data by drop, paste and sample; captions, faults, settings; a whole training."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pages import DESK, draft, engine_of, finished, said, sound, visit
from shelves import picture
from streamlit.testing.v1 import AppTest

from studio.app.parts import form, runs
from studio.desk import dataset_view
from studio.desk.dataset_view import Wishes
from studio.desk.datasets import Datasets
from studio.desk.engine import Engine
from studio.desk.following import Course
from tests.checkpoints import random_adapter
from trainers import events
from trainers.errors import AdapterError

PATIENCE = 240  # seconds that a child may take on a busy machine
TINY = {"train.steps": 2, "train.batch": 1, "train.preview_every": 0, "train.save_every": 0, "optim.name": "adamw",
        "train.device": "cpu"}  # fmt: skip


@pytest.fixture
def engine(tmp_path: Path, tiny_base: Path) -> Iterator[Engine]:
    with engine_of(tmp_path / "home", str(tiny_base), "tiny-lm") as opened:
        yield opened


@pytest.fixture
def datasets(engine: Engine) -> Datasets:
    """Those of the desk."""
    return Datasets(engine.home, desk=DESK)


@pytest.fixture
def folder(datasets: Datasets) -> Path:
    """A dataset of one's own: two pictures, a caption for one of them."""
    made = datasets.create("moss")
    files = [(f"{name}.png", picture(name, "PNG", (32, 32))) for name in ("red", "blue")]
    datasets.add(made, [*files, ("red.txt", b"a red square")])
    return made


def test_an_empty_page_offers_the_samples(engine: Engine, datasets: Datasets) -> None:
    at = visit(engine, "train")
    assert "What should it learn" in said(at)
    at.button(key="sample.ink").click().run()
    assert "16 captions" in said(sound(at))
    assert at.text_input(key="w.train.trigger.ink").value == "ink style"
    at.button(key="material.copy").click().run()
    assert datasets.names() == ["my ink"]
    assert at.text_input(key="w.train.trigger.my ink").value == "ink style"
    assert len(at.text_area) >= 16  # captions to edit


def test_pictures_that_are_dropped_become_a_dataset(engine: Engine, datasets: Datasets) -> None:
    at = visit(engine, "train")
    files = [(f"moss_{k}.png", picture(colour, "PNG"), "image/png") for k, colour in enumerate(("red", "blue"))]
    at.file_uploader[0].set_value([*files, ("moss_0.txt", b"a stone", "text/plain")]).run()
    assert datasets.names() == ["moss"]
    assert "a stone" in [area.value for area in sound(at).text_area]


def test_captions_are_edited_in_place_and_faults_stand_beside(engine: Engine, folder: Path) -> None:
    at = visit(engine, "train", train__style=str(folder))
    assert at.button(key="train.start").disabled
    assert "1 picture can't be learned from" in said(at)
    bare = next(area for area in at.text_area if area.value == "" and "blue" in area.label)
    bare.set_value("a blue square").run()
    assert (folder / "blue.txt").read_text() == "a blue square\n"
    at.run()
    assert not at.button(key="train.start").disabled
    out = next(button for button in at.button if button.label == "Take out")
    out.click().run()
    assert len(list(folder.glob("*.png"))) == 1
    next(button for button in at.button if button.label.startswith("Put back")).click().run()
    assert sound(at)


def test_text_is_pasted_and_what_is_learned_is_marked(engine: Engine) -> None:
    at = visit(engine, "train")
    area = next(area for area in at.text_area if area.label == "Text in one voice")
    area.set_value("Ahoy there.\n\nBelay that, ye dogs.\n\nHoist the sails.")
    next(button for button in at.button if button.label == "Add this text").click().run()
    assert "<mark>Ahoy there.</mark>" in said(sound(at))
    assert at.selectbox(key="w.train.base.text").value == "tiny-lm"


def test_settings_are_the_presets_until_changed(engine: Engine, folder: Path) -> None:
    at = visit(engine, "train", train__style=str(folder))
    at.radio(key="w.train.preset.pictures").set_value("quick").run()
    assert at.number_input(key="form.pictures.lora.rank").value == 8
    at.number_input(key="form.pictures.lora.rank").set_value(5).run()
    at.text_input(key="form.pictures.optim.lr").set_value("-1").run()
    assert "optim.lr" in at.error[0].value.replace("\\", "")
    assert at.button(key="train.start").disabled
    assert draft(at, "train.values.pictures") == {"lora.rank": 5, "optim.lr": -1.0}
    at.button(key="form.reset").click().run()
    assert at.number_input(key="form.pictures.lora.rank").value == 8
    assert draft(at, "train.values.pictures") is None


def test_a_training_goes_on_without_the_page_and_its_adapter_can_be_used(engine: Engine, folder: Path) -> None:
    drafts = {"train__style": str(folder), "train__trigger__moss": "moss", "train__values__pictures": TINY}
    visit(engine, "train", **drafts).button(key="train.start").click().run()
    (row,) = engine.training.runs()
    at = until_over(engine, row.id)
    status = engine.training.status(row.id)
    assert status.state == "done", status.error
    assert "Its trigger word: **moss**" in said(at)
    at.button(key=f"run.use.{status.run.adapter}").click().run()
    assert draft(at, "generate.rack")[0]["id"] == status.run.adapter
    at = visit(engine, "train")
    at.button(key="run.remove").click().run()
    assert engine.training.runs() == []
    assert [entry.name for entry in engine.library.cards()] == ["moss"]


def until_over(engine: Engine, run: str) -> AppTest:
    until = time.monotonic() + PATIENCE
    while engine.training.status(run).state in runs.LIVE and time.monotonic() < until:
        time.sleep(0.3)
    return finished(visit(engine, "train"), engine)


def test_a_queue_is_shown_stopped_and_resumed(engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.training, "_mind", lambda: None)  # nobody begins one
    drafts = {"train__style": str(folder), "train__trigger__moss": "moss"}
    for _ in range(2):
        at = visit(engine, "train", **drafts).button(key="train.start").click().run()
    sound(at)
    assert [row.state for row in engine.training.runs()] == ["waiting", "waiting"]
    at.button(key="run.stop").click().run()
    assert engine.training.runs()[0].state == "stopped"
    at.button(key="run.resume").click().run()
    assert engine.training.runs()[0].state == "waiting"


def test_each_desk_sees_its_own_datasets(engine: Engine, folder: Path) -> None:
    Datasets(engine.home, desk="another-desk-of-letters").create("theirs")
    at = visit(engine, "train")
    assert at.button(key="own.moss")
    assert not [button for button in at.button if button.key == "own.theirs"]
    sound(at.button(key="own.moss").click().run())
    assert draft(at, "train.style") == str(folder)
    assert next(area for area in at.text_area if area.value == "a red square")  # may be edited


def test_where_others_come_in_no_base_elsewhere_is_looked_at(
    engine: Engine, folder: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "bases", (engine.home,))
    at = visit(engine, "train", train__style=str(folder), train__base__pictures=str(tiny_base))
    assert "outside the folders" in said(at)
    assert at.button(key="train.start").disabled


@pytest.fixture
def trained(engine: Engine, folder: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A training as its child leaves it, with notes; its adapter isn't in the library."""
    monkeypatch.setattr(engine.training, "_mind", lambda: None)
    drafts = {"train__style": str(folder), "train__trigger__moss": "moss"}
    visit(engine, "train", **drafts).button(key="train.start").click().run()
    (row,) = engine.training.runs()
    out = engine.home / ".studio" / "runs" / row.id / "run"
    out.mkdir()
    random_adapter(tiny_base, 1).save(out / "moss.safetensors")
    (out / "report.json").write_text(json.dumps({"adapter": "moss.safetensors", "seconds": 1.0, "steps": 2}))
    shown = dataset_view.look(folder, str(tiny_base), Wishes("moss"))
    notes = (*shown.notes, "something else")
    (out / "events.jsonl").write_text("".join(events.to_json(events.Note(note)) + "\n" for note in notes))
    engine.training._put(replace(row, state="done"))
    return row.id


def test_an_adapter_that_is_not_in_the_library_is_put_there(
    engine: Engine, trained: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = visit(engine, "train")
    with monkeypatch.context() as full:
        full.setattr(engine.library, "add_path", _full)
        sound(at.button(key="run.put").click().run())
        assert "No space left" in said(at)
    assert [button.key for button in at.button if button.key in ("run.remove", "run.put")] == ["run.remove", "run.put"]
    sound(at.button(key="run.remove").click().run())
    assert engine.training.run(trained)  # its only copy isn't thrown away
    sound(at.button(key="run.put").click().run())
    (entry,) = engine.library.cards()
    assert "is in the library" in said(at)
    engine.library.remove(entry.id)
    sound(visit(engine, "train").button(key="run.put").click().run())
    assert [one.id for one in engine.library.cards()] == [entry.id]


def _full(path: Path) -> None:
    raise AdapterError(f"{path.name}: can't be copied", ["No space left on device"])


def test_an_adapter_that_no_library_takes_goes_with_its_run(engine: Engine, trained: str) -> None:
    sound(visit(engine, "train").button(key="run.delete").click().run())
    assert engine.training.runs() == []
    assert engine.library.cards() == []


def test_an_adapter_that_is_gone_for_good_is_told(engine: Engine, trained: str) -> None:
    shutil.rmtree(engine.home / ".studio" / "runs" / trained / "run")
    at = visit(engine, "train")
    assert "isn't in the library" in said(at)
    assert not [button for button in at.button if button.key == "run.put"]


def test_notes_take_a_line_and_are_said_once(engine: Engine, folder: Path, trained: str) -> None:
    at = visit(engine, "train")
    assert said(at).count("1 captions from .txt") == 1
    assert [one.value.count("something else") for one in at.caption if "1 captions" in one.value] == [1]
    sound(at.button(key=f"run.{trained}").click().run())  # folds it
    assert said(at).count("1 captions from .txt") == 1
    assert "something else" not in said(at)


# --- words and curves ------------------------------------------------------------------------------------------------


def test_times_are_told_in_words() -> None:
    assert [runs.clock(seconds) for seconds in (45, 200, 6000)] == ["45 s", "3 min", "1 h 40 min"]
    assert [form.duration(minutes) for minutes in (None, 0.3, 12.0, 150.0)] == [
        "", "About 20 s here.", "About 12 min here.", "About 2.5 h here.",
    ]  # fmt: skip


def test_curves_are_thinned_and_keep_their_ends() -> None:
    losses = tuple((step, 1.0) for step in range(1, 2001))
    few = runs.thinned(losses)
    assert len(few) <= runs.POINTS
    assert few[-1][0] == 2000
    assert runs.smoothed(losses)[0][1] == pytest.approx(1.0)
    course = Course(losses=losses, validations=((100, 0.5),), steps=2000)
    spec = runs.curves(course)  # type: ignore[arg-type]
    assert {row["of"] for row in spec["data"]["values"]} == {"batch", "mean", "held out"}
    assert spec["encoding"]["x"]["axis"]["tickMinStep"] == 1  # there are no half steps
