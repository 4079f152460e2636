"""Rhyming words and the lines that end on them, for text_rhyme.py.

`python sample_data/make/text_rhyme_lines.py` prints each sound with its words and says which lines don't scan.
"""

from __future__ import annotations

import re

from text_words import phrases

# One row a sound: words that things of the texts end on | lines of about seven syllables that end on the same sound.
# In a line {n} is a name of one or two syllables, {a} an animal of one, {c} a colour, {k} a number.
NURSERY = phrases("nursery")
FILLERS: dict[str, list[str]] = NURSERY["lines"]  # a sound, called by its first word -> lines that end on it
TAIL: dict[str, list[str]] = NURSERY["tails"]  # a sound -> ends of longer lines
SOUND = {word: sound for sound, words in NURSERY["words"].items() for word in words}  # last word of a line -> sound


def last_word(line: str) -> str:
    return re.findall(r"[a-z]+", line.lower())[-1]


ENDINGS = {  # a sound -> every word that a line of that sound ends on
    sound: {word for word in SOUND if SOUND[word] == sound}
    | {last_word(line) for line in [*lines, *TAIL.get(sound, [])]}
    for sound, lines in FILLERS.items()
}


def rhymes(one: str, two: str) -> bool:
    """Whether two lines end on the same sound, but not on the same word."""
    a, b = last_word(one), last_word(two)
    return a != b and any(a in words and b in words for words in ENDINGS.values())


def syllables(text: str) -> int:
    """A fair guess: groups of vowels, without a silent e at the end."""
    total = 0
    for word in re.findall(r"[a-z']+", text.lower()):
        word = word.replace("'", "")
        groups = len(re.findall(r"[aeiouy]+", word))
        silent = re.search(r"[^aeiouyl]e$|[^aeiou]es$|[^aeiouytd]ed$", word) and not re.search(
            r"(ches|shes|ses|xes)$", word
        )
        total += max(1, groups - bool(silent))
    return total


if __name__ == "__main__":
    for sound, lines in FILLERS.items():
        for line in lines:
            length = syllables(line.replace("{a}s", "cats").format(n="Mary", a="cat", c="blue", k="two"))
            if not 6 <= length <= 9:
                print("does not scan:", length, line)
        print(f"{sound:10}", *sorted(ENDINGS[sound]))
