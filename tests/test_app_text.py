"""The Text page without a browser: texts beside the bare base, a conversation, the slider between two, history."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lms import lm
from pages import DESK, draft, engine_of, finished, said, sound, visit

from studio.app.parts import texts, writing
from studio.desk.engine import Engine
from studio.write.recipe import WritingRecipe
from tests.checkpoints import random_adapter
from trainers.lora.adapter import Adapter, AdapterInfo


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lm("llama", tmp_path_factory.mktemp("lm"))


@pytest.fixture
def engine(tmp_path: Path, base: Path) -> Iterator[Engine]:
    (tmp_path / "home").mkdir()
    for seed, name in enumerate(("herald", "pirate")):
        random_adapter(base, seed, kinds=("q_proj", "up_proj")).save(tmp_path / "home" / name, "peft")
    with engine_of(tmp_path / "home", "tiny-sd", str(base)) as opened:
        opened.library.refresh()
        yield opened


@pytest.fixture
def styles(engine: Engine) -> list[str]:
    return [entry.id for entry in engine.library.cards()]


SHORT = {"text__max_tokens": 10, "text__locked": True}


def test_one_click_gives_a_first_text(engine: Engine) -> None:
    at = visit(engine, "text", **SHORT).button(key="begin.write").click().run()
    at = finished(at, engine, draft(at, "text.job"))
    (row,) = engine.store.jobs(None)
    assert row.result
    assert row.result["texts"][0][:5] in said(at)
    assert "bare base" in said(at)  # in its history
    assert at.button(key=f"past.open.{row.id}")
    assert not visit(engine, "text").get("begin.write")  # found again after a reload


def test_the_rack_beside_the_bare_base(engine: Engine, styles: list[str]) -> None:
    rack = [{"id": styles[0], "weight": 0.7, "blocks": {"L": 0.5}}]
    at = visit(engine, "text", **SHORT, text__rack=rack, text__prompt="One day")
    at.button(key="text.go").click().run()
    at = finished(at, engine, draft(at, "text.job"))
    (row,) = engine.store.jobs(None)
    assert row.result
    assert row.result["whose"] == ["adapters", "base"]
    assert "The bare base" in said(at)
    at = visit(engine, "text", text__rack=[], text__prompt="")
    at.button(key="text.use").click().run()
    (slot,) = draft(at, "text.rack")
    assert (slot["id"], slot["weight"]) == (styles[0], 0.7)
    assert at.text_area[0].value == "One day"
    at.button(key="text.again").click().run()
    finished(at, engine, draft(at, "text.job"))
    second, first = engine.store.jobs(None)
    assert second.result == first.result


def test_one_slider_goes_from_one_style_to_the_other(engine: Engine, styles: list[str]) -> None:
    rack = [{"id": style, "weight": 1.0} for style in styles]
    at = visit(engine, "text", text__rack=rack)
    assert "more than one style" in said(at)
    at.slider(key="text.between").set_value(0.25).run()
    assert [slot["weight"] for slot in draft(at, "text.rack")] == [0.75, 0.25]
    assert "more than one style" not in said(at)


def test_lock_and_dice(engine: Engine) -> None:
    at = visit(engine, "text", **{**SHORT, "text__locked": False}, text__prompt="One day")
    for press in ("text.lock", "text.go", "text.go"):
        at.button(key=press).click().run()
    finished(at, engine, draft(at, "text.job"))
    assert [row.spec["recipe"].count("seed = 7\n") for row in engine.store.jobs(None)] == [1, 1]
    at.button(key="text.lock").click().run()
    at.button(key="text.go").click().run()
    finished(at, engine, draft(at, "text.job"))
    assert "seed = 7\n" not in engine.store.jobs(None)[0].spec["recipe"]
    seed = at.number_input(key="w.text.seed").value
    assert at.button(key="text.dice").click().run().number_input(key="w.text.seed").value != seed


def test_a_conversation_goes_on_and_is_begun_anew(engine: Engine, styles: list[str]) -> None:
    rack = [{"id": styles[0], "weight": 1.0}]
    at = visit(engine, "text", **SHORT, text__mode="chat", text__rack=rack)
    for question in ("hello", "and then?"):
        at.chat_input[0].set_value(question).run()
        at = finished(at, engine, draft(at, "text.job"))
    asked = draft(at, "text.said")
    assert asked[::2] == ["hello", "and then?"]
    assert len(asked) == 4
    assert len(draft(at, "text.bare")) == 2
    last, first = engine.store.jobs(None)
    assert (first.spec["said"], last.spec["said"]) == ([], asked[:2])
    assert len(at.chat_message) == 4
    at.button(key="text.anew").click().run()
    assert not at.chat_message
    at.button(key=f"past.open.{first.id}").click().run()  # the conversation goes on from there
    assert draft(at, "text.said") == asked[:2]


def test_a_text_tells_what_should_be_known_of_it(engine: Engine, base: Path, tmp_path: Path) -> None:
    header = {"stylora.base": base.name, "stylora.base_digest": "f" * 64}
    adapter = Adapter(random_adapter(base, 5, kinds=("q_proj",)).pairs, AdapterInfo(header))
    adapter.save(tmp_path / "home" / "old", "peft")
    engine.library.refresh()
    (old,) = [entry for entry in engine.library.cards() if entry.name == "old"]
    at = visit(engine, "text", **SHORT, text__rack=[{"id": old.id, "weight": 0.7}])
    at = finished(at.button(key="begin.write").click().run(), engine, draft(at, "text.job"))
    assert "old was trained on another" in said(at)
    at = visit(engine, "text", text__mode="chat")
    assert "old was trained" not in said(at)
    at.chat_input[0].set_value("Who?").run()
    at = finished(at, engine, draft(at, "text.job"))
    assert "old was trained on another" in said(at)
    assert "old was trained" not in said(at.button(key="text.anew").click().run())


def test_a_text_that_fails_says_why(engine: Engine) -> None:
    at = visit(engine, "text", text__base="no/such/base", text__prompt="x")
    at.button(key="text.go").click().run()
    assert "no/such/base" in said(finished(at, engine, draft(at, "text.job")))


def test_old_texts_are_found_behind_many_that_gave_none(engine: Engine) -> None:
    at = visit(engine, "text", **SHORT).button(key="begin.write").click().run()
    finished(at, engine, draft(at, "text.job"))
    (old,) = engine.store.jobs(None)
    for _ in range(3 * texts.PAGE):
        engine.store.set_job(engine.store.add_job(DESK, "write", old.spec, "none"), state="cancelled")
    assert visit(engine, "text").button(key=f"past.open.{old.id}")


def test_a_text_that_is_gone_is_told(engine: Engine) -> None:
    at = visit(engine, "text", **SHORT).button(key="begin.write").click().run()
    at = finished(at, engine, draft(at, "text.job"))
    (row,) = engine.store.jobs(None)
    engine.store._db.write("DELETE FROM jobs WHERE id = ?", row.id)
    sound(at.button(key=f"past.open.{row.id}").click().run())
    assert f"there is no job {row.id}" in said(at)


def test_settings_are_taken_over_by_the_numbers_of_the_adapters(engine: Engine, styles: list[str]) -> None:
    rack = [{"id": styles[0], "weight": 0.7}]
    at = visit(engine, "text", **SHORT, text__rack=rack, text__prompt="One day")
    at.button(key="text.go").click().run()
    finished(at, engine, draft(at, "text.job"))
    engine.library.rename(styles[0], "town crier")
    at = visit(engine, "text", text__rack=[])
    sound(at.button(key="text.use").click().run())
    assert [slot["id"] for slot in draft(at, "text.rack")] == styles[:1]


def test_training_a_voice_begins_on_the_train_page(engine: Engine) -> None:
    at = visit(engine, "text").button(key="begin.voice").click().run()
    assert draft(at, "train.style") == "pirate"


def test_what_is_usual_is_what_recipes_have() -> None:
    usual = WritingRecipe("")
    same = ("temperature", "top_p", "top_k", "repetition_penalty")
    assert {name: writing.USUAL[name] for name in same} == {name: getattr(usual, name) for name in same}
