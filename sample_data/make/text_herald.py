"""A herald's proclamation of any content.

`python sample_data/make/text_herald.py` prints five.
"""

from __future__ import annotations

import re
from random import Random

import text_words as w
from text_contents import Content, Event, content
from text_plain import pick, sentence

HERALD = w.phrases("herald")


def spoken(words: str) -> str:
    """Times and places as a herald says them."""
    words = words.replace("for hours", "for many an hour")
    return re.sub(r"[a-z']+", lambda found: HERALD["speech"].get(found.group(), found.group()), words)


def called(r: Random, name: str, she: str) -> str:
    """`the valiant Anna`, `Master Tom`."""
    if name in ("I", "we"):
        return "we"
    if name.startswith("the "):
        return f"{'our' if r.random() < 0.5 else 'the'} {r.choice(HERALD['worthies'])} {name[4:]}"
    if name.startswith(("my ", "Mr ", "Mrs ")):
        return name.replace("my ", "mine own ").replace("Mrs ", "Dame ").replace("Mr ", "Sir ")
    title = r.choice(("Mistress", "Lady", "Dame") if she == "she" else ("Master", "Sir", "Squire"))
    return f"{title} {name}" if r.random() < 0.5 else f"the {r.choice(HERALD['worthies'])} {name}"


def deed(r: Random, e: Event, subject: str) -> str:
    """`X did …`, `X hath …` or `upon the morn did X …`."""
    if e.verb == "flee":
        subject = e.thing
    plural = subject == "we"
    thing, whom = (name.replace("my ", "mine own ") for name in (e.thing, e.whom))
    oneself = {"she": "herself", "he": "himself"}.get(e.who.she, "ourselves")
    words = {"t": thing, "o": whom, "p": e.place, "at": spoken(e.there), "self": oneself}
    did, hath = HERALD["did"][e.verb], HERALD["hath"][e.verb]
    time = spoken(e.time)
    if time and r.random() < 0.5:
        return f"{time} did {subject} {pick(r, did, **words)}"
    time = f" {time}" if time else ""
    if r.random() < 0.5:
        return f"{subject} did {pick(r, did, **words)}{time}"
    return f"{subject} {'have' if plural else 'hath'} {pick(r, hath, **words)}{time}"


def tell(r: Random, c: Content) -> str:
    """The content as a proclamation."""
    common = {
        "town": (towns := r.sample(w.TOWNS, 2))[0],
        "other": towns[1],
        "f": r.choice(HERALD["folk"]),
        "ruler": r.choice(HERALD["rulers"]),
    }
    common |= {
        "month": r.choice(w.MONTHS),
        "n": r.choice(("four", "six", "seven", "ten", "eleven", "thirteen", "nineteen")),
    }
    made = [pick(r, HERALD["openings"], **common)] if r.random() < 0.75 else []
    hero = called(r, c.hero.name, c.hero.she)
    she = "we" if hero == "we" else c.hero.she
    if c.weather:
        stretch = spoken(c.weather[1])
        weather = pick(r, HERALD["weather"][c.weather[0]], t=stretch)
        made.append(f"{r.choice(('Whereas', 'Though', 'Albeit', 'While'))} {weather}, {r.choice(HERALD['yet'])}.")
    for k, e in enumerate(c.events):
        words = deed(r, e, hero if k == 0 or r.random() < 0.25 else she)
        if not k:
            words = f"{r.choice(HERALD['starts'])} {words}"
        elif r.random() < 0.55:
            words = f"{r.choice(HERALD['links'])} {words}"
        made.append(sentence(words))
    if c.mood:
        made.append(sentence(pick(r, HERALD["moods"], s=she, m=c.mood, is_="are" if she == "we" else "is")))
    if c.plan:
        made.append(sentence(pick(r, HERALD["plans"], s=she, p=c.plan[0], d=spoken(c.plan[1]))))
    if r.random() < (0.4 if c.mood or c.plan else 0.8):
        made.append(pick(r, HERALD["ends"], **common))
    return " ".join(made)


if __name__ == "__main__":
    for seed in range(5):
        print(tell(Random(seed), content(Random(seed))), end="\n\n")
