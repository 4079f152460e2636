"""Texts: a cell is the text it would be alone, pieces add up to it, prompts are encoded once and rightly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from studio.draw.use import Use
from studio.write import generate
from studio.write.generate import Desk, Tail, Text, encode, write
from studio.write.recipe import WritingRecipe
from tests import lms
from tests.texting import styled
from trainers.errors import AdapterError, BaseError, ConfigError
from trainers.lora.gains import Gain


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lms.lm("llama", tmp_path_factory.mktemp("bases") / "micro")


@pytest.fixture(scope="module")
def desk(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("adapters")
    uses = tuple(Use(styled(base, folder / name, seed)) for seed, name in enumerate(("pirate", "herald")))
    return generate.load(WritingRecipe("the end", base=str(base), adapters=uses, max_tokens=12), "cpu")


def cells_of(desk: Desk) -> list[WritingRecipe]:
    one = desk.recipe
    weights = ((1.0, 0.0), (0.0, 1.0), (0.5, -0.5), (0.0, 0.0))
    gains = [tuple(replace(use, gain=Gain(g)) for use, g in zip(one.adapters, pair, strict=True)) for pair in weights]
    return [
        replace(one, adapters=gains[0]),
        replace(one, adapters=gains[1], prompt="on a ship there is", seed=5, max_tokens=7),
        replace(one, adapters=gains[2], prompt="What?", chat=True, system="Say it.", temperature=2.0, top_k=50),
        replace(one, adapters=gains[3], temperature=0.0, repetition_penalty=1.4),
    ]


def test_a_cell_is_the_text_it_would_be_alone(desk: Desk) -> None:
    cells = cells_of(desk)
    together = write(desk, cells)
    assert together == [write(desk, [cell])[0] for cell in cells] == write(desk, cells, most=3)
    assert [text.recipe for text in together] == cells
    plain = write(desk, [replace(cells[0], adapters=cells[3].adapters)])[0]
    assert plain.text != together[0].text, "the adapter does nothing"


def test_pieces_add_up_to_the_text_and_false_stops(desk: Desk) -> None:
    told = dict.fromkeys(range(4), "")

    def tell(k: int, piece: str) -> None:
        told[k] += piece

    texts = write(desk, cells_of(desk), tell, most=3)
    assert [told[k] for k in range(4)] == [text.text for text in texts]
    stopped = write(desk, cells_of(desk), lambda *_: False, most=2)
    assert [text.ending for text in stopped] == ["stopped"] * 2  # nothing more is begun


def test_why_a_text_ends(desk: Desk) -> None:
    (most,) = write(desk, [replace(desk.recipe, max_tokens=1)])
    (full,) = write(desk, [replace(desk.recipe, max_tokens=500, prompt="the " * 25, temperature=1.5)])
    assert (most.ending, most.tokens) == ("most", 1)
    assert full.ending in ("context", "end")
    assert [generate.ending_of(n, 10, room) for n, room in ((3, 9), (9, 9), (10, 10), (10, 40))] == [
        "end", "context", "most", "most",
    ]  # fmt: skip
    cut = Text("a", desk.recipe, 9, "context")
    assert generate.cut_notes([most, replace(cut)], 64)[0].startswith(
        "1 of 2 texts end where the base's context does: 64"
    )
    assert generate.cut_notes([most], 64) == []


def test_prompts_as_tokens(base: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    ids = encode(tokenizer, WritingRecipe("the end"))
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.eos_token_id not in ids
    assert encode(tokenizer, WritingRecipe("")) == [tokenizer.bos_token_id]
    chat = encode(tokenizer, WritingRecipe("Who?", chat=True, system="Be brief."))
    assert tokenizer.decode(chat) == "<s><|system|>\nBe brief.</s>\n<|user|>\nWho?</s>\n<|assistant|>\n"


def test_a_tokenizer_that_ends_every_text_and_one_that_begins_none(base: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(base)

    class Ending:
        bos_token_id, eos_token_id = None, 1

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [*tokenizer(text)["input_ids"][1:], 1]}

    assert encode(Ending(), WritingRecipe("the end")) == tokenizer("the end")["input_ids"][1:]
    assert encode(Ending(), WritingRecipe("")) == [1]


def test_letters_of_several_tokens_come_whole(base: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    prompt, answer = tokenizer("On ")["input_ids"], tokenizer("海 thé 🦜")["input_ids"][1:]
    tail = Tail(tokenizer, prompt)
    pieces = [tail.take(token) for token in answer]
    assert "".join(pieces) == tail.text == "海 thé 🦜"
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert pieces[0] == ""
    assert tail.rest() == ""
    assert tail.take(answer[0]) == ""
    assert tail.rest() == "\N{REPLACEMENT CHARACTER}"


def test_a_whole_text() -> None:
    plain = WritingRecipe("On Monday")
    assert Text(" it rained.", plain, 3, "end").whole == "On Monday it rained."
    assert Text(" It rained.\n", replace(plain, chat=True), 3, "end").whole == "It rained."


def test_a_template_that_wants_no_system(base: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(ConfigError, match="takes no such chat: System role not supported"):
        encode(tokenizer, WritingRecipe("a", chat=True, system="b"))
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        generate.check_template(tokenizer, "micro")


def test_what_cant_be_loaded(desk: Desk) -> None:
    wrong = tuple(replace(use, digest="ab" * 32, sha256="") for use in desk.recipe.adapters)
    with pytest.raises(AdapterError, match="2 adapters can't be used"):
        generate.load(replace(desk.recipe, adapters=wrong), "cpu")
    with pytest.raises(BaseError, match="not the one of the recipe"):
        generate.load(replace(desk.recipe, digests={"model": "ab"}), "cpu")
    with pytest.raises(BaseError, match="wanted a language model"):
        generate.load(replace(desk.recipe, base="tiny-sd"), "cpu")
    assert set(desk.recipe.digests) == {"model", "tokenizer"}
    assert all(use.digest and use.sha256 for use in desk.recipe.adapters)
