"""What a text says, apart from how: a weather, a few events about one person, an ending. Pure functions of the seed.

`python sample_data/make/text_contents.py` prints three of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

import text_words as w
from text_words import Person, an


@dataclass(frozen=True)
class Event:
    """Who did what: `verb` is a key of the styles' tables, the rest fills its phrases where they ask for it."""

    verb: str
    who: Person
    thing: str = ""  # with its article: `a silver key`, later `the key`
    whom: str = ""  # `Tom`, `the baker`
    place: str = ""  # `the mill`
    there: str = ""  # `by the mill`
    time: str = ""


@dataclass(frozen=True)
class Content:
    weather: tuple[str, str] | None  # kind, stretch of time
    events: tuple[Event, ...]
    mood: str  # how it left the first person, or ""
    plan: tuple[str, str] | None  # a place to go to next, and the day

    @property
    def hero(self) -> Person:
        return self.events[0].who


Plot = Callable[[Random, Person], list[Event]]


def other(r: Random, hero: Person) -> str:
    """Somebody else's name."""
    while (name := w.person(r).name) == hero.name:
        pass
    return name


def short(name: str) -> str:
    """`the key` for `a silver key`: how a thing is called once it is known."""
    words = name.split()
    if " of " in name:
        return "the " + name.partition(" of ")[2]
    return f"the {words[-1]}"


def at(r: Random, place: str) -> dict[str, str]:
    return {"place": place, "there": w.there(r, place)}


def some(r: Random, *events: Event) -> list[Event]:
    """One of the events, or none."""
    return [r.choice(events)] if r.random() < 0.6 else []


def seen(r: Random, h: Person, avoid: str = "") -> Event:
    """A wild animal somewhere."""
    return Event("see", h, thing=an(w.animal(r, wild=True)), **at(r, w.place(r, avoid)))


def met(r: Random, h: Person, avoid: str = "", whom: str = "") -> Event:
    return Event("meet", h, whom=whom or other(r, h), **at(r, w.place(r, avoid)))


def heard(r: Random, h: Person) -> Event:
    return Event("hear", h, thing=r.choice(w.SOUNDS), **at(r, w.place(r)))


def told(r: Random, h: Person) -> Event:
    return Event("tell", h, whom=other(r, h))


def asked(r: Random, h: Person) -> Event:
    return Event("ask", h, whom=other(r, h))


def shown(r: Random, h: Person, thing: str) -> Event:
    return Event("show", h, thing=thing, whom=other(r, h))


def errand(r: Random, h: Person) -> list[Event]:
    p, t, o = w.place(r), r.choice((w.food(r), an(w.thing(r)))), other(r, h)
    return [
        Event("go", h, place=p),
        Event("buy", h, thing=t),
        *some(r, met(r, h, p, o), seen(r, h, p)),
        r.choice((Event("give", h, thing=short(t), whom=other(r, h)), Event("home", h, place=p))),
    ]


def lost(r: Random, h: Person) -> list[Event]:
    p, name = w.place(r), w.thing(r)
    q, t = w.place(r, p), short(name)
    return [
        Event("lose", h, thing=an(name), **at(r, p)),
        Event("seek", h, thing=t, **at(r, p)),
        *some(r, asked(r, h), told(r, h)),
        Event("find", h, thing=t, **at(r, q)),
    ]


def visit(r: Random, h: Person) -> list[Event]:
    o, f, p = other(r, h), w.food(r), w.place(r)
    return [
        Event("visit", h, whom=o, **at(r, p)),
        Event("bring", h, thing=f, whom=o),
        *some(r, Event("sing", h, **at(r, p)), Event("hear", h, thing=r.choice(w.SOUNDS), **at(r, w.place(r, p)))),
        r.choice((Event("home", h, place=p), Event("thank", h, whom=o))),
    ]


def repair(r: Random, h: Person) -> list[Event]:
    name, o = w.thing(r, w.BREAKABLE), other(r, h)
    return [
        Event("break", h, thing=an(name), **at(r, w.place(r))),
        *some(
            r, Event("ask", h, whom=o), Event("borrow", h, thing="a " + r.choice(("hammer", "saw", "brush")), whom=o)
        ),
        Event("mend", h, thing=short(name)),
        *some(r, shown(r, h, short(name)), Event("paint", h, thing=short(name))),
    ]


def runaway(r: Random, h: Person) -> list[Event]:
    name, p = w.animal(r), w.place(r)
    pet, q = short("a " + name), w.place(r, p)
    return [
        Event("flee", h, thing=an(name), **at(r, p)),
        Event("chase", h, thing=pet, **at(r, q)),
        *some(r, asked(r, h), told(r, h)),
        Event("catch", h, thing=pet, **at(r, q)),
        *some(r, Event("feed", h, thing=pet)),
    ]


def garden(r: Random, h: Person) -> list[Event]:
    crop = r.choice(w.CROPS)
    return [
        Event("plant", h, thing=crop, **at(r, r.choice(("the garden", "the field", "the orchard", "the meadow")))),
        *some(r, Event("water", h, thing=crop), seen(r, h)),
        r.choice(
            (
                Event("sell", h, thing=f"the {crop}", **at(r, "the market")),
                Event("bring", h, thing=f"some {crop}", whom=other(r, h)),
            )
        ),
    ]


def supper(r: Random, h: Person) -> list[Event]:
    o, dish = other(r, h), r.choice(w.DISHES)
    return [
        Event("invite", h, whom=o),
        Event("cook", h, thing=dish),
        *some(
            r,
            Event("sing", h, **at(r, w.place(r))),
            Event("light", h, thing=r.choice(("a fire", "the lamp", "a candle"))),
        ),
        r.choice((Event("eat", h, thing=short(dish), **at(r, "the kitchen")), Event("sleep", h, **at(r, w.place(r))))),
    ]


def journey(r: Random, h: Person) -> list[Event]:
    town, o = r.choice(w.TOWNS), other(r, h)
    stop = r.choice(("the station", "the harbour", "the crossroads", "the inn", "the quay", "the bridge", "the gate"))
    return [
        Event("go", h, place=town),
        Event("wait", h, whom=r.choice(("the train", "the coach", "the ferry", o)), **at(r, stop)),
        *some(r, seen(r, h), met(r, h, whom=o)),
        Event("arrive", h, place=town),
        *some(r, Event("write", h, whom=other(r, h)), Event("visit", h, whom=other(r, h), **at(r, w.place(r)))),
    ]


def market(r: Random, h: Person) -> list[Event]:
    goods, p = w.food(r), r.choice(("the market", "the fair", "the harbour", "the village", "the square"))
    return [
        Event("carry", h, thing=goods, place=p),
        Event("sell", h, thing=short(goods), **at(r, p)),
        *some(r, met(r, h, p), Event("count", h, thing="the money")),
        Event("buy", h, thing=an(w.thing(r))),
    ]


def fishing(r: Random, h: Person) -> list[Event]:
    p, fish = r.choice(("the lake", "the river", "the pond")), r.choice(w.FISH)
    return [
        Event("row", h, place=p),
        *some(r, heard(r, h), Event("see", h, thing=an(w.animal(r, wild=True)), **at(r, p))),
        Event("catch", h, thing=f"{r.choice(w.NUMBERS)} {fish}", **at(r, p)),
        r.choice((Event("cook", h, thing="the fish"), Event("give", h, thing="the fish", whom=other(r, h)))),
    ]


def discovery(r: Random, h: Person) -> list[Event]:
    p, name = w.place(r), w.thing(r)
    return [
        r.choice(
            (Event("hear", h, thing=r.choice(w.SOUNDS), **at(r, p)), Event("wait", h, whom=other(r, h), **at(r, p)))
        ),
        Event("find", h, thing=an(name), **at(r, p)),
        r.choice((shown(r, h, short(name)), Event("hide", h, thing=short(name), **at(r, w.place(r, p))))),
        *some(r, told(r, h), Event("write", h, whom=other(r, h))),
    ]


def building(r: Random, h: Person) -> list[Event]:
    built, p = r.choice(("a fence", "a shed", "a bench", "a wall", "a boat", "a gate", "a table")), w.place(r)
    return [
        Event("chop", h, thing="wood", **at(r, r.choice(("the forest", "the wood")))),
        Event("build", h, thing=built, **at(r, p)),
        *some(r, Event("paint", h, thing=short(built)), asked(r, h)),
        shown(r, h, short(built)),
    ]


PLOTS: tuple[Plot, ...] = (
    errand,
    lost,
    visit,
    repair,
    runaway,
    garden,
    supper,
    journey,
    market,
    fishing,
    discovery,
    building,
)


def content(r: Random, first_person: float = 0.2) -> Content:
    """One to five events, with a time somewhere, often with the weather before or a mood or plan behind."""
    hero = Person(*r.choice((("I", "I"), ("we", "we")))) if r.random() < first_person else w.person(r)
    events = r.choice(PLOTS)(r, hero)
    events[0] = replace(events[0], time=w.when(r) if r.random() < 0.8 else "")
    if r.random() < 0.25:
        events[-1] = replace(
            events[-1], time=r.choice(("before dark", "at dusk", "in the end", "before supper", "at last"))
        )
    ending = r.random()
    return Content(
        weather=(r.choice(list(w.WEATHER)), r.choice(w.STRETCHES)) if r.random() < 0.35 else None,
        events=tuple(events),
        mood=r.choice(w.MOODS) if ending < 0.3 else "",
        plan=(w.place(r), f"on {r.choice(w.DAYS)}") if 0.3 <= ending < 0.55 else None,
    )


if __name__ == "__main__":
    for seed in range(3):
        print(content(Random(seed)), end="\n\n")
