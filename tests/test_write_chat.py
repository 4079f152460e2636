"""Conversations: turns in the template's words, seeds of their own, old turns forgotten, weights that change."""

from __future__ import annotations

from dataclasses import replace

import pytest

from studio.draw.use import Use
from studio.write import generate
from studio.write.chat import Conversation, Turn
from studio.write.generate import Desk
from studio.write.recipe import WritingRecipe
from tests import lms
from tests.texting import styled
from trainers.errors import ConfigError


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("place")
    base = lms.lm("llama", folder / "micro", max_position_embeddings=96)
    use = Use(styled(base, folder / "pirate"))
    return generate.load(WritingRecipe("", True, base=str(base), adapters=(use,), max_tokens=10, seed=7), "cpu")


def read(talk: Conversation, question: str) -> str:
    """What the base reads for an answer to `question`."""
    ids, _ = talk.fitted([*talk.turns, Turn("user", question)])
    return str(talk.desk.family.part("tokenizer").decode(ids))


def test_turns_follow_each_other(desk: Desk) -> None:
    talk = Conversation(desk)
    first = talk.ask("the end")
    assert talk.turns == [Turn("user", "the end"), Turn("assistant", first.text)]
    assert read(talk, "an") == (
        f"<s><|user|>\nthe end</s>\n<|assistant|>\n{first.text}</s>\n<|user|>\nan</s>\n<|assistant|>\n"
    )
    talk.change(replace(talk.recipe, system="be"))
    assert read(Conversation(replace(desk, recipe=talk.recipe)), "an") == (
        "<s><|system|>\nbe</s>\n<|user|>\nan</s>\n<|assistant|>\n"
    )


def test_an_answer_is_the_text_of_its_recipe(desk: Desk) -> None:
    talk, told = Conversation(desk), list[str]()
    first = talk.ask("the end", told.append)
    (text,) = generate.write(desk, [replace(desk.recipe, prompt="the end", seed=7)])
    assert first.text == text.whole == "".join(told).strip()
    assert (first.seed, talk.ask("an").seed) == (7, 8)


def test_the_same_talk_again(desk: Desk) -> None:
    talk = Conversation(desk)
    one = [talk.ask("the end"), talk.ask("the end")]
    assert one[0].text != one[1].text
    talk.reset()
    assert not talk.turns
    assert [talk.ask("the end"), talk.ask("the end")] == one
    talk.redraw()
    talk.turns = []
    assert talk.ask("the end") == one[0]


def test_another_answer_takes_the_place_of_the_last(desk: Desk) -> None:
    talk = Conversation(desk)
    with pytest.raises(ConfigError, match="nothing was asked"):
        talk.again()
    talk.ask("the end")
    other = talk.again()
    assert other.seed == 8
    assert talk.turns == [Turn("user", "the end"), Turn("assistant", other.text)]


def test_what_stops_an_answer_leaves_the_talk_as_it_was(desk: Desk) -> None:
    talk = Conversation(desk)
    talk.ask("the end")
    before = list(talk.turns)

    def interrupted(piece: str) -> None:
        raise KeyboardInterrupt

    for act in (lambda: talk.ask("an", interrupted), lambda: talk.again(interrupted)):
        with pytest.raises(KeyboardInterrupt):
            act()
        assert talk.turns == before
    stopped = talk.ask("an", lambda piece: False)
    assert stopped.ending == "stopped"
    assert talk.turns[-1] == Turn("assistant", stopped.text)


def test_old_turns_are_forgotten_where_the_context_is_full(desk: Desk) -> None:
    talk = Conversation(desk)
    gone = [talk.ask(f"{k}: the end an").forgotten for k in range(5)]
    assert gone[0] == 0
    assert sum(gone) == talk.forgotten > 0
    assert talk.forgotten % 2 == 0
    assert len(talk.turns) == 10
    assert read(talk, "an").startswith("<s><|user|>\n")
    assert "0: the" not in read(talk, "an")
    with pytest.raises(ConfigError, match="nothing can be written"):
        talk.ask("the end " * 60)
    assert len(talk.turns) == 10


def test_weights_change_as_it_goes_on(desk: Desk) -> None:
    talk = Conversation(desk)
    first = talk.ask("the end")
    talk.weigh("pirate", 0.0)
    talk.reset()
    assert talk.ask("the end").text != first.text
    talk.weigh("A", 1.0)
    talk.reset()
    assert talk.ask("the end") == first
    with pytest.raises(ConfigError, match="no such adapter; there are: A"):
        talk.weigh("herald", 1.0)
    with pytest.raises(ConfigError, match="temperature"):
        talk.change(replace(talk.recipe, temperature=-1.0))
