"""Measures on texts: identities they must keep, and what they must tell apart in texts whose style is known."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from trainers.errors import StyloraError
from trainers.prose import (
    Copied,
    Yardstick,
    alarm,
    copied,
    distinctness,
    masked,
    parts,
    runs,
    style_gain,
    words,
    yardstick,
)

ROOT = Path(__file__).resolve().parents[1]
STYLES = ("herald", "nursery", "pirate", "telegram")
COUNT = 40
WORDS = ["a", "b", "c", "d"]

Plain = Callable[[str], list[str]]


@cache
def texts(style: str, part: str) -> list[str]:
    rows = (ROOT / "sample_data" / "text" / style / f"{part}.jsonl").read_text().splitlines()
    return [json.loads(row)["text"] for row in rows]


@pytest.fixture(scope="module")
def plain() -> Iterator[Plain]:
    """plain(seed): COUNT texts of all plain kinds; plain("recipe"): of that kind alone."""
    sys.path.insert(0, str(ROOT / "sample_data" / "make"))
    import text_plain

    @cache
    def made(seed: str) -> list[str]:
        if seed in text_plain.KINDS:
            return [text_plain.KINDS[seed][0](random.Random(f"{seed} {k}")) for k in range(COUNT)]
        return [text_plain.compose(f"{seed} {k}", without="jumble") for k in range(COUNT)]

    yield made
    sys.path.remove(str(ROOT / "sample_data" / "make"))


@pytest.fixture(scope="module")
def by(plain: Plain) -> dict[str, Yardstick]:
    return {style: yardstick(texts(style, "heldout"), plain("outside")) for style in STYLES}


# --- style


@pytest.mark.parametrize("style", STYLES)
def test_style_gain_tells_the_style_from_plain_texts_and_from_other_styles(
    style: str, plain: Plain, by: dict[str, Yardstick]
) -> None:
    def gain(after: list[str]) -> float:
        return style_gain(after, plain("base"), texts(style, "heldout"), by[style])

    true = [gain(texts(style, "train")[k : k + COUNT]) for k in range(0, 240, COUNT)]
    assert min(true) > 0.7
    assert np.mean(true) > 0.8
    assert abs(gain(plain("another"))) < 0.1
    assert all(gain(texts(other, "heldout")) < 0.1 for other in STYLES if other != style)
    half = [*plain("another")[::2], *texts(style, "train")[: COUNT // 2]]
    assert 0.4 < gain(half) < 0.6


@pytest.mark.parametrize("style", STYLES)
def test_what_plain_texts_are_about_brings_them_no_nearer(style: str, plain: Plain, by: dict[str, Yardstick]) -> None:
    """Plain stories tell what the styles tell; recipes and forecasts don't."""
    kinds = ("story", "recipe", "forecast", "letter", "portrait")
    gains = [style_gain(plain(kind), plain("base"), texts(style, "heldout"), by[style]) for kind in kinds]
    assert max(gains) < 0.1


def test_identities(plain: Plain, by: dict[str, Yardstick]) -> None:
    style, before = texts("pirate", "heldout"), plain("base")
    assert style_gain(style, before, style, by["pirate"]) == 1
    assert style_gain(before, before, style, by["pirate"]) == 0
    assert math.isnan(style_gain(before, style, style, by["pirate"]))
    assert parts(before, style, by["pirate"]) == parts(style, before, by["pirate"])


def test_the_distance_is_unbiased(by: dict[str, Yardstick]) -> None:
    """Two draws of one style average 0; with the plain formula they would be apart by their sampling."""
    drawn, found = random.Random(0), []
    for _ in range(12):
        some = drawn.sample(texts("pirate", "train"), COUNT)
        a, b = some[:20], some[20:]
        found.append(parts(a, b, by["pirate"]))
    assert abs(np.mean([part.words + part.grams for part in found])) < 0.02
    assert parts(texts("pirate", "heldout"), texts("herald", "heldout"), by["pirate"]).distance > 0.3


def test_sets_without_a_word_or_trigram_in_common_are_1_apart() -> None:
    a, b = ["one two", "two one"] * 5, ["SIX!SIX!"] * 10
    assert parts(a, b, yardstick(a, b)).distance == pytest.approx(1, abs=0.05)


def test_of_rare_words_only_the_case_is_seen() -> None:
    kept = frozenset({"the", "an'"})
    assert masked("The Jacob,  an' JACOB\nsaw THE 12 hills-", kept) == " The Aa, an' A\na THE 0 a- "
    assert words("Th' o'clock — well-known 'tis, I’m ÉCLAIR") == [
        "th'",
        "o'clock",
        "well-known",
        "tis",
        "i’m",
        "éclair",
    ]


def test_other_names_are_the_same_style(plain: Plain, by: dict[str, Yardstick]) -> None:
    style, own = texts("herald", "heldout"), texts("herald", "train")[:COUNT]
    renamed = [text.replace("Rose", "Xanthippe").replace("Jacob", "Zbigniew") for text in own]
    pair = [style_gain(some, plain("base"), style, by["herald"]) for some in (renamed, own)]
    assert pair[0] == pytest.approx(pair[1], abs=0.01)


def test_faults_are_named_all_at_once(by: dict[str, Yardstick]) -> None:
    with pytest.raises(StyloraError) as caught:
        yardstick(["one text"], ["", "…"])
    assert caught.value.faults == (
        "style texts: got 1 with words, wanted 2 or more",
        "plain texts: got 0 with words, wanted 2 or more",
    )
    with pytest.raises(StyloraError, match="first texts: got 0"):
        parts([], texts("pirate", "heldout"), by["pirate"])
    with pytest.raises(StyloraError, match="no words in common"):
        yardstick(["one", "two"], ["three", "four"])


# --- variety


def test_distinctness_is_the_mean_over_all_draws() -> None:
    """Against every draw of 3 out of the 5 words, with the order they could come in."""
    found = ["a", "a", "b", "b", "c"]
    draws = [d for d in product(range(5), repeat=3) if len(set(d)) == 3]
    expected = np.mean([len({found[k] for k in d}) for d in draws]) / 3
    assert distinctness(["A a b", "b c"], 1, 3) == pytest.approx(expected)


def test_distinctness_compares_sets_of_any_size() -> None:
    train = texts("pirate", "train")
    few, many = (distinctness(train[:count], 2, 500) for count in (20, 240))
    assert abs(few - many) < 0.03
    assert len(set(" ".join(train[:20]).split())) / len(" ".join(train[:20]).split()) > 2 * (
        len(set(" ".join(train).split())) / len(" ".join(train).split())
    )  # plain distinct-1 falls with the length


def test_one_sentence_for_ever_is_seen() -> None:
    train = texts("pirate", "train")
    assert distinctness(train[:1] * COUNT, 2, 500) < 0.15 < 0.8 < distinctness(train, 2, 500)
    assert distinctness(["one two three"], 1, 3) == 1
    assert runs(["one two three", "four", ""], 2) == 2
    assert math.isnan(distinctness(["one two"], 2, 2))
    assert math.isnan(distinctness([], 1, 1))


# --- what was copied


def longest_by_hand(some: list[list[str]], known: list[list[str]]) -> int:
    best = 0
    for text, other in product(some, known):
        for i, j in product(range(len(text)), range(len(other))):
            n = 0
            while i + n < len(text) and j + n < len(other) and text[i + n] == other[j + n]:
                n += 1
            best = max(best, n)
    return best


@pytest.mark.parametrize("seed", range(8))
def test_the_longest_run_and_the_share_are_those_counted_by_hand(seed: int) -> None:
    drawn = random.Random(seed)
    some, known = ([drawn.choices(WORDS, k=drawn.randint(0, 40)) for _ in range(6)] for _ in range(2))
    grams = {tuple(text[k : k + 8]) for text in known for k in range(len(text) - 7)}
    found = [tuple(text[k : k + 8]) in grams for text in some for k in range(len(text) - 7)]
    expected = Copied(longest_by_hand(some, known), sum(found) / max(1, len(found)))
    assert copied([" ".join(text) for text in some], [" ".join(text) for text in known]) == expected


def test_case_white_space_and_punctuation_do_not_hide_a_copy() -> None:
    text = "The cat sat on the mat and looked at nothing at all."
    assert copied([text.upper().replace(" ", ",\n ")], [f"Once upon a time: {text}"]) == Copied(12, 1.0)


def test_a_run_does_not_cross_texts() -> None:
    assert copied(["one two three four"], ["one two", "three four"]).longest == 2
    assert copied(["one two", "three four"], ["one two three four"]).longest == 2
    assert copied([], ["one"]) == copied(["one"], []) == copied(["one"], ["two"]) == Copied(0, 0.0)


def test_the_alarm_goes_for_what_is_copied_beyond_set_phrases() -> None:
    base, style = Copied(4, 0.0), Copied(11, 0.03)
    assert alarm(Copied(16, 0.05), base) == alarm(Copied(22, 0.11), base, style) == alarm(style, base, style) == ""
    assert "12% of its runs of 8 words stand in the training texts, 3% expected" in alarm(Copied(11, 0.12), base, style)
    assert "23 words in a row, 11 expected" in alarm(Copied(23, 0.0), base, style)
    assert "17 words in a row, 4 expected" in alarm(Copied(17, 0.0), base)


def test_an_adapter_that_recites_is_told_from_one_that_writes() -> None:
    train, heldout = texts("pirate", "train"), texts("pirate", "heldout")
    base, style = copied(texts("nursery", "heldout"), train), copied(heldout, train)
    assert alarm(style, base, style) == alarm(copied(train[:40], train[40:]), base, style) == ""
    assert "by heart" in alarm(copied([*heldout[:30], *train[:10]], train), base, style)
