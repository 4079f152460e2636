"""A telegram of any content: capitals, no small words, STOP.

`python sample_data/make/text_telegram.py` prints five.
"""

from __future__ import annotations

import re
from random import Random

import text_words as w
from text_contents import Content, Event, content
from text_plain import pick

TELEGRAM = w.phrases("telegram")  # {s} is empty once it is known who is meant


def clipped(words: str) -> str:
    """Without articles and small words, in capitals."""
    for long, shorter in TELEGRAM["short"].items():
        words = re.sub(rf"\b{long}\b", shorter, words)
    words = re.sub(r"\b(a|an|the|my|in|at|by|some|and|with)\b", " ", words)
    return " ".join(
        re.sub(r"\b(loaf|basket|jar|sack|bottle|plate|pot|piece|pan|bowl) of\b", r"\1", words)
        .upper()
        .replace(",", "")
        .split()
    )


def clause(r: Random, e: Event, subject: str) -> str:
    words = pick(r, TELEGRAM["clauses"][e.verb], s=subject, t=e.thing, o=e.whom, p=e.place, at=e.there)
    return timed(r, words, e.time)


def timed(r: Random, words: str, time: str) -> str:
    return f"{time} {words}" if r.random() < 0.4 else f"{words} {time}"


def tell(r: Random, c: Content) -> str:
    """The content in as few words as one pays for."""
    names = {
        "n": r.choice(w.WOMEN + w.MEN),
        "m": r.choice(w.WOMEN + w.MEN),
        "town": r.choice(w.TOWNS),
        "h": r.choice(w.HOURS),
    }
    names |= {"day": r.choice(w.DAYS), "street": f"{r.choice(w.HOURS)} {r.choice(w.FAMILIES)} street"}
    lines = [pick(r, TELEGRAM["heads"], **names)] if r.random() < 0.5 else []
    if c.weather:
        lines.append(pick(r, TELEGRAM["weather"][c.weather[0]], t=c.weather[1]))
    named = "" if c.hero.name in ("I", "we") else c.hero.name
    said = False
    for e in c.events:
        words = clause(r, e, "" if said else named)
        if named and not said and named not in words and e.verb != "flee":
            words = f"{named} {words}"
        said = said or e.verb != "flee"
        lines.append(words)
    if c.mood:
        lines.append(pick(r, TELEGRAM["moods"], s=named, m=c.mood))
    if c.plan:
        lines.append(pick(r, TELEGRAM["plans"], p=c.plan[0], d=c.plan[1].removeprefix("on ")))
    if r.random() < 0.65:
        lines.append(pick(r, TELEGRAM["ends"], **names))
    closing = " STOP" if r.random() < 0.5 else ""
    return " STOP ".join(clipped(line) for line in lines) + closing


if __name__ == "__main__":
    for seed in range(5):
        print(tell(Random(seed), content(Random(seed))), end="\n\n")
