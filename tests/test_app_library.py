"""The Library page without a browser where things are odd: the bin, broken files, what others took away meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import engine_of, said, sound, visit

from studio.desk.engine import Engine
from tests.checkpoints import random_adapter


@pytest.fixture
def engine(tmp_path: Path, tiny_base: Path) -> Iterator[Engine]:
    (tmp_path / "home").mkdir()
    random_adapter(tiny_base, 1).save(tmp_path / "home" / "ink.safetensors")
    with engine_of(tmp_path / "home", str(tiny_base), "tiny-lm") as opened:
        opened.library.refresh()
        yield opened


def test_what_was_removed_twice_lies_in_the_bin_twice(engine: Engine) -> None:
    (ink,) = engine.library.cards()
    data = ink.path.read_bytes()
    for name in ("ink", "other ink"):
        entry = engine.library.add_file(f"{name}.safetensors", data)
        engine.library.remove(entry.id)
    at = visit(engine, "library")
    buttons = [button for button in at.button if button.label == "Restore"]
    assert len(buttons) == 2
    next(button for button in buttons if "/ink." in str(button.key)).click().run()
    assert [entry.name for entry in engine.library.cards()] == ["ink"]
    assert [entry.name for entry in engine.library.removed()] == ["other ink"]


def test_the_bin_is_emptied(engine: Engine) -> None:
    engine.library.remove(engine.library.cards()[0].id)
    at = visit(engine, "library")
    assert "for good" in said(at)
    sound(at.button(key="bin.empty").click().run())
    assert engine.library.removed() == []
    assert not [button for button in at.button if button.label == "Restore"]


def test_of_a_broken_file_there_are_facts_alone(engine: Engine) -> None:
    (engine.home / "bad.safetensors").write_bytes(b"nonsense")
    engine.library.refresh()
    (bad,) = [entry for entry in engine.library.cards() if entry.error]
    for section in ("Anatomy", "Strength", "Conflict", "Fits"):
        at = visit(engine, "library", library__open=bad.id, library__section=section)
        assert "bad.safetensors" in said(at)
        assert [button for button in at.button if button.key == "one.measure"] == []


def test_removing_what_another_has_removed_is_told(engine: Engine) -> None:
    (ink,) = engine.library.cards()
    at = visit(engine, "library", library__open=ink.id)
    engine.library.remove(ink.id)
    sound(at.button(key="one.remove").click().run())
    assert "isn't in the library" in said(at)
