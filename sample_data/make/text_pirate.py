"""A pirate's log of any content.

`python sample_data/make/text_pirate.py` prints five.
"""

from __future__ import annotations

import re
from random import Random

import text_words as w
from text_contents import Content, Event, content
from text_plain import pick, sentence, timed

PIRATE = w.phrases("pirate")


def spoken(text: str) -> str:
    """The small words as a pirate says them."""

    def said(found: re.Match[str]) -> str:
        word = found.group()
        new = PIRATE["speech"].get(word.lower(), word)
        return new[0].upper() + new[1:] if word[0].isupper() else new

    return re.sub(r"\b[A-Za-z]+\b(?!')", said, text)


def called(r: Random, name: str) -> str:
    """`Peg-Leg Tom`, `that rogue of a baker`."""
    if name in ("I", "we"):
        return name
    if name[0].isupper() and not name.startswith(("Mr ", "Mrs ")):
        return f"{r.choice(PIRATE['ranks'])} {name}"
    if name.startswith("the ") and r.random() < 0.5:
        return f"{r.choice(('that rogue of a', 'our one-eyed', 'that old sea dog the'))} {name[4:]}"
    return name


def clause(r: Random, e: Event, subject: str) -> str:
    return pick(r, PIRATE["clauses"][e.verb], s=subject, t=e.thing, o=e.whom, p=e.place, at=e.there)


def heading(r: Random) -> str:
    """What ship, what watch, or where."""
    ship = f"{r.choice(PIRATE['ships_a'])} {r.choice(PIRATE['ships_b'])}"
    return r.choice(
        (
            f"Log of the {ship}, {r.choice(PIRATE['watches'])}",
            f"The {ship}, {r.choice(w.HOURS)} bells",
            f"Aboard the {ship}, {r.choice(PIRATE['watches'])}",
            f"Ship's log, {r.choice(w.MONTHS)}, {r.choice(w.NUMBERS)} fathoms under us",
            f"{r.choice(w.NUMBERS)} leagues off {r.choice(w.TOWNS)}",
            f"Writ in the {ship} off {r.choice(w.TOWNS)}",
        )
    )


def tell(r: Random, c: Content) -> str:
    """The content as an entry of a log."""
    made = []
    if r.random() < 0.6:
        made.append(heading(r))
    if c.weather:
        made.append(pick(r, PIRATE["weather"][c.weather[0]], t=c.weather[1]))
    hero = called(r, c.hero.name)
    for k, e in enumerate(c.events):
        subject = hero if k == 0 else c.hero.she if r.random() < 0.8 else hero
        words = timed(r, clause(r, e, subject), e.time)
        roll = r.random()
        if roll < 0.3:
            words = f"{r.choice(PIRATE['cries'])} {words}"
        elif roll < 0.5 and k:
            words = f"{r.choice(PIRATE['links'])} {words}"
        words += r.choice(PIRATE["oaths"]) if r.random() < 0.25 else ""
        made.append(words)
    if c.mood:
        made.append(pick(r, PIRATE["moods"], s=c.hero.she, o=c.hero.her, m=c.mood))
    if c.plan:
        made.append(pick(r, PIRATE["plans"], s=c.hero.she, p=c.plan[0], d=c.plan[1]))
    if not c.mood and not c.plan and r.random() < 0.6:
        made.append(r.choice(PIRATE["ends"]))
    return " ".join(spoken(sentence(line)) for line in made)


if __name__ == "__main__":
    for seed in range(5):
        print(tell(Random(seed), content(Random(seed))), end="\n\n")
