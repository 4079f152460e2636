"""The job that writes: streamed, beside the bare base, as the next turn of a chat, stopped midway."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from desks import run, work_for
from lms import lm
from texting import styled

from studio.desk import jobs
from studio.desk.jobs import Write
from studio.desk.work import Cancelled
from studio.draw.axes import Axes
from studio.draw.use import Use
from studio.write import generate
from studio.write.recipe import WritingRecipe
from trainers.errors import ConfigError


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> WritingRecipe:
    folder = tmp_path_factory.mktemp("lm")
    base = lm("llama", folder / "base")
    return WritingRecipe("a red house", base=str(base), adapters=(Use(styled(base, folder / "pirate")),), max_tokens=12)


def direct(recipe: WritingRecipe) -> list[str]:
    return [text.text for text in generate.write(generate.load(recipe, "cpu"), recipe.texts())]


def test_beside_each_text_stands_the_bare_bases(recipe: WritingRecipe, tmp_path: Path) -> None:
    work, result = run(tmp_path, Write(replace(recipe, count=2), compare=True))
    styles, bare = direct(replace(recipe, count=2)), direct(replace(recipe, count=2, adapters=()))
    assert styles != bare
    assert result["texts"] == [styles[0], bare[0], styles[1], bare[1]]
    assert result["whose"] == ["adapters", "base"] * 2
    assert result["seeds"] == [0, 0, 1, 1]
    assert list(work.snapshot().texts) == result["texts"], "piece by piece it is the same"


def test_a_grid_of_texts(recipe: WritingRecipe, tmp_path: Path) -> None:
    _, result = run(tmp_path, Write(replace(recipe, grid=Axes("adapter:A=0,1", "seed=1,2"))))
    assert len(result["texts"]) == 4
    assert result["whose"] == ["adapters"] * 4


def test_what_was_written_before_a_cancel_stays(
    recipe: WritingRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Write(replace(recipe, max_tokens=60))
    work = work_for(tmp_path, job)
    tell = work.write

    def then_cancel(row: int, piece: str) -> None:
        if work.snapshot().text:
            work.cancel()
        tell(row, piece)

    monkeypatch.setattr(work, "write", then_cancel)
    with pytest.raises(Cancelled):
        jobs.runner("write")(work, job)
    kept: Any = work.snapshot().result
    assert kept["texts"] == [work.snapshot().text]
    assert kept["endings"] == ["stopped"]
    assert direct(replace(recipe, max_tokens=60))[0].startswith(kept["texts"][0])


@pytest.mark.parametrize(("said", "chat"), [(("Who?",), True), (("Who?", "I."), False)])
def test_no_chat_goes_on_from_half_a_turn(
    recipe: WritingRecipe, tmp_path: Path, said: tuple[str, ...], chat: bool
) -> None:
    with pytest.raises(ConfigError, match="no chat goes on"):
        run(tmp_path, Write(replace(recipe, chat=chat), said=said))


def test_a_chat_goes_on_as_in_the_terminal(tmp_path: Path) -> None:
    from studio.write.chat import Conversation, Turn

    asked = WritingRecipe("And then?", chat=True, max_tokens=8)
    _, result = run(tmp_path, Write(asked, said=("Who are you?", "A mouse.")))
    talk = Conversation(generate.load(asked, "cpu"))
    talk.turns = [Turn("user", "Who are you?"), Turn("assistant", "A mouse.")]
    assert result["texts"][0].strip() == talk.ask("And then?").text
