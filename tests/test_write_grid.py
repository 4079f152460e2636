"""Tables of texts: cells in their places, every cell the text it would be alone, and each form of the table whole."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from studio.draw.axes import AXES_OF_TEXT, Axes, axis
from studio.draw.use import Use
from studio.write import generate, grid
from studio.write.generate import Desk, Text
from studio.write.recipe import WritingRecipe
from tests import lms
from tests.texting import styled
from trainers.errors import ConfigError
from trainers.lora.gains import Gain

INK = Use(Path("/a/pirate"), Gain(0.5))
ASKED = WritingRecipe("a boat", adapters=(INK,), seed=3, grid=Axes("adapter:A=0,1", "seed=1..3"))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("place")
    base = lms.lm("llama", folder / "micro")
    return generate.load(replace(ASKED, base=str(base), adapters=(Use(styled(base, folder / "pirate")),), max_tokens=6))


def texts_of(*texts: str) -> list[Text]:
    return [Text(f" {text}", ASKED, 3, "end") for text in texts]


def test_cells_stand_row_by_row() -> None:
    planned = grid.plan(ASKED)
    assert [(cell.adapters[0].gain.weight, cell.seed) for cell in planned.cells] == [
        (weight, seed) for seed in (1, 2, 3) for weight in (0, 1)
    ]
    assert {(cell.grid, cell.count) for cell in planned.cells} == {(None, 1)}


def test_a_cell_is_the_single_text(desk: Desk) -> None:
    texts = grid.draw(desk)
    for text, cell in zip(texts, grid.plan(desk.recipe).cells, strict=True):
        assert [text] == generate.write(desk, [cell])
    assert len({text.text for text in texts}) == 6


def test_every_axis_does_something() -> None:
    values = {"prompt": "x", "system": "x"}
    for word, kind in AXES_OF_TEXT.items():
        behind = {"NAME": ":A", "BLOCK": ":L01", "": ""}[kind.behind]
        (change,) = axis(f"{word}{behind}={values.get(word, '9')}", ASKED, AXES_OF_TEXT).changes
        assert change(ASKED) != ASKED, word


def test_all_faults_of_a_plan() -> None:
    with pytest.raises(ConfigError) as caught:
        grid.plan(replace(ASKED, grid=Axes("top_p=0.5,2", "temperature=-1,1")))
    assert [fault.partition(":")[0] for fault in caught.value.faults] == ["temperature", "top_p"]
    for x in ("guidance=1,2", "te:A=0,1", "negative=a|b"):
        with pytest.raises(ConfigError, match="no such axis"):
            grid.plan(replace(ASKED, grid=Axes(x)))


def test_wide_and_long() -> None:
    planned, texts = grid.plan(ASKED), texts_of("a", "b", "c", "d", "e", "f")
    heads, rows = grid.laid_out(planned, texts, 80)
    assert heads == ["seed", "weight of pirate 0", "weight of pirate 1"]
    assert rows == [["1", "a", "b"], ["2", "c", "d"], ["3", "e", "f"]]
    heads, rows = grid.laid_out(planned, texts, 40)
    assert heads == ["seed", "weight of pirate", "text"]
    assert rows[:3] == [["1", "0", "a"], ["1", "1", "b"], ["2", "0", "c"]]
    alone = grid.plan(replace(ASKED, grid=Axes("seed=1,2")))
    assert grid.crossed(alone, texts[:2]) == (["seed 1", "seed 2"], [["a", "b"]])
    assert grid.listed(alone, texts[:2]) == (["seed", "text"], [["1", "a"], ["2", "b"]])


def test_a_text_that_was_cut_shows_it() -> None:
    (whole,) = texts_of("a\x1b")
    assert [grid.shown(replace(whole, ending=ending)) for ending in ("end", "most")] == ["a", "a …"]


def test_markdown_and_csv() -> None:
    planned = grid.plan(replace(ASKED, grid=Axes("seed=1,2")))
    texts = texts_of("one\ntwo | three", 'a "b", c')
    assert grid.markdown(planned, texts).splitlines()[-3:] == [
        "| seed 1 | seed 2 |", "| --- | --- |", '| one<br>two \\| three | a "b", c |',
    ]  # fmt: skip
    assert list(csv.reader(io.StringIO(grid.csv_text(planned, texts)))) == [
        ["seed", "text"], ["1", "one\ntwo | three"], ["2", 'a "b", c'],
    ]  # fmt: skip


def test_what_the_table_says() -> None:
    planned = grid.plan(ASKED)
    assert grid.headline(planned) == "a boat"
    assert grid.details(planned) == "tiny-lm · temperature 0.8 · top-p 0.95 · 200 tokens at the most"
    chat = replace(ASKED, chat=True, system="Hi.", top_k=5, repetition_penalty=1.2, grid=Axes("prompt=a|b"))
    assert grid.headline(grid.plan(chat)) == ""
    assert grid.details(grid.plan(chat)) == (
        "tiny-lm · pirate 0.5 · seed 3 · temperature 0.8 · top-p 0.95 · top-k 5 · repetition penalty 1.2 · "
        "200 tokens at the most · told first: Hi."
    )
