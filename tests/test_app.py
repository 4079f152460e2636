"""The frame, the Generate page and the Library page, driven without a browser; the engine and its base are real."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from pages import said
from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager
from streamlit.runtime.uploaded_file_manager import UploadedFileRec
from streamlit.testing.v1 import AppTest

from studio.app import config, state
from studio.app.parts import canvas, gallery, notices, progress, rack, settings, sheet
from studio.desk.engine import Engine
from studio.draw.axes import AXES
from tests.checkpoints import random_adapter
from trainers.errors import AdapterError, RunError
from trainers.families.stable_diffusion import SAMPLERS
from trainers.lora.adapter import Adapter, AdapterInfo

MAIN = str(config.MAIN)
DESK = "a-desk-of-sixteen-letters"
Opened = Callable[..., AppTest]


@pytest.fixture
def home(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in config.Options(tmp_path / "home", str(tiny_base)).to_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(state, "WARM_AFTER", 1e6)
    return tmp_path / "home"


@pytest.fixture
def engine(home: Path) -> Iterator[Engine]:
    opened = state.engine()
    yield opened
    state.close()


@pytest.fixture
def ink(home: Path, tiny_base: Path) -> Path:
    """An adapter in the library's folder, with a trigger word."""
    home.mkdir(exist_ok=True)
    header = {"modelspec.trigger_phrase": "ink style", rack.EQUAL_FEEL: '{"weight": 0.83}'}
    return Adapter(random_adapter(tiny_base, 1).pairs, AdapterInfo(header)).save(home / "ink.safetensors")


@pytest.fixture
def app(engine: Engine) -> Opened:
    def open(page: str = "", desk: str = DESK, **drafts: Any) -> AppTest:
        at = AppTest.from_file(MAIN, default_timeout=60)
        at.query_params["desk"] = desk
        for name, value in drafts.items():
            engine.store.put(f"drafts/{desk}/{name.replace('__', '.')}", value)
        at.run()
        if page:
            at.switch_page(f"views/{page}.py").run()
        assert not at.exception
        return at

    return open


def finished(at: AppTest, engine: Engine) -> AppTest:
    """The page after its jobs."""
    for job in at.session_state["drafts"].get("generate.jobs", []):
        assert engine.wait(job, 60).over
    at.run()
    assert not at.exception
    return at


def desk_of(at: AppTest) -> str:
    """As the address has it."""
    found = at.query_params["desk"]
    return found if isinstance(found, str) else str(found[0])


# --- the frame -------------------------------------------------------------------------------------------------------


def test_a_desk_is_in_the_address_and_another_browser_has_another(app: Opened, engine: Engine) -> None:
    mine, other = app(), AppTest.from_file(MAIN, default_timeout=60).run()
    assert desk_of(mine) == DESK
    assert state.TOKEN.fullmatch(desk_of(other))
    assert desk_of(other) != DESK


def test_what_is_typed_survives_a_reload(app: Opened) -> None:
    app().text_area[0].set_value("a red house").run()
    assert app().text_area[0].value == "a red house"
    assert app(desk="another-desk-of-letters").text_area[0].value == ""


def test_a_page_that_is_turned_to_keeps_the_desk_and_gets_its_drafts(app: Opened) -> None:
    at = app().button(key="begin.train").click().run()
    assert not at.exception
    assert desk_of(at) == DESK
    assert at.session_state["drafts"]["train.style"] == "ink"


def test_two_tabs_of_a_browser_keep_each_others_drafts(app: Opened) -> None:
    one, other = app(), app()
    one.text_area[0].set_value("a red house").run()
    other.slider(key="w.generate.guidance").set_value(3.0).run()
    again = app()
    assert again.text_area[0].value == "a red house"
    assert again.slider(key="w.generate.guidance").value == 3.0


def test_clearing_streamlits_caches_leaves_the_engine(app: Opened, engine: Engine) -> None:
    app()
    st.cache_resource.clear()  # what a browser's clear_cache message does
    st.cache_data.clear()
    app()
    assert state.engine() is engine


def test_a_draft_that_cannot_be_stored_is_told_and_the_page_goes_on(
    app: Opened, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(key: str, value: Any) -> None:
        raise RunError("studio.db can't be written", ["database or disk is full"], "free some space")

    at = app()
    monkeypatch.setattr(engine.store, "put", full)
    at.text_area[0].set_value("a red house").run()
    assert not at.exception
    assert "disk is full" in at.error[0].value
    assert at.text_area[0].value == "a red house"
    assert not at.run().error  # once
    at.button(key="begin.train").click().run()
    assert at.text_input(key="w.train.trigger.ink")  # it turned all the same
    assert at.session_state["drafts"]["train.style"] == "ink"


def test_a_change_that_is_refused_is_told_and_the_page_goes_on(app: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RunError("no")

    at = app()
    monkeypatch.setattr(state, "put", refuse)
    at.text_area[0].set_value("a red house").run()
    assert "no" in at.error[0].value
    assert at.text_area
    assert not at.exception


def test_an_error_is_told_in_words() -> None:
    error = AdapterError("x*y is broken", ["a_b: too short", "c"], "get it again")
    assert notices.in_words(error).splitlines() == [
        "**x\\*y is broken**", "", "- a\\_b: too short".replace(": ", "\\: "), "- c", "", "Next: get it again",
    ]  # fmt: skip
    assert notices.in_words({"what": "gone", "faults": [], "next_step": ""}) == "**gone**"


# --- generate --------------------------------------------------------------------------------------------------------


QUICK = {"generate__steps": 2, "generate__guidance": 1.0}


def test_one_click_gives_a_first_picture_that_survives_reload_and_restart(app: Opened, engine: Engine) -> None:
    at = finished(app(**QUICK).button(key="begin.draw").click().run(), engine)
    (picture,) = engine.store.pictures(DESK)
    assert "a blue boat" in picture.recipe
    assert at.button(key="one.again")
    again = app()
    assert again.button(key="one.again")
    assert not again.session_state["drafts"]["generate.jobs"]
    engine.store.recover()
    assert app(desk="another-desk-of-letters").button(key="begin.draw")  # each desk sees its own alone


def test_a_job_that_a_killed_server_left_can_be_had(app: Opened, engine: Engine) -> None:
    at = app(**QUICK).button(key="begin.draw").click().run()
    finished(at, engine)
    (job,) = engine.store.jobs(DESK)
    engine.store.set_job(job.id, state="lost")
    at = app(generate__jobs=[job.id])
    assert "closed while this waited or ran" in at.info[0].value
    finished(at.button(key="lost.again").click().run(), engine)
    two, one = engine.store.pictures(DESK)
    assert engine.store.picture_path(two).read_bytes() == engine.store.picture_path(one).read_bytes()


def test_lock_and_dice(app: Opened, engine: Engine) -> None:
    at = app(**QUICK)
    for press in ("generate.lock", "generate.go", "generate.go"):
        at.button(key=press).click().run()
    finished(at, engine)
    assert {engine.store.job(row.job).spec["recipe"].count("seed = 7") for row in engine.store.pictures(DESK)} == {1}
    at.button(key="generate.lock").click().run()
    at.button(key="generate.go").click().run()
    finished(at, engine)
    assert "seed = 7\n" not in engine.store.pictures(DESK)[0].recipe
    seed = at.number_input[0].value
    assert at.button(key="generate.dice").click().run().number_input[0].value != seed


def test_use_these_settings_again_and_delete(app: Opened, engine: Engine, ink: Path) -> None:
    engine.library.refresh()
    (entry,) = engine.library.cards()
    rack_of_one = [{"id": entry.id, "weight": 0.5, "te": 0.25, "blocks": {"MID": 0.0}}]
    at = app(**QUICK, generate__rack=rack_of_one, generate__prompt="a cat")
    finished(at.button(key="generate.go").click().run(), engine)
    at = app(generate__rack=[], generate__prompt="other")
    at.button(key="one.use").click().run()
    (slot,) = at.session_state["drafts"]["generate.rack"]
    assert (slot["weight"], slot["te"], slot["typed"]) == (0.5, 0.25, "MID=0")
    assert at.text_area[0].value == "a cat"
    finished(at.button(key="one.again").click().run(), engine)
    two, one = engine.store.pictures(DESK)
    assert two.recipe == one.recipe
    assert engine.store.picture_path(two).read_bytes() == engine.store.picture_path(one).read_bytes()
    at.button(key="one.thumbnail").click().run()
    assert engine.library.thumbnail(entry.id)
    at.button(key="one.delete").click().run()
    assert engine.store.pictures(DESK) == [one]
    assert not engine.store.picture_path(two).exists()


def test_the_rack(app: Opened, engine: Engine, ink: Path, tiny_base: Path) -> None:
    random_adapter(tiny_base, 2).save(ink.with_name("neon.safetensors"))
    engine.library.refresh()
    one, two = engine.library.cards()
    at = app()
    for entry in (one, two):
        at.selectbox(key="w.generate.rack.add").set_value(entry.id).run()
    at.button(key=f"generate.rack.{one.id}.word").click().run()
    assert at.button(key=f"generate.rack.{one.id}.word").disabled  # it is there
    assert at.text_area[0].value == "ink style"  # once
    at.button(key=f"generate.rack.{one.id}.feel").click().run()
    assert at.slider(key=f"generate.rack.{one.id}.weight").value == pytest.approx(0.85)
    at.slider(key=f"generate.rack.{two.id}.weight").set_value(-0.5).run()
    at.button(key=f"generate.rack.{one.id}.mute").click().run()
    rows = at.session_state["drafts"]["generate.rack"]
    assert [row["weight"] for row in rows] == [pytest.approx(0.85), -0.5]
    assert rows[0]["mute"]
    at.button(key=f"generate.rack.{one.id}.mute").click().run()
    at.button(key=f"generate.rack.{two.id}.solo").click().run()
    finished(at.slider[0].run().button(key="generate.go").click().run(), engine)
    recipe = canvas.recall(engine.store.pictures(DESK)[0])
    assert [(use.title, use.gain.weight) for use in recipe.adapters] == [("neon", -0.5)]
    at.button(key=f"generate.rack.{two.id}.off").click().run()
    assert [row["id"] for row in at.session_state["drafts"]["generate.rack"]] == [one.id]


def test_a_picture_tells_what_should_be_known_of_it(app: Opened, engine: Engine, home: Path, tiny_base: Path) -> None:
    header = {"ss_sd_model_name": tiny_base.name, "stylora.base_digest": "f" * 64}
    home.mkdir(exist_ok=True)
    Adapter(random_adapter(tiny_base, 1).pairs, AdapterInfo(header)).save(home / "old.safetensors")
    engine.library.refresh()
    (entry,) = engine.library.cards()
    at = app(**QUICK, generate__rack=[{"id": entry.id, "weight": 0.5}], generate__count=2)
    finished(at.button(key="generate.go").click().run(), engine)
    assert "old was trained on another" in said(app())  # of a batch, and after a reload
    (job,) = engine.store.jobs(DESK)
    at = app(generate__shown=[(job.result or {})["pictures"][1]])
    assert "old was trained on another" in said(at)
    engine.store._db.write("DELETE FROM jobs WHERE id = ?", job.id)
    engine._works.clear()
    at = app()
    assert "old was trained" not in said(at)
    assert not at.error


def test_moving_a_slider_draws_and_drops_the_older_wish(app: Opened, engine: Engine) -> None:
    at = app(generate__auto=True, generate__prompt="a cat", generate__steps=100)
    assert engine.store.jobs(DESK) == []  # opening the page is no wish
    at.slider(key="w.generate.guidance").set_value(3.0).run()
    at.slider(key="w.generate.guidance").set_value(4.0).run()
    finished(at, engine)
    newer, older = engine.store.jobs(DESK)
    assert (older.state, newer.state) == ("cancelled", "done")
    assert "guidance = 4.0" in newer.spec["recipe"]


def test_a_preview_that_comes_soon_is_shown_by_the_run_that_asked(
    app: Opened, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SOON", 60.0)
    at = app(generate__auto=True, generate__prompt="a cat", generate__steps=100)
    at.slider(key="w.generate.guidance").set_value(3.0).run()
    (preview,) = at.get("image")
    assert preview.value[0].startswith("data:image/jpeg;base64,/9j/")
    (job,) = engine.store.jobs(DESK)
    assert job.state == "running"


def test_eight_at_once_each_see_their_own(app: Opened, engine: Engine) -> None:
    desks = [f"desk-number-{number}-of-eight" for number in range(8)]
    pages = [app(desk=desk, **QUICK, generate__seed=100 + number) for number, desk in enumerate(desks)]
    for page in pages:
        page.button(key="generate.go").click().run()
    for number, (desk, page) in enumerate(zip(desks, pages, strict=True)):
        finished(page, engine)
        (picture,) = engine.store.pictures(desk)
        assert f"seed = {100 + number}\n" in picture.recipe
        assert page.session_state["drafts"]["generate.shown"] == [picture.id]


def test_a_grid_is_one_sheet(app: Opened, engine: Engine) -> None:
    at = app(**QUICK, **{"generate__x": "seed", "generate__x__seed": "1..2", "generate__y": "guidance"},
             generate__y__guidance="1, 3")  # fmt: skip
    finished(at.button(key="generate.sheet").click().run(), engine)
    (sheet_row,) = engine.store.pictures(DESK)
    assert 'x = "seed=1..2"' in sheet_row.recipe
    assert sheet_row.width > 32


def test_wrong_values_are_told_and_nothing_is_asked(app: Opened, engine: Engine) -> None:
    at = app(generate__size="64 by 64").button(key="generate.go").click().run()
    assert "WIDTHxHEIGHT" in at.error[0].value
    assert engine.store.jobs(DESK) == []
    assert not at.exception


def test_a_job_that_fails_says_why(app: Opened, engine: Engine) -> None:
    at = finished(app(generate__base="no/such/base/here").button(key="generate.go").click().run(), engine)
    assert "no/such/base/here" in at.error[0].value.replace("\\", "")
    assert not at.exception


def test_lists_are_those_of_the_library_code() -> None:
    assert set(settings.SAMPLERS) - {settings.OWN} == set(SAMPLERS)
    assert set(sheet.VALUES) == set(AXES)


# --- library ---------------------------------------------------------------------------------------------------------


def test_an_empty_library_says_how_to_begin(app: Opened) -> None:
    assert "No adapters yet" in app("library").markdown[0].value


def test_search_open_rename_tag_remove_restore(app: Opened, engine: Engine, ink: Path) -> None:
    ink.with_name("broken.safetensors").write_bytes(b"no adapter")
    at = app("library")
    entries = {entry.name: entry.id for entry in engine.library.cards()}
    assert any("whole safetensors" in caption.value or "broken" in caption.value for caption in at.caption)
    at.text_input(key="w.library.query").set_value("nothing like it").run()
    assert "No adapter is like that" in at.caption[0].value
    at.text_input(key="w.library.query").set_value("ink").run()
    at.button(key=f"entry.open.{entries['ink']}").click().run()
    assert at.title[0].value == "ink"
    assert any("Rank" in text.value for text in at.markdown)
    name, tags = at.text_input[0], at.text_input[1]
    name.set_value("my ink"), tags.set_value("dark, lines")
    at.button[[button.label for button in at.button].index("Save")].click().run()
    assert engine.library.entry(entries["ink"]).tags == ("dark", "lines")
    assert at.title[0].value == "my ink"
    at.button(key="one.remove").click().run()
    assert [entry.name for entry in engine.library.cards()] == ["broken"]
    next(button for button in at.button if button.label == "Restore").click().run()
    assert "my ink" in [entry.name for entry in engine.library.cards()]
    assert not at.exception


def test_measuring_shows_a_figure_and_where_it_fits(app: Opened, engine: Engine, ink: Path) -> None:
    engine.library.refresh()
    (entry,) = engine.library.cards()
    at = app("library", library__open=entry.id, library__section="Anatomy")
    at.button(key="one.measure").click().run()
    engine.wait(at.session_state["drafts"][f"library.anatomy.{entry.id[:16]}"], 60)
    at.run()
    assert at.json
    assert not at.exception
    assert not at.error
    at = app("library", library__section="Fits")
    assert any("check_circle" in text.value for text in at.markdown)
    assert not at.exception


def test_an_upload_is_taken_and_a_broken_one_refused(app: Opened, engine: Engine, ink: Path, tmp_path: Path) -> None:
    whole = ink.rename(tmp_path / "whole.safetensors").read_bytes()
    at = app("library")
    files = [("new.safetensors", whole, ""), ("bad.safetensors", whole[:99], "")]
    at.file_uploader[0].set_value(files).run()
    assert not at.exception
    assert [entry.name for entry in engine.library.cards()] == ["new"]
    assert "bad" in at.error[0].value
    assert "new" in at.toast[0].value


@pytest.mark.parametrize(("page", "name"), [("library", "bad.safetensors"), ("train", "bad.png")])
def test_no_upload_stays_in_memory(app: Opened, monkeypatch: pytest.MonkeyPatch, page: str, name: str) -> None:
    held: list[MemoryUploadedFileManager] = []
    add = MemoryUploadedFileManager.add_file

    def seen(self: MemoryUploadedFileManager, session_id: str, file: UploadedFileRec) -> None:
        held.append(self)
        add(self, session_id, file)

    monkeypatch.setattr(MemoryUploadedFileManager, "add_file", seen)
    at = app(page)
    before = at.file_uploader[0].proto.id
    at.file_uploader[0].set_value([(name, b"neither", "")]).run()
    assert [file for manager in held for files in manager.file_storage.values() for file in files] == []
    assert held
    assert at.file_uploader[0].proto.id != before  # and none is shown as still there
    assert not at.exception


def test_use_turns_to_the_page_that_draws(app: Opened, engine: Engine, ink: Path) -> None:
    engine.library.refresh()
    (entry,) = engine.library.cards()
    at = app("library").button(key=f"entry.use.{entry.id}").click().run()
    assert at.slider(key=f"generate.rack.{entry.id}.weight").value == 1.0


def test_a_sign_is_the_same_at_every_visit() -> None:
    assert gallery.sign("abc", "text") == gallery.sign("abc", "text") != gallery.sign("abd", "text")
