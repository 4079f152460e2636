"""How texts are written, whatever they tell: style distance, variety, and what was copied from the training texts.

Pure functions: texts in, numbers out. Formulas, papers and their checks are in docs/methods.md, "Text".
Try it: python -c "from trainers.prose import copied; print(copied(['the cat sat on me'], ['A cat sat on a mat.']))"
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import numpy as np
import numpy.typing as npt

from trainers.errors import StyloraError

Texts = Sequence[str]
Vectors = npt.NDArray[np.float64]  # (texts, features)
Hashes = npt.NDArray[np.uint64]

COMMON = 0.1  # a word or trigram counts as the language's, not the topic's, where this share of a corpus' texts has it
GRAM = 3  # characters
RUN = 8  # words in a row: fewer are said twice by chance
SHARE, LONG = 0.05, 2 * RUN  # what an adapter may copy beyond the expected before the alarm goes
_WORD = re.compile(r"\w+(?:['’-]\w+)*['’]?")
_BLANKS = re.compile(r"[ \t]+")


def words(text: str) -> list[str]:
    """The words in small letters; an apostrophe at a word's end is its own (an', th')."""
    return _WORD.findall(text.lower())


# --- style -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """The two parts of a squared distance; unbiased, so below 0 by chance where there is no difference."""

    words: float
    grams: float

    @property
    def distance(self) -> float:
        return math.sqrt(max(0.0, (self.words + self.grams) / 2))


@dataclass(frozen=True, eq=False)
class Yardstick:
    """Which words and trigrams are counted, and in which unit each; fixed by two corpora, never by what is measured."""

    words: tuple[str, ...]
    grams: tuple[str, ...]
    word_units: Vectors  # (1, words): standard deviation of a word's share of a text, over both corpora alike
    gram_units: Vectors


def masked(text: str, kept: frozenset[str]) -> str:
    """Text distortion (Stamatatos 2017): of a word that isn't kept only case stays: Jacob -> Aa, JACOB -> A, hill -> a.

    Blanks in a row are one; line ends and punctuation stay.
    """

    def mask(found: re.Match[str]) -> str:
        word = found.group()
        return word if word.lower() in kept else "".join(sign for sign, _ in groupby(word, _sign))

    return " " + _BLANKS.sub(" ", _WORD.sub(mask, text.strip())) + " "


def _sign(letter: str) -> str:
    if letter.isalpha():
        return "A" if letter.isupper() else "a"
    return "0" if letter.isdigit() else letter


def _grams(kept: frozenset[str], text: str) -> list[str]:
    left = masked(text, kept)
    return [left[k : k + GRAM] for k in range(len(left) - GRAM + 1)]


def _common(texts: Texts, split: Callable[[str], Iterable[str]]) -> set[str]:
    """What stands in at least the share COMMON of the texts, and in two of them."""
    having = Counter(item for text in texts for item in set(split(text)))
    return {item for item, count in having.items() if count >= max(2, COMMON * len(texts))}


def _shares(texts: Texts, split: Callable[[str], Sequence[str]], items: Sequence[str]) -> Vectors:
    """(texts, items): each item's share of all that a text is split into."""
    table, columns = np.zeros((len(texts), len(items))), {item: k for k, item in enumerate(items)}
    for row, text in zip(table, texts, strict=True):
        found = split(text)
        for item, count in Counter(found).items():
            if item in columns:
                row[columns[item]] = count / len(found)
    return table


def _units(a: Vectors, b: Vectors) -> Vectors:
    """(1, columns): what a column is divided by; infinite where it doesn't tell the two sets apart.

    A column's deviation over both sets (each with half the weight) is Burrows' unit; its share of the variance that
    lies between the sets, 0 to 1 and unbiased, is the weight of its square.
    """
    mean = (a.mean(0) + b.mean(0)) / 2
    variance = (np.square(a - mean).mean(0) + np.square(b - mean).mean(0)) / 2
    sampling = a.var(0, ddof=1) / len(a) + b.var(0, ddof=1) / len(b)
    between = np.maximum(0.0, np.square(a.mean(0) - b.mean(0)) - sampling) / 4
    weight = between / np.maximum(variance, 1e-30)
    with np.errstate(divide="ignore"):
        unit: Vectors = np.sqrt(4 * variance * weight.sum() / weight)
    return unit[None]


def yardstick(style: Texts, plain: Texts) -> Yardstick:
    """The yardstick of texts in a style and texts outside it. StyloraError: too few texts, or nothing in common."""
    _check(style=style, plain=plain)
    kept = _common(style, words) | _common(plain, words)
    split = partial(_grams, frozenset(kept))
    grams = _common(style, split) | _common(plain, split)
    if not kept or not grams:
        raise StyloraError("These texts have no words in common.", next_step="Give more, or longer, texts.")
    names, marks = tuple(sorted(kept)), tuple(sorted(grams))
    word_units = _units(_shares(style, words, names), _shares(plain, words, names))
    gram_units = _units(_shares(style, split, marks), _shares(plain, split, marks))
    return Yardstick(names, marks, word_units, gram_units)


def _unbiased(a: Vectors, b: Vectors) -> float:
    """Squared distance of two means, a feature, less what sampling alone adds: var(a)/N + var(b)/M.

    MMD's unbiased estimate (Gretton et al. 2012, lemma 6) with the linear kernel: two draws of one style average 0.
    """
    sampling = a.var(0, ddof=1) / len(a) + b.var(0, ddof=1) / len(b)
    return float((np.square(a.mean(0) - b.mean(0)) - sampling).sum())


def parts(a: Texts, b: Texts, by: Yardstick) -> Parts:
    """Word and trigram part of the squared distance: 0 for one style, 1 for sets that no common word or trigram joins.

    StyloraError: fewer than two texts with words in a set.
    """
    _check(first=a, second=b)
    split = partial(_grams, frozenset(by.words))
    rows = [_shares(texts, words, by.words) / by.word_units for texts in (a, b)]
    marks = [_shares(texts, split, by.grams) / by.gram_units for texts in (a, b)]
    return Parts(_unbiased(*rows), _unbiased(*marks))


def style_gain(after: Texts, before: Texts, style: Texts, by: Yardstick) -> float:
    """1 - d(after, style) / d(before, style): 1 arrived, 0 no nearer, negative further; NaN if `before` was there."""
    start = parts(before, style, by).distance
    return 1 - parts(after, style, by).distance / start if start else math.nan


def _check(**sets: Texts) -> None:
    """At least two texts with words in each set (one has no variance); else all faults at once."""
    counts = {name: sum(bool(words(text)) for text in texts) for name, texts in sets.items()}
    faults = [f"{name} texts: got {count} with words, wanted 2 or more" for name, count in counts.items() if count < 2]
    if faults:
        raise StyloraError("These sets of texts can't be compared.", faults, "Give more texts.")


# --- variety ---------------------------------------------------------------------------------------------------------


def distinctness(texts: Texts, n: int, draw: int) -> float:
    """How many different runs of n words are among `draw` of them drawn at random, over `draw`: 1/draw to 1.

    Distinct-n (Li et al. 2016) at a stated size, by the hypergeometric distribution (HD-D: McCarthy, Jarvis 2010):
    sets of any length compare. NaN where there are fewer runs than `draw`.
    """
    counts = Counter(gram for text in texts for gram in _runs_of(words(text), n))
    total = counts.total()
    if not 0 < draw <= total:
        return math.nan
    missed = math.fsum(_missed(total, count, draw) for count in counts.values())
    return (len(counts) - missed) / draw


def runs(texts: Texts, n: int) -> int:
    """How many runs of n words there are."""
    return sum(max(0, len(words(text)) - n + 1) for text in texts)


def _runs_of(found: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(found[k : k + n]) for k in range(len(found) - n + 1)]


def _missed(total: int, count: int, draw: int) -> float:
    """Probability that none of `count` out of `total` is among `draw`: C(total - count, draw) / C(total, draw)."""
    if total - count < draw:
        return 0.0
    lost = math.lgamma(total - count + 1) - math.lgamma(total - count - draw + 1)
    return math.exp(lost - math.lgamma(total + 1) + math.lgamma(total - draw + 1))


# --- memorisation ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copied:
    """What of some texts stands word for word in the training texts; case, white space and punctuation don't count."""

    longest: int  # words in a row
    share: float  # of the runs of RUN words, 0..1


def copied(texts: Texts, training: Texts) -> Copied:
    """The longest run and the share of runs of RUN words that stand inside one of the training texts."""
    some, known = _rows(texts, training)
    low, high = 0, max((len(words(text)) for text in texts), default=0)
    while low < high:  # a copied run holds copied runs of every smaller length
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _stand(some, known, middle).any() else (low, middle - 1)
    found = _stand(some, known, RUN)
    return Copied(low, float(found.mean()) if len(found) else 0.0)


def _stand(some: _Row, known: _Row, n: int) -> npt.NDArray[np.bool_]:
    """Of every run of n words in `some`: does it stand in `known`?"""
    return np.isin(some.hashes(n), known.hashes(n))


BASIS = 0x9E3779B97F4A7C15  # any odd number has powers that can be divided by


@dataclass(frozen=True, eq=False)
class _Row:
    """All words of some texts in a row, so that a run of any length has its hash at once (Karp, Rabin 1987)."""

    sums: Hashes  # (words + 1,): sum over the words before k of value * BASIS^place, modulo 2^64
    ends: npt.NDArray[np.int64]  # (words,): where the word's text ends

    def hashes(self, n: int) -> Hashes:
        """A number for every run of n words within a text; two different runs share one about once in 2^55."""
        places = np.arange(len(self.ends))
        starts = places[places + n <= self.ends]
        inverse = _powers(pow(BASIS, -1, 2**64), len(places) + 1)
        found: Hashes = (self.sums[starts + n] - self.sums[starts]) * inverse[starts]
        return found


def _powers(basis: int, count: int) -> Hashes:
    factors = np.full(count, basis, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)


def _rows(*groups: Texts) -> list[_Row]:
    """Each group's words, every word of the same value in all of them."""
    numbers: dict[str, int] = {}
    split = [[[numbers.setdefault(word, len(numbers)) for word in words(text)] for text in texts] for texts in groups]
    values = np.random.RandomState(0).randint(0, 2**64, size=max(1, len(numbers)), dtype=np.uint64)
    made = []
    for texts in split:
        lengths = [len(text) for text in texts]
        row = values[np.array([word for text in texts for word in text], dtype=np.int64)]
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(row * _powers(BASIS, len(row) or 1)[: len(row)])])
        made.append(_Row(sums, np.repeat(np.cumsum(lengths), lengths).astype(np.int64)))
    return made


def alarm(adapter: Copied, base: Copied, style: Copied | None = None) -> str:
    """What is wrong with how much an adapter copies; "" where nothing is.

    Copying is what goes far beyond what texts of the style that weren't trained on, and the base, have in common with
    the training texts anyway: set phrases. Far: SHARE more than twice their share, or a run of more than twice their
    longest, of LONG words at the least.
    """
    known = [base, style] if style else [base]
    share, longest = max(one.share for one in known), max(one.longest for one in known)
    found = []
    if adapter.share > 2 * share + SHARE:
        found.append(
            f"{adapter.share:.0%} of its runs of {RUN} words stand in the training texts, {share:.0%} expected"
        )
    if adapter.longest > max(2 * longest, LONG):
        found.append(f"it copied {adapter.longest} words in a row, {longest} expected")
    return f"the adapter has learned training texts by heart: {' and '.join(found)}" if found else ""
