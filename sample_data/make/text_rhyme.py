"""A nursery rhyme of any content: couplets, each line of about seven syllables, or of about ten with a tail.

`python sample_data/make/text_rhyme.py` prints five.
"""

from __future__ import annotations

from random import Random

import text_words as w
from text_contents import Content, Event, content
from text_plain import pick
from text_rhyme_lines import FILLERS, NURSERY, SOUND, TAIL, last_word, rhymes, syllables

SLOTS = {"a": "short_animals", "c": "short_colours", "k": "short_numbers"}
MANY = {"foxs": "foxes", "mouses": "mice"}
GIRLS = [name for name in w.WOMEN if syllables(name) <= 2]


def called(r: Random, name: str) -> str:
    if name in ("I", "we") or name.startswith(("Mr ", "Mrs ")):
        return name
    if name.startswith(("the ", "my ")):
        first, _, rest = name.partition(" ")
        return f"{first} {r.choice(('jolly', 'dear old', 'good'))} {rest}" if r.random() < 0.5 else name
    return (
        f"{r.choice(('little', 'pretty', 'old', 'poor', 'dear', 'young', 'merry'))} {name}"
        if r.random() < 0.6
        else name
    )


def filled(r: Random, line: str) -> str:
    """A filler with somebody's name, an animal, a colour, a number."""
    choices = {"n": GIRLS, **{slot: NURSERY[name] for slot, name in SLOTS.items()}}
    words = {slot: r.choice(names) for slot, names in choices.items()}
    line = line.format(**words)
    for one, more in MANY.items():
        line = line.replace(one, more)
    return line


def shorter(r: Random, words: str) -> str:
    """Now and then without its look: `a brass key` -> `a key`."""
    parts = words.split()
    if (
        len(parts) == 3
        and parts[0] in ("a", "an", "the")
        and r.random() < 0.6
        and " hall" not in words
        and " office" not in words
    ):
        return w.an(parts[2]) if parts[0] != "the" else f"the {parts[2]}"
    if " of " in words and r.random() < 0.5:
        return "the " + words.partition(" of ")[2]
    return words


def clause(r: Random, e: Event, subject: str) -> str:
    names = {"t": shorter(r, e.thing), "o": called(r, e.whom) if e.whom else "", "p": e.place}
    words = pick(r, NURSERY["clauses"][e.verb], s=subject, at=e.there if r.random() < 0.6 else "", **names)
    words = words.strip().replace(" ,", ",")
    words = words.strip(", ")
    return f"{e.time}, {words}" if e.time and r.random() < 0.5 else words


def couplets(r: Random, lines: list[str], then: list[str]) -> tuple[str, str, int]:
    """One try: (first line, second line, how many clauses they used)."""
    first = r.choice(NURSERY["starts"]) + r.choice(lines)
    sound = SOUND.get(last_word(first))
    if sound and r.random() < 0.8:
        return first, filled(r, r.choice(FILLERS[sound])), 1
    sound = r.choice(list(TAIL))
    one, two = r.sample(TAIL[sound], 2)
    first = f"{first}, {one}"
    if then and r.random() < 0.7:
        return first, f"{r.choice(NURSERY['starts'])}{r.choice(then)}, {two}", 2
    return first, r.choice(NURSERY["starts"]) + filled(r, r.choice(FILLERS[sound])), 1


def badness(first: str, second: str) -> float:
    """How far a couplet is from two equal lines of seven to ten syllables."""
    a, b = syllables(first), syllables(second)
    return 2.0 * abs(a - b) + max(0, 6 - a) + 1.5 * max(0, a - 10) + (0 if rhymes(first, second) else 100)


def couplet(r: Random, lines: list[str], then: list[str]) -> tuple[str, int]:
    """The best of a few tries, as two lines."""
    tries = [couplets(r, lines, then) for _ in range(24)]
    first, second, used = min(tries, key=lambda made: badness(made[0], made[1]))
    return f"{capital(first)},\n{capital(second)}{r.choice(('.', '.', '.', '!', ';'))}", used


def capital(line: str) -> str:
    return line[0].upper() + line[1:]


def nonsense(r: Random) -> str:
    """Two lines of one sound that mean little."""
    sound = r.choice([sound for sound, lines in FILLERS.items() if len(lines) > 2])
    made = [filled(r, line) for line in r.sample(FILLERS[sound], 2)]
    return f"{capital(made[0])},\n{capital(made[1])}{r.choice('.!')}" if rhymes(*made) else nonsense(r)


def ways(r: Random, e: Event, subject: str, named: bool) -> list[str]:
    """A dozen ways to say one event, for the couplet to choose from; with the name until it is known."""
    made = [clause(r, e, subject) for _ in range(16)]
    made = [line for line in made if f"comes {subject}" not in line or subject not in ("he", "she", "I", "we")]
    return made if named else [line for line in made if subject in line] or made


def tell(r: Random, c: Content) -> str:
    """The content in couplets."""
    made = [nonsense(r)] if r.random() < 0.3 else []
    if c.weather:
        made.append(couplet(r, [filled(r, line) for line in NURSERY["weather"][c.weather[0]]], [])[0])
    name = called(r, c.hero.name)
    said = [ways(r, e, name if k == 0 or r.random() < 0.3 else c.hero.she, named=k > 0) for k, e in enumerate(c.events)]
    if c.mood:
        said.append([f"{name} {c.hero.was} {c.mood}", f"oh, so {c.mood} {c.hero.was} {name}", f"{c.mood}, {c.mood}"])
    if c.plan:
        said.append(
            [f"{c.plan[1]} to {c.plan[0]}", f"come {c.plan[1]} to {c.plan[0]}", f"meet me {c.plan[1]} by {c.plan[0]}"]
        )
    while said:
        words, used = couplet(r, said[0], said[1] if len(said) > 1 else [])
        made.append(words)
        said = said[used:]
    if r.random() < 0.15:
        made.append(nonsense(r))
    text = "\n".join(made).rstrip(";,.!") + r.choice(".!")
    lines = [last_word(line) for line in text.splitlines()]
    return text if all(lines.count(word) < 3 for word in lines) else tell(r, c)


if __name__ == "__main__":
    for seed in range(5):
        print(tell(Random(seed), content(Random(seed))), end="\n\n")
