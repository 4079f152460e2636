"""Plain English: a content told in short sentences, and scenes, weather, directions, recipes, letters, lists of words.

`python sample_data/make/text_plain.py` prints three texts of each kind. Every kind is a function of a Random.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from random import Random

import text_words as w
from text_contents import Content, Event, content
from text_words import an

PLAIN = w.phrases("plain")


def sentence(words: str) -> str:
    """With a capital and, where nothing closes it, a full stop."""
    words = words.strip()
    return words[0].upper() + words[1:] + ("" if words[-1] in ".!?:" else ".")


def pick(r: Random, ways: Sequence[str], **words: str) -> str:
    """One of the ways, filled."""
    return r.choice(ways).format(**words)


def varied(r: Random, text: str) -> str:
    """`a [big|small] dog` with one of the words in brackets."""
    return re.sub(r"\[([^]]*)\]", lambda found: r.choice(found[1].split("|")), text)


def paragraph(lines: Sequence[str]) -> str:
    return " ".join(sentence(line) for line in lines)


def clause(r: Random, e: Event, subject: str) -> str:
    words = {"t": e.thing, "o": e.whom, "p": e.place, "at": e.there, "his": e.who.hers, "him": e.who.her}
    return pick(r, PLAIN["clauses"][e.verb], s=subject, **words)


def timed(r: Random, words: str, time: str) -> str:
    if not time:
        return words
    return f"{time}, {words}" if r.random() < 0.5 else f"{words} {time}"


def events(r: Random, c: Content) -> list[str]:
    """One sentence an event, sometimes two events in one."""
    made: list[str] = []
    left, named = list(c.events), False
    while left:
        e = left.pop(0)
        subject = e.who.she if named and r.random() > 0.15 else e.who.name
        words = clause(r, e, subject)
        starts = words.startswith(subject)
        named = named or subject in words
        if left and starts and not left[0].time and " and " not in words and r.random() < 0.35:
            more = clause(r, left[0], "")
            if more.startswith(" ") and " and " not in more:
                words, left = f"{words} and{more}", left[1:]
        if e.time:
            words = timed(r, words, e.time)
        elif made and r.random() < 0.35:
            words = f"{r.choice(PLAIN['links'])}{',' if r.random() < 0.3 else ''} {words}"
        made.append(sentence(words))
    return made


def ending(r: Random, c: Content) -> list[str]:
    h = c.hero
    if c.mood:
        return [sentence(pick(r, PLAIN["moods"], s=h.she, was=h.was, him=h.her, m=c.mood))]
    if c.plan:
        return [sentence(pick(r, PLAIN["plans"], s=h.she, p=c.plan[0], d=c.plan[1]))]
    return []


def tell(r: Random, c: Content) -> str:
    """The content in plain English."""
    weather = [pick(r, w.WEATHER[c.weather[0]], t=c.weather[1])] if c.weather else []
    return " ".join([*weather, *events(r, c), *ending(r, c)])


# --- other kinds ----------------------------------------------------------------------------------------------------


def story(r: Random) -> str:
    return tell(r, content(r))


def scene(r: Random) -> str:
    """What there is to see somewhere, in the present."""
    p = w.place(r)
    inside = w.noun_of(p) in w.INDOORS
    look = varied(r, "[quiet|busy|peaceful|cold|warm|bright|dark|full of people|almost empty]")
    one, two, a = w.person(r), w.person(r), w.animal(r)
    herd = f"{r.choice(w.NUMBERS)} {varied(r, '[hens|ducks|sheep|cows|geese|dogs|cats|horses|goats|pigs]')}"
    sat = varied(r, "[sits|sleeps|lies|stands|waits]")
    spots = "[on the table|on the floor|by the window]" if inside else "[on the grass|by the wall|under the hedge]"
    body = [
        f"{an(a)} {sat} {'by the door' if inside else 'under a tree' if r.random() < 0.5 else w.there(r, p)}",
        varied(r, f"{herd} [are looking for food|stand close together|are making a lot of noise]"),
        varied(r, f"{one.name} is [reading a letter from|talking to|waiting for|helping|laughing with] {two.name}"),
        varied(r, f"there is {an(w.thing(r))} {spots}"),
        varied(r, "somewhere [a bell is ringing|a dog is barking|children are playing|someone is singing]"),
        varied(r, "the air smells of [bread|rain|smoke|flowers|the sea|apples|wet earth|hay]"),
    ]
    now = varied(r, "[today|this morning|in the evening|at this hour]")
    opening = r.choice((f"{p} is {look} {now}", f"it is {look} {w.there(r, p)}"))
    return paragraph([opening, *r.sample(body, r.randint(2, 4))])


def forecast(r: Random) -> str:
    """Tomorrow's weather."""
    town, day, side = r.choice(w.TOWNS), r.choice(("tomorrow", "today", "tonight", *w.DAYS)), r.choice(w.COMPASS)
    sky = varied(r, "[cloudy|sunny|wet|dry|windy|foggy|cold|warm|fine|stormy]")
    when = f"on {day}" if day in w.DAYS else day
    lines = [varied(r, line) for line in PLAIN["forecast"]]
    first = f"it will be {sky} in {town} {when}"
    lines.insert(0, f"the wind will come from the {side}")
    return paragraph([first, *sorted(r.sample(lines, r.randint(1, 3)), key=lines.index)])


def directions(r: Random) -> str:
    """How to get from one place to another."""
    p, q, s = (w.place(r) for _ in range(3))
    turn, side = r.choice(("left", "right")), r.choice(("left", "right"))
    lines = [varied(r, line.format(p=p, q=q, s=s, turn=turn, side=side)) for line in PLAIN["directions"]]
    return paragraph(lines[: r.choice((3, 3, 4))])


VEGETABLES = ("onion", "carrot", "potato", "mushroom", "cabbage", "pumpkin", "turnip")


def recipe(r: Random) -> str:
    """A soup or a cake in four or five sentences."""
    words = {"number": r.choice(w.NUMBERS[:5]), "minutes": varied(r, "[ten|fifteen|twenty|thirty|forty]")}
    if r.random() < 0.5:
        one, two = r.sample(VEGETABLES, 2) if r.random() < 0.8 else (r.choice(VEGETABLES), "leek")
        more = one + ("es" if one == "potato" else "s")
        lines = [varied(r, line.format(one=one, more=more, two=an(two), **words)) for line in PLAIN["soup"]]
    else:
        taste = varied(r, "[apple|plum|cherry|ginger|honey|nut|lemon|pear]")
        more = taste if taste in ("ginger", "honey") else "cherries" if taste == "cherry" else taste + "s"
        lines = [varied(r, line.format(taste=an(taste), more=more, **words)) for line in PLAIN["cake"]]
    return paragraph(lines[: r.choice((4, 5, 5))])


def letter(r: Random) -> str:
    """A short letter with news."""
    sender, to = r.choice(w.WOMEN + w.MEN), r.choice((r.choice(w.WOMEN + w.MEN), r.choice(w.KIN[:10]).title()))
    hello, bye, close = (varied(r, PLAIN[part]) for part in ("hello", "bye", "close"))
    return f"Dear {to},\n{hello} {tell(r, content(r, first_person=0.7))} {bye}\n{close}\n{sender}"


def notice(r: Random) -> str:
    """Words on a sign, in capitals as signs have them."""
    p, noun = w.place(r), r.choice(list(w.OBJECTS))
    words = r.choice(
        (
            "please close the gate",
            "no dogs in the shop",
            f"closed on {r.choice(w.DAYS)}",
            "keep off the grass",
            "stop here",
            f"stop at {p}",
            f"{r.choice(w.DISHES).partition(' ')[2]} today",
            f"for sale: one {noun}",
            f"lost: {an(noun)}",
            f"road to {r.choice(w.TOWNS)}",
            f"found {w.there(r, w.place(r))}: one {noun}",
            f"open from {r.choice(w.HOURS)} to {r.choice(w.HOURS)}",
            f"beware of the {r.choice(w.ANIMALS)}",
        )
    ).upper()
    after = r.choice(
        (
            "Everyone in the village has read it.",
            f"{w.person(r).name} put it there {w.when(r)}.",
            "",
            f"{w.person(r).name} cannot read it.",
            f"It has been there since {r.choice(w.MONTHS)}.",
        )
    )
    sign = varied(r, "[a sign|a notice|a card|a board] ") + w.there(r, p) + varied(r, f" [says|reads]: {words}")
    return paragraph([sign, after] if after else [sign])


def talk(r: Random) -> str:
    """Two people meet and say a few words."""
    one, two = r.sample(w.WOMEN + w.MEN, 2)
    more = pick(r, w.WEATHER[r.choice(list(w.WEATHER))], t=r.choice(w.STRETCHES))
    asked = f'"Good {r.choice(w.PARTS)}, {two}," said {one}. ' + varied(r, PLAIN["asked"])
    said = varied(r, f'{PLAIN["said"]}," said {two}. ')
    return f'{asked} {said}"{r.choice((more, story(r)))}" ' + varied(r, f'{PLAIN["heard"]}," said {one}.')


def portrait(r: Random) -> str:
    """Who someone is, in the present."""
    woman = r.random() < 0.5
    name, she = r.choice(w.WOMEN if woman else w.MEN), "she" if woman else "he"
    trade = r.choice([trade for trade in w.TRADES if not woman or trade not in w.MALE])
    likes = r.sample(PLAIN["likes"], 2)
    body = [
        varied(r, f"{she} lives {w.there(r, w.place(r))} with [a|one|an old|a small] ") + r.choice(w.ANIMALS),
        f"{she} has {r.choice(PLAIN['looks'])} and {an(w.thing(r))}",
        f"{she} likes {likes[0]} and {likes[1]}",
        f"every {r.choice((*w.DAYS, 'morning', 'evening'))} {she} goes to {w.place(r)}",
        varied(r, PLAIN["rumour"].format(she=she)),
    ]
    age = varied(r, "[young|old|tall|cheerful|quiet|clever]")
    opening = varied(r, f"{name} is {an(age)} {trade} [in|from|near] ") + r.choice(w.TOWNS)
    return paragraph([opening, *r.sample(body, r.randint(2, 4))])


POOL = sorted(set(re.findall(r"[A-Za-z'-]+", json.dumps(w.WORDS | PLAIN, ensure_ascii=False))) - {"s", "t", "o", "p"})
LETTERS = "abcdefghijklmnopqrstuvwxyz"
STOPS = (" ", " ", ", ", ", ", "; ", "! ", "? ", ". ", ": ", " - ", "\n")


def jumble(r: Random) -> str:
    """Words and letters in any order, small or in capitals: they keep the base from being too sure of itself."""
    case = r.choice((str.lower, str.lower, str.capitalize, str.upper))
    stop = r.choice(STOPS)
    made = ""
    for _ in range(r.randint(4, 14)):
        word = r.choice(POOL) if r.random() < 0.8 else "".join(r.choices(LETTERS, k=r.randint(1, 5)))
        made += (case(word) if r.random() < 0.8 else word) + (stop if r.random() < 0.8 else r.choice(STOPS))
    return made.strip()


KINDS: dict[str, tuple[Callable[[Random], str], float]] = {  # kind -> (composer, share of all texts)
    "story": (story, 10),
    "scene": (scene, 2),
    "forecast": (forecast, 1),
    "directions": (directions, 1),
    "recipe": (recipe, 1),
    "letter": (letter, 2),
    "notice": (notice, 1),
    "talk": (talk, 1.5),
    "portrait": (portrait, 1),
    "jumble": (jumble, 1.5),
}


def compose(seed: str, without: str = "") -> str:
    """A text of some kind but one; the same for the same seed."""
    r = Random(seed)
    kinds = [kind for kind in KINDS if kind != without]
    kind = r.choices(kinds, [KINDS[kind][1] for kind in kinds])[0]
    return KINDS[kind][0](r)


if __name__ == "__main__":
    for name, (made, _) in KINDS.items():
        for seed in range(3):
            print(f"[{name}] {made(Random(f'try {seed}'))}")
