"""One recipe varied along two axes -> a table of texts, written in one batch; as markdown, CSV or for a screen.

`stylora grid --base tiny-lm --adapter runs/pirate --x adapter:A=0,0.5,1 --y seed=1..3 --prompt "On Monday, Anna"`
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from studio.draw import axes
from studio.draw.axes import AXES_OF_TEXT, Axes, Plan
from studio.write.generate import Desk, OnText, Text, write
from studio.write.recipe import REFUSED, WritingRecipe
from trainers.lora.blocks import number_text

NARROWEST = 24  # letters of a column in which texts still read well
Rows = list[list[str]]


def plan(recipe: WritingRecipe) -> Plan:
    """Raises ConfigError with everything that is wrong with the axes or with any cell."""
    return axes.plan(recipe, replace(recipe, count=1, grid=None), REFUSED, AXES_OF_TEXT)


def draw(desk: Desk, on_text: OnText | None = None) -> list[Text]:
    """The texts of all cells of the desk's recipe, row by row."""
    asked = desk.recipe.grid or Axes()
    return write(desk, plan(desk.recipe).cells, on_text, asked.batch)


def crossed(planned: Plan, texts: Sequence[Text]) -> tuple[list[str], Rows]:
    """Heads and rows of the table whose columns are x and whose rows are y."""
    wide = len(planned.x.labels)
    heads = [f"{planned.x.title} {label}" for label in planned.x.labels]
    rows = [[shown(text) for text in texts[k : k + wide]] for k in range(0, len(texts), wide)]
    if not planned.y.title:
        return heads, rows
    return [planned.y.title, *heads], [[label, *row] for label, row in zip(planned.y.labels, rows, strict=True)]


def listed(planned: Plan, texts: Sequence[Text]) -> tuple[list[str], Rows]:
    """The same with a row for each text: where many columns would be too narrow to read."""
    places = [(down, across) for down in planned.y.labels for across in planned.x.labels]
    first = 0 if planned.y.title else 1
    heads = [planned.y.title, planned.x.title][first:]
    return [*heads, "text"], [[*place[first:], shown(text)] for place, text in zip(places, texts, strict=True)]


def shown(text: Text) -> str:
    """What a cell says: dots where it was cut, spaces for what no screen shows."""
    plain = "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text.text)
    return plain.strip() + ("" if text.ending == "end" else " …")


def laid_out(planned: Plan, texts: Sequence[Text], width: int) -> tuple[list[str], Rows]:
    """The table that reads well on a screen of `width` letters."""
    heads, rows = crossed(planned, texts)
    labels = [len(label) for label in (planned.y.title, *planned.y.labels)] if planned.y.title else [0]
    each = (width - max(labels)) // len(planned.x.labels)
    return (heads, rows) if each >= NARROWEST else listed(planned, texts)


def markdown(planned: Plan, texts: Sequence[Text]) -> str:
    """Headline, details, and the table as GitHub's markdown writes it."""
    heads, rows = crossed(planned, texts)
    lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in (heads, ["---"] * len(heads), *rows)]
    return "\n\n".join(part for part in (headline(planned), details(planned), "\n".join(lines)) if part) + "\n"


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", "<br>")


def csv_text(planned: Plan, texts: Sequence[Text]) -> str:
    """A line for each text, with its place: `listed` as CSV."""
    heads, rows = listed(planned, texts)
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([heads, *rows])
    return stream.getvalue()


def headline(planned: Plan) -> str:
    """The prompt, unless it varies."""
    return "" if "prompt" in planned.varied else str(planned.recipe.prompt)


def details(planned: Plan) -> str:
    """All else that is the same in every cell: base, adapters, seed, sampling."""
    recipe: WritingRecipe = planned.recipe
    facts = {"base": Path(recipe.base).name}
    for use in recipe.adapters:
        facts[f"weight of {use.title}"] = f"{use.title} {number_text(use.gain.weight)}"
    facts["seed"] = f"seed {recipe.seed}"
    facts["temperature"] = f"temperature {number_text(recipe.temperature)}"
    facts["top_p"] = f"top-p {number_text(recipe.top_p)}"
    facts["top_k"] = f"top-k {recipe.top_k}" if recipe.top_k else ""
    penalty = recipe.repetition_penalty
    facts["repetition_penalty"] = f"repetition penalty {number_text(penalty)}" if penalty != 1 else ""
    facts["max_tokens"] = f"{recipe.max_tokens} tokens at the most"
    facts["system"] = f"told first: {recipe.system}" if recipe.system else ""
    return " · ".join(text for key, text in facts.items() if text and key not in planned.varied)
