"""The words that the composed texts are made of: people, things, food, animals, places, times; they stand in phrases/.

`python sample_data/make/text_words.py` prints how many there are of each.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any


def phrases(name: str) -> dict[str, Any]:
    """The tables of phrases/<name>.toml."""
    return tomllib.loads((Path(__file__).parent / "phrases" / f"{name}.toml").read_text())


WORDS = phrases("words")
WOMEN, MEN, FAMILIES, TRADES, KIN = (WORDS[key] for key in ("women", "men", "families", "trades", "kin"))
OBJECTS, FOOD, PLACES, OLD_WORDS = (WORDS[key] for key in ("objects", "food", "places", "old_words"))
ANIMALS, WILD, CROPS, DISHES, FISH = (WORDS[key] for key in ("animals", "wild", "crops", "dishes", "fish"))
DAYS, MONTHS, HOURS, PARTS, TOWNS = (WORDS[key] for key in ("days", "months", "hours", "parts", "towns"))
NUMBERS, COMPASS, MOODS, SOUNDS = (WORDS[key] for key in ("numbers", "compass", "moods", "sounds"))
STRETCHES, BREAKABLE, SHIP_WORDS = (WORDS[key] for key in ("stretches", "breakable", "ship_words"))
WEATHER: dict[str, list[str]] = phrases("plain")["weather"]  # kind -> plain sentences
FEMALE = {"aunt", "sister", "mother", "grandmother"}
MALE = {"uncle", "brother", "father", "grandfather", "postman", "fisherman", "blacksmith", "shepherd"}
INDOORS = {"kitchen", "workshop", "cottage", "library", "shop", "bakery", "post office", "barn", "stable", "inn"}


@dataclass(frozen=True)
class Person:
    """Someone in a text: `name` as the first mention has it, `she` the pronoun (`I` and `we` too)."""

    name: str
    she: str

    @property
    def her(self) -> str:
        return {"she": "her", "he": "him", "I": "me", "we": "us"}[self.she]

    @property
    def hers(self) -> str:
        return {"she": "her", "he": "his", "I": "my", "we": "our"}[self.she]

    @property
    def was(self) -> str:
        return "were" if self.she == "we" else "was"


def an(words: str) -> str:
    """`an old key`, `a key`."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def person(r: Random) -> Person:
    """A first name, a family name, a trade or someone's kin."""
    woman = r.random() < 0.5
    she = "she" if woman else "he"
    first = r.choice(WOMEN if woman else MEN)
    kind = r.random()
    if kind < 0.6:
        return Person(first, she)
    if kind < 0.72:
        return Person(f"{'Mrs' if woman else 'Mr'} {r.choice(FAMILIES)}", she)
    if kind < 0.86:
        trade = r.choice(TRADES)
        return Person(f"the {trade}", "he" if trade in MALE else she)
    kin = r.choice(KIN)
    return Person(f"my {kin}", "she" if kin in FEMALE else "he" if kin in MALE else she)


def thing(r: Random, nouns: Sequence[str] = ()) -> str:
    """`silver key`: an object, mostly with a look."""
    noun = r.choice(nouns or list(OBJECTS))
    if r.random() < 0.15:
        return noun
    looks = OBJECTS[noun]
    return f"{r.choice(looks if r.random() < 0.55 else WORDS['plain_looks'])} {noun}"


def food(r: Random) -> str:
    """`a jar of honey`."""
    measure = r.choice(list(FOOD))
    return f"{measure} {r.choice(FOOD[measure])}"


def animal(r: Random, wild: bool = False) -> str:
    return f"{r.choice(WORDS['animal_looks'])} {r.choice(WILD if wild else ANIMALS)}"


def place(r: Random, avoid: str = "") -> str:
    """`the old mill`."""
    noun = r.choice([name for name in PLACES if not avoid.endswith(name)])
    return f"the {r.choice(WORDS['place_looks'])} {noun}" if r.random() < 0.2 else f"the {noun}"


def noun_of(name: str) -> str:
    """The key of PLACES in `the old town hall`."""
    return next(noun for noun in PLACES if name.endswith(" " + noun))


def there(r: Random, name: str) -> str:
    """`by the old mill`."""
    return f"{r.choice(PLACES[noun_of(name)])} {name}"


def when(r: Random) -> str:
    """A time that can stand at a sentence's beginning or end."""
    kind = r.randrange(6)
    if kind == 0:
        return f"on {r.choice(DAYS)}"
    if kind == 1:
        return f"on {r.choice(DAYS)} {r.choice(PARTS)}"
    if kind == 2:
        return f"at {r.choice(HOURS)} o'clock"
    if kind == 3:
        return r.choice(
            ("in the morning", "in the afternoon", "in the evening", "at noon", "at dawn", "at dusk", "at night")
        )
    if kind == 4:
        return r.choice(
            ("yesterday", "last week", "last night", "this morning", "early today", "last month", "one day")
        )
    return r.choice(("after breakfast", "before supper", "after lunch", "before dark", "after sunset", "before noon"))


if __name__ == "__main__":
    for key, words in WORDS.items():
        print(f"{key:14} {len(words)}")
