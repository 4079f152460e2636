"""The Generate page without a browser where things are odd: dropped wishes, lost jobs, files that are gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from drawing import pixels
from pages import DESK, draft, engine_of, finished, said, sound, visit
from streamlit.runtime.scriptrunner import RerunData, RerunException

from studio.app import state
from studio.app.parts import gallery
from studio.desk.engine import Draw, Engine, Job
from studio.draw.recipe import Recipe
from tests.checkpoints import random_adapter
from trainers.errors import RunError

QUICK = {"generate__steps": 2, "generate__guidance": 1.0, "generate__prompt": "a cat"}
LONG = QUICK | {"generate__steps": 100, "generate__count": 4}


@pytest.fixture
def engine(tmp_path: Path, tiny_base: Path) -> Iterator[Engine]:
    (tmp_path / "home").mkdir()
    for seed, name in enumerate(("ink", "neon")):
        random_adapter(tiny_base, seed).save(tmp_path / "home" / f"{name}.safetensors")
    with engine_of(tmp_path / "home", str(tiny_base), "tiny-lm") as opened:
        opened.library.refresh()
        yield opened


def hung(engine: Engine) -> list[dict[str, object]]:
    return [{"id": entry.id, "weight": 0.5} for entry in engine.library.cards()]


def jobs(engine: Engine) -> list[int]:
    """All of the desk, the oldest first."""
    return sorted(job.id for job in engine.store.jobs(DESK))


# --- wishes ----------------------------------------------------------------------------------------------------------


def test_a_moved_slider_ends_what_generate_began(engine: Engine) -> None:
    at = visit(engine, "generate", generate__auto=True, **LONG)
    for _ in range(2):
        at.button(key="generate.go").click().run()
    assert draft(at, "generate.jobs") == jobs(engine)  # one after the other
    at.slider(key="w.generate.guidance").set_value(3.0).run()
    *older, newest = jobs(engine)
    assert draft(at, "generate.jobs") == [newest]
    assert [engine.wait(job, 60).state for job in older] == ["cancelled"] * 2
    at.button(key=f"cancel.{newest}").click().run()
    assert engine.wait(newest, 60).state == "cancelled"


def test_a_run_that_ends_right_after_it_asked_loses_no_job(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    submit = engine.submit

    def interrupted(desk: str, job: Job) -> int:
        monkeypatch.setattr(state, "put", broken_off)
        return submit(desk, job)

    def broken_off(*_: object) -> None:  # as Streamlit does it where a slider was moved again
        monkeypatch.undo()
        raise RerunException(RerunData())

    at = visit(engine, "generate", **LONG)
    monkeypatch.setattr(engine, "submit", interrupted)
    at.button(key="generate.go").click().run()
    (job,) = jobs(engine)
    assert at.run().button(key=f"cancel.{job}")
    engine.cancel(job)


def test_what_goes_on_stays_on_the_list_and_can_be_cancelled(engine: Engine) -> None:
    at = visit(engine, "generate", **LONG)
    at.button(key="generate.go").click().run()
    at.slider(key="w.generate.steps").set_value(99).run()  # nobody asked for a picture at every move
    at.button(key="generate.go").click().run()
    assert draft(at, "generate.jobs") == jobs(engine)
    assert "1 more to come" in said(at)
    for job in jobs(engine):
        engine.cancel(job, DESK)
    assert "Cancelled" in said(finished(at, engine, *jobs(engine)))


def test_the_failure_of_one_is_told_though_a_later_one_works(engine: Engine) -> None:
    at = visit(engine, "generate", generate__base="no/such/base/here", **QUICK)
    at.button(key="generate.go").click().run()
    (bad,) = jobs(engine)
    engine.wait(bad, 60)
    good = engine.submit(DESK, Draw(Recipe("a cat", base=engine.base, steps=1)))
    engine.wait(good, 60)
    at = visit(engine, "generate", generate__jobs=[bad, good], generate__base=engine.base)
    assert "no/such/base/here" in said(at)
    assert at.button(key="one.again")


# --- what a closed studio left ---------------------------------------------------------------------------------------


def test_all_that_was_lost_can_be_had_again_after_a_reload_too(engine: Engine) -> None:
    at = visit(engine, "generate", **QUICK)
    for words in ("a cat", "a boat", "a tree"):
        at.text_area[0].set_value(words)
        finished(at.button(key="generate.go").click().run(), engine, *jobs(engine))
    three = jobs(engine)
    for job in three:
        engine.store.set_job(job, state="lost")
    at = visit(engine, "generate", generate__jobs=three)
    assert all(words in said(at) for words in ("a cat", "a boat", "a tree"))
    at = visit(engine, "generate")  # a reload
    assert "3" in at.button(key="lost.again").label
    at.button(key="lost.again").click().run()
    finished(at, engine, *jobs(engine))
    assert [engine.store.job(job).title for job in jobs(engine)[3:]] == ["a cat", "a boat", "a tree"]
    assert len(engine.store.pictures(DESK)) == 6
    assert "closed" not in said(visit(engine, "generate"))


def test_what_was_lost_can_be_let_go_and_one_that_cant_be_had_keeps_no_other_out(engine: Engine) -> None:
    for rack in (hung(engine)[:1], []):
        at = visit(engine, "generate", **QUICK, generate__rack=rack)
        finished(at.button(key="generate.go").click().run(), engine, *jobs(engine))
    two = jobs(engine)
    for job in two:
        engine.store.set_job(job, state="lost")
    engine.library.remove(str(hung(engine)[0]["id"]))
    at = visit(engine, "generate", generate__lost=two)
    at.button(key="lost.again").click().run()
    assert at.error
    finished(at, engine, *jobs(engine))
    assert len(jobs(engine)) == 3
    assert draft(at, "generate.lost") == two[:1]
    sound(at.button(key="lost.forget").click().run())
    assert not [button for button in at.button if str(button.key).startswith("lost.")]


# --- what is gone ----------------------------------------------------------------------------------------------------


def test_a_picture_without_its_file_keeps_nothing_from_working(engine: Engine) -> None:
    at = visit(engine, "generate", **QUICK)
    for _ in range(3):
        finished(at.button(key="generate.go").click().run(), engine, *jobs(engine))
    newest, whole, broken = engine.store.pictures(DESK)
    engine.store.picture_path(newest).unlink()
    engine.store.picture_path(broken).write_bytes(b"no picture")
    gallery.small.clear()
    at = visit(engine, "generate", generate__shown=[newest.id])
    assert not at.error
    assert f"picture {whole.id}" in said(at)  # the next newest is on the canvas
    assert "The file of 1 picture is gone." in said(at)
    assert f"picture {broken.id} can't be read" in said(at)
    at.button(key="generate.go").click().run()
    finished(at, engine, *jobs(engine))
    assert len(engine.store.pictures(DESK)) == 4
    sound(at.button(key=f"history.open.{broken.id}").click().run())
    assert "can't be read" in at.error[0].value
    sound(at.button(key="one.delete").click().run())
    assert broken not in engine.store.pictures(DESK)


def test_keeping_a_picture_whose_file_went_meanwhile_is_told(engine: Engine) -> None:
    at = visit(engine, "generate", **QUICK)
    finished(at.button(key="generate.go").click().run(), engine, *jobs(engine))
    engine.store.picture_path(engine.store.pictures(DESK)[0]).unlink()
    sound(at.button(key="one.thumbnail").click().run())
    assert "is gone" in at.error[0].value
    assert at.button(key="generate.go")


@pytest.mark.parametrize("key", ["one.delete", "generate.rack.{}.mute", "generate.rack.{}.off", "generate.dice"])
def test_a_click_that_cant_be_stored_is_told_and_the_page_stays(
    engine: Engine, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = visit(engine, "generate", **QUICK, generate__rack=hung(engine))
    finished(at.button(key="generate.go").click().run(), engine, *jobs(engine))

    def full(*_: object) -> None:
        raise RunError("the disk is full", next_step="make room")

    for name in ("put", "drop", "delete_picture"):
        monkeypatch.setattr(engine.store, name, full)
    at.button(key=key.format(hung(engine)[0]["id"])).click().run()
    sound(at)
    assert "the disk is full" in at.error[0].value
    assert at.button(key="generate.go")


# --- settings of a picture -------------------------------------------------------------------------------------------


def test_settings_and_again_after_an_adapter_was_renamed(engine: Engine) -> None:
    at = visit(engine, "generate", **QUICK, generate__rack=hung(engine))
    finished(at.button(key="generate.go").click().run(), engine, *jobs(engine))
    before = [(slot["id"], 0.5) for slot in hung(engine)]
    engine.library.rename(str(before[0][0]), "tusche")
    at = visit(engine, "generate", generate__rack=[])
    sound(at.button(key="one.use").click().run())
    assert [(slot["id"], slot["weight"]) for slot in draft(at, "generate.rack")] == before
    finished(at.button(key="one.again").click().run(), engine, *jobs(engine))
    two, one = (pixels(engine.store.picture_path(picture)) for picture in engine.store.pictures(DESK))
    assert (two == one).all()


def test_settings_of_a_picture_whose_adapter_is_gone_are_the_rest_of_them(engine: Engine) -> None:
    at = visit(engine, "generate", **QUICK, generate__rack=hung(engine))
    finished(at.button(key="generate.go").click().run(), engine, *jobs(engine))
    gone, stays = hung(engine)
    engine.library.remove(str(gone["id"]))
    at = visit(engine, "generate", generate__rack=[], generate__prompt="other")
    sound(at.button(key="one.use").click().run())
    assert [slot["id"] for slot in draft(at, "generate.rack")] == [stays["id"]]
    assert draft(at, "generate.prompt") == "a cat"
    assert [toast.value for toast in at.toast] == ["ink is not in the library; the rest is set"]
    at.button(key="one.again").click().run()
    assert "ink" in at.error[0].value


def test_the_settings_of_a_sheet_bring_its_axes(engine: Engine) -> None:
    axes = {"generate__x": "adapter:B", "generate__x__adapter": "0, 1", "generate__y": "guidance"}
    at = visit(engine, "generate", **QUICK, **axes, generate__y__guidance="1, 3", generate__rack=hung(engine))
    finished(at.button(key="generate.sheet").click().run(), engine, *jobs(engine))
    other = {"generate__x": "seed", "generate__y": "steps", "generate__x__adapter": "2", "generate__y__guidance": "9"}
    at = visit(engine, "generate", **other, generate__rack=[])
    sound(at.button(key="one.use").click().run())
    assert [draft(at, f"generate.{side}") for side in "xy"] == ["adapter:B", "guidance"]
    finished(at.button(key="generate.sheet").click().run(), engine, *jobs(engine))
    two, one = engine.store.pictures(DESK)
    assert two.recipe == one.recipe
    engine.library.remove(str(hung(engine)[0]["id"]))
    at = visit(engine, "generate", **other)
    sound(at.button(key="one.use").click().run())
    assert [draft(at, f"generate.{side}") for side in "xy"] == ["nothing", "guidance"]  # B was another then


# --- bases -----------------------------------------------------------------------------------------------------------


def test_a_base_is_offered_once_a_picture_of_it_is_done(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    at = visit(engine, "generate", **QUICK, generate__base="no/such/base/here")
    finished(at.button(key="generate.go").click().run(), engine, *jobs(engine))
    assert not engine.store.get("bases/pictures")
    at = visit(engine, "generate", generate__base=engine.base)
    finished(at.button(key="generate.go").click().run(), engine, *jobs(engine))
    assert engine.store.get("bases/pictures") == [engine.base]


# --- widgets ---------------------------------------------------------------------------------------------------------


def test_widgets_have_their_draft_as_the_first_value_too(engine: Engine) -> None:
    """What a run sets is lost where a quick person interrupts it; the browser then goes by the first value."""
    drafts = {"generate__steps": 7, "generate__guidance": 3.5, "generate__sampler": "euler", "generate__x": "guidance"}
    at = visit(engine, "generate", generate__rack=hung(engine), generate__count=3, **drafts)
    sliders = {slider.key: list(slider.proto.default) for slider in at.slider}
    weights = [value for key, value in sliders.items() if key.endswith(".weight")]
    assert (sliders["w.generate.steps"], sliders["w.generate.guidance"], weights) == ([7], [3.5], [[0.5], [0.5]])
    assert at.number_input(key="w.generate.count").proto.default == 3
    first = {box.key: box.options[box.proto.default] for box in at.selectbox if box.proto.HasField("default")}
    assert first["w.generate.sampler"] == "euler"
    assert first["w.generate.x"] == "guidance"
    train = visit(engine, "train", train__style="ink")
    assert train.radio[0].proto.default == 1


def test_numbers_beyond_the_sliders_are_shown_as_they_are(engine: Engine) -> None:
    rack = [{"id": entry.id, "weight": 3.0, "te": -2.0} for entry in engine.library.cards()][:1]
    at = visit(engine, "generate", generate__steps=150, generate__guidance=30.0, generate__rack=rack)
    values = {slider.key: slider.value for slider in at.slider}
    assert (values["w.generate.steps"], values["w.generate.guidance"]) == (150, 30.0)
    assert [value for key, value in values.items() if key.endswith(".weight")] == [3.0]


def test_a_mistake_keeps_the_seed(engine: Engine) -> None:
    at = visit(engine, "generate", generate__drawn=True, generate__seed=11, generate__size="12xfoo")
    at.button(key="generate.go").click().run()
    assert "12xfoo" in said(at)
    assert draft(at, "generate.seed") == 11


def test_the_thumbnail_that_is_offered_is_of_an_adapter_of_the_picture(engine: Engine) -> None:
    for card in engine.library.cards():
        rack = [{"id": card.id, "weight": 1.0}]
        at = visit(engine, "generate", generate__rack=rack, generate__size="16x16", **QUICK)
        at.button(key="generate.go").click().run()
        at = finished(at, engine, *jobs(engine))
        (offered,) = (box for box in at.selectbox if box.key and box.key.startswith("one.entry"))
        assert offered.value == card.id
