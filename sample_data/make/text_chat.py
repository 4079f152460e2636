"""Plain conversations: questions about a text, telling it again, weather, ways, recipes, letters, words, small sums.

`python sample_data/make/text_chat.py` prints twenty. Messages are {"role": …, "content": …} with user and assistant.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import text_words as w
from text_contents import Content, content
from text_plain import directions, forecast, jumble, letter, recipe, scene, sentence, story, tell

Turn = tuple[str, str]  # what the user says, what the assistant answers

AGAIN = (
    "Tell me this again: {x}", "Say this in other words: {x}", "Here is what happened. {x} Tell it once more.",
    "Write this down: {x}", "Please tell this to a friend: {x}", "{x} How would you tell it?", "Tell this: {x}",
)  # fmt: skip
COUNTS = ["none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def again(r: Random) -> Turn:
    """The same content, told in two ways."""
    c = content(r)
    return r.choice(AGAIN).format(x=tell(r, c)), tell(r, c)


def about(r: Random) -> Turn:
    """A question that the text answers."""
    c: Content = content(r, first_person=0)
    text, e = tell(r, c), r.choice(c.events)
    questions = [("Who is it about?", f"It is about {c.hero.name}."), ("How many people are in it?", people(c))]
    if e.place and e.there:
        questions += [("Is there a place in it?", f"Yes, {e.place}."), ("Where did it happen?", sentence(e.there))] * 2
    if c.weather:
        questions += [("What was the weather like?", sentence(f"there was {NOUNS[c.weather[0]]} {c.weather[1]}"))] * 4
    if c.events[0].time:
        questions += [("When was that?", sentence(c.events[0].time))] * 3
    if e.whom and not e.whom.startswith("the "):
        questions += [(f"Who else is in it besides {c.hero.name}?", sentence(e.whom))] * 3
    asked, answer = r.choice(questions)
    return f"{text} {asked}", answer


NOUNS = {
    "rain": "rain", "storm": "a storm", "fog": "fog", "sun": "sunshine", "snow": "snow", "wind": "wind",
    "frost": "frost", "cloud": "a grey sky", "heat": "great heat",
}  # fmt: skip


def people(c: Content) -> str:
    number = 1 + len({e.whom for e in c.events if e.whom and e.whom not in ("the train", "the coach", "the ferry")})
    return sentence(COUNTS[number])


def tell_me(r: Random) -> Turn:
    """A text of a kind that was asked for."""
    kind = r.randrange(6)
    if kind == 0:
        c = content(r, first_person=0)
        name = c.hero.name
        return r.choice((f"Tell me a story about {name}.", f"What did {name} do?", f"What happened to {name}?")), tell(
            r, c
        )
    if kind == 1:
        c = content(r, first_person=1)
        return r.choice(("What have you done today?", "How was your day?", "What is new?", "Any news?")), tell(r, c)
    if kind == 2:
        p = w.place(r)
        return r.choice((f"What is {p} like?", f"Describe {p}.", "Describe what you see.")), scene(r)
    if kind == 3:
        text = forecast(r)
        return f"What will the weather be in {text.partition(' in ')[2].partition('.')[0]}?", text
    if kind == 4:
        text = directions(r)
        p = text.partition(",")[0].removeprefix("To get to ")
        return r.choice((f"How do I get to {p}?", f"Which way is it to {p}?", f"I am looking for {p}.")), text
    text = letter(r)
    to = text.partition(",")[0].removeprefix("Dear ")
    return f"Write a letter to {to} from {text.splitlines()[-1]}.", text


def cooking(r: Random) -> Turn:
    text = recipe(r)
    dish = text.partition(",")[0].removeprefix("To make ")
    return r.choice(
        (f"How do I make {dish}?", f"I would like to make {dish}.", f"Have you got a recipe for {dish}?")
    ), text


def old_word(r: Random) -> Turn:
    """What a word means, or how it is spelled."""
    word = r.choice(list(w.OLD_WORDS))
    meaning = w.OLD_WORDS[word]
    shown = r.choice((f"'{word}'", f'"{word}"', word.capitalize(), word))
    return r.choice((
        (f"What does {shown} mean?", f"In old books, {word} means {meaning}."),
        (f"Which old word means {meaning}?", f"The old word {word} means {meaning}."),
        (f"I read the word {shown}. What is it?", f"{word.capitalize()} is an old word for {meaning}."),
        (f"How do you spell {word}?", spelled(word)),
    ))  # fmt: skip


def spelled(word: str) -> str:
    return ", ".join(letter.upper() for letter in word if letter.isalpha()) + "."


def word(r: Random) -> Turn:
    """Opposites, spelling, the first letter, what comes next."""
    kind = r.randrange(5)
    if kind == 0:
        pair = r.choice(w.WORDS["opposites"]).split()
        r.shuffle(pair)
        return f"What is the opposite of {pair[0]}?", f"The opposite of {pair[0]} is {pair[1]}."
    if kind == 1:
        noun = r.choice([*w.OBJECTS, *w.ANIMALS, *w.WILD, *w.SHIP_WORDS, *w.CROPS, *w.WOMEN, *w.MEN, *w.TRADES])
        return f"How do you spell {noun}?", spelled(noun)
    if kind == 2:
        noun = r.choice([*w.OBJECTS, *w.ANIMALS, *w.WILD, *w.SHIP_WORDS])
        return f"What is the first letter of {noun}?", f"{noun.capitalize()} begins with {noun[0].upper()}."
    names = r.choice((w.DAYS, w.MONTHS, COUNTS[1:]))
    k = r.randrange(len(names) - 1)
    if kind == 3:
        return f"What comes after {names[k]}?", sentence(names[k + 1])
    return f"What comes before {names[k + 1]}?", sentence(names[k])


def capitals(r: Random) -> Turn:
    """A line in capitals, or back in small letters."""
    line = r.choice((story(r), forecast(r), scene(r), directions(r))).split(". ")[0].rstrip(".") + "."
    if r.random() < 0.8:
        return r.choice((f"Write this in capitals: {line}", f"{line} In capitals, please.")), line.upper()
    return f"Write this in small letters: {line.upper()}", line.lower()


def rhyme(r: Random) -> Turn:
    """Which words sound alike."""
    words = r.choice(w.WORDS["rhymes"]).split()
    one, two = r.sample(words, 2)
    return r.choice((
        (f"What rhymes with {one}?", f"{two.capitalize()} rhymes with {one}."),
        (f"Do {one} and {two} rhyme?", f"Yes, {one} and {two} sound alike."),
    ))  # fmt: skip


def greeting(r: Random) -> Turn:
    """Small talk."""
    name = r.choice(w.WOMEN + w.MEN)
    part = r.choice(w.PARTS)
    clothes = ("A warm coat.", "A hat and a scarf.", "Take an umbrella.", "Good boots.")
    return r.choice((
        (f"Good {part}.", f"Good {part}. How can I help you?"),
        (f"Hello, I am {name}.", f"Hello, {name}. It is nice to meet you."),
        ("How are you?", r.choice(("I am very well, thank you.", f"I am {r.choice(w.MOODS)}, thank you."))),
        ("Thank you.", r.choice(("You are welcome.", "It was a pleasure.", "Not at all."))),
        (f"Good night, {name}.", "Good night. Sleep well."),
        ("What should I wear today?", r.choice(clothes)),
        (f"What can I give {name}?", f"You could give {name} {w.an(w.thing(r))}."),
        ("What should I eat?", f"You could eat {r.choice(w.DISHES)}."),
        ("Where is my " + (noun := r.choice(list(w.OBJECTS))) + "?", f"Your {noun} is {w.there(r, w.place(r))}."),
        ("When does the train leave?", f"The train leaves {'at ' + r.choice(w.HOURS)} o'clock."),
        (f"Who lives in {w.place(r)}?", f"Nobody lives there but {w.an(w.animal(r, wild=True))}."),
    ))  # fmt: skip


def repeat(r: Random) -> Turn:
    """The same words again, whatever they are."""
    text = jumble(r)
    return r.choice((f"Say after me: {text}", f"Repeat: {text}", f"{text}\nSay it again.")), text


def added(r: Random) -> Turn:
    """A small sum."""
    a, b = r.randint(1, 6), r.randint(1, 6)
    return f"What is {COUNTS[a]} and {COUNTS[b]}?", f"{COUNTS[a].capitalize()} and {COUNTS[b]} is {COUNTS[a + b]}."


KINDS: dict[str, tuple[Callable[[Random], Turn], float]] = {  # kind -> (composer, share of all turns)
    "again": (again, 6),
    "about": (about, 2),
    "tell me": (tell_me, 4),
    "cooking": (cooking, 0.7),
    "old word": (old_word, 2),
    "word": (word, 2),
    "capitals": (capitals, 2),
    "rhyme": (rhyme, 1),
    "greeting": (greeting, 1.5),
    "sum": (added, 0.3),
    "repeat": (repeat, 2),
}
SYSTEM = ("You are a friendly neighbour.", "Answer in plain words.", "You are kind and brief.", "You tell stories.")


def compose(seed: str, without: str = "") -> list[dict[str, str]]:
    """The messages of one conversation, of one to three turns, sometimes with a system message first."""
    r = Random(seed)
    kinds = [kind for kind in KINDS if kind != without]
    made = [{"role": "system", "content": r.choice(SYSTEM)}] if r.random() < 0.15 else []
    for _ in range(r.choice((1, 1, 1, 2, 2, 3))):
        kind = r.choices(kinds, [KINDS[kind][1] for kind in kinds])[0]
        asked, answer = KINDS[kind][0](r)
        made += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return made


if __name__ == "__main__":
    for seed in range(20):
        print("\n".join(f"{m['role']:>9}: {m['content']}" for m in compose(f"try {seed}")), end="\n\n")
