"""Write sample_data/text/: four styles, each with texts to train on, texts held out and plain-to-styled conversations.

`python sample_data/make/text_folders.py` composes them anew, the same to the byte, and says how much is repeated.
The styles tell the same contents: line k of train.jsonl says the same thing in every style.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from random import Random

import text_herald
import text_pirate
import text_plain
import text_rhyme
import text_telegram
from text_chat import AGAIN
from text_contents import Content, content

TARGET = Path(__file__).resolve().parent.parent / "text"
STYLES: dict[str, Callable[[Random, Content], str]] = {
    "pirate": text_pirate.tell,
    "herald": text_herald.tell,
    "telegram": text_telegram.tell,
    "nursery": text_rhyme.tell,
}
TRAIN, HELD_OUT, CHATS = 240, 40, 160


def told(style: str, part: str, k: int) -> str:
    """Text k of a style; contents are the same in all styles and other ones in each part."""
    return STYLES[style](Random(f"{style} {part} {k}"), content(Random(f"content {part} {k}")))


def texts(style: str, part: str, count: int) -> list[dict[str, str]]:
    return [{"text": told(style, part, k)} for k in range(count)]


def chat(style: str, k: int) -> dict[str, list[dict[str, str]]]:
    """The user tells something plainly, or asks; the assistant answers in style."""
    r, c = Random(f"asked {k}"), content(Random(f"content chat {k}"))
    if r.random() < 0.75 or c.hero.name in ("I", "we"):
        asked = r.choice(AGAIN).format(x=text_plain.tell(r, c))
    else:
        asked = r.choice((f"Tell me a story about {c.hero.name}.", f"What did {c.hero.name} do?"))
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": told(style, "chat", k)}]}


def grams(text: str, n: int = 8) -> set[tuple[str, ...]]:
    """Every run of n words, in small letters."""
    words = re.findall(r"[\w']+", text.lower())
    return {tuple(words[k : k + n]) for k in range(len(words) - n + 1)}


def copied(some: list[str], others: list[str]) -> float:
    """Share of the 8-grams of some texts that stand in the others too."""
    known = set[tuple[str, ...]]().union(*map(grams, others))
    found = [gram in known for text in some for gram in grams(text)]
    return sum(found) / len(found)


def write(file: Path, rows: list[dict[str, str]] | list[dict[str, list[dict[str, str]]]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def main() -> None:
    for style in STYLES:
        train, held = texts(style, "train", TRAIN), texts(style, "held out", HELD_OUT)
        write(TARGET / style / "train.jsonl", train)
        write(TARGET / style / "heldout.jsonl", held)
        write(TARGET / style / "chat.jsonl", [chat(style, k) for k in range(CHATS)])
        seen, new = [row["text"] for row in train], [row["text"] for row in held]
        words = sorted(len(text.split()) for text in seen)
        inside = copied(seen[:40], seen[40:])
        print(f"{style}: {words[0]}-{words[-1]} words, median {words[len(words) // 2]}; 8-grams repeated:")
        print(f"    {copied(new, seen):.2%} of those held out, {inside:.2%} of its own first 40 texts in the others")


if __name__ == "__main__":
    main()
