"""Axes: how their values are written, what each does to a recipe, and what is said of those that can't be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from studio.draw.axes import AXES, axis, numbers, texts, wholes
from studio.draw.recipe import Recipe
from studio.draw.use import Use
from trainers.errors import ConfigError
from trainers.lora.gains import Gain

TWO = Recipe("a boat", adapters=(Use(Path("/a/ink.safetensors"), Gain(0.5)), Use(Path("/b/neon.safetensors"))))


def made(text: str, recipe: Recipe = TWO) -> list[Recipe]:
    return [change(recipe) for change in axis(text, recipe).changes]


def test_values() -> None:
    assert numbers("0..1/5") == [0, 0.25, 0.5, 0.75, 1]
    assert numbers("1..-0.5/4, 7") == [1, 0.5, 0, -0.5, 7]
    assert numbers("0..1/11") == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]  # as a person would write them
    assert wholes("1..4,9") == [1, 2, 3, 4, 9]
    assert wholes("10..30/3") == [10, 20, 30]
    assert texts("a boat, red | a house") == ["a boat, red", "a house"]


@pytest.mark.parametrize(
    "text", ["", "x", "0..1", "0..1/1", "0..1/x", "0..1/900", "1..x/3", "nan", "0,,1", "..", "0../3"]
)
def test_no_numbers(text: str) -> None:
    with pytest.raises(ConfigError):
        numbers(text)


@pytest.mark.parametrize("text", ["0.5", "1..2/3", "5..1", "1..999999999999"])
def test_no_whole_numbers(text: str) -> None:
    with pytest.raises(ConfigError):
        wholes(text)


def test_gains() -> None:
    assert [r.adapters[0].gain for r in made("adapter:A=0,1")] == [Gain(0.0), Gain(1.0)]
    assert [r.adapters[1].gain for r in made("adapter:neon=-1")] == [Gain(-1.0)]
    assert made("adapter:neon=-1")[0].adapters[0] == TWO.adapters[0]
    assert made("te:B=0.3")[0].adapters[1].gain == Gain(1.0, 0.3)
    assert [use.gain.blocks for use in made("block:mid=0.2")[0].adapters] == [{"MID": 0.2}] * 2


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("seed=1..3", [1, 2, 3]),
        ("prompt=a=b|c", ["a=b", "c"]),
        ("negative=|dark", ["", "dark"]),
        ("guidance=2,7.5", [2, 7.5]),
        ("steps=2,4", [2, 4]),
        ("sampler=ddim, euler", ["ddim", "euler"]),
    ],
)
def test_fields(text: str, values: list[Any]) -> None:
    name = text.partition("=")[0]
    assert [getattr(recipe, name) for recipe in made(text)] == values
    assert axis(text, TWO).title == name


def test_what_the_sheet_writes() -> None:
    assert axis("adapter:A=-0.5,1", TWO).labels == ("\N{MINUS SIGN}0.5", "1")
    assert axis("negative=|dark", TWO).labels == ("(none)", "dark")
    twins = Recipe("a", adapters=(TWO.adapters[0], Use(Path("/c/ink.safetensors"))))
    assert axis("adapter:B=1", twins).title == "weight of ink (B)"
    with pytest.raises(ConfigError, match="several adapters"):
        axis("adapter:ink=1", twins)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sead=1", ["no such axis; the nearest is seed"]),
        ("seed", ["wanted AXIS=VALUES"]),
        ("adapter=1", ["wanted adapter:NAME="]),
        ("seed:A=1", ["wanted seed="]),
        ("adapter:C=0..1", ["'C': no such adapter; there are: A (ink), B (neon)", "wanted 2 to 64 values"]),
        ("block:IN77=x", ["'IN77' is no block", "'x': wanted a number"]),
        (f"prompt={'|' * 64}", ["65 values, wanted 64 at the most"]),
    ],
)
def test_faults(text: str, said: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        axis(text, TWO)
    told = str(caught.value)
    assert all(part in told for part in said), told


def test_every_axis_does_something() -> None:
    values = {"sampler": "euler", "prompt": "x", "negative": "x"}
    for word, kind in AXES.items():
        behind = {"NAME": ":A", "BLOCK": ":MID", "": ""}[kind.behind]
        assert made(f"{word}{behind}={values.get(word, '3')}") != [TWO], word
