"""The job that writes: texts piece by piece, the bare base beside them in the same batch; also the next turn of a chat.

Try it: python -c "from studio.desk.texting import *; help(write)"
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from studio.desk.rows import Json
from studio.desk.work import Cancelled, Work
from trainers.errors import ConfigError

if TYPE_CHECKING:
    from studio.desk.jobs import Write
    from studio.write.generate import Desk, Text
    from studio.write.recipe import WritingRecipe


def write(work: Work, job: Write) -> Json:
    """What is written before a cancel stays."""
    from studio.write import generate

    cells = _cells(job)  # what is wrong with them is told before anything is loaded
    work.say("loading the base and its adapters")
    desk = work.residents.desk(job.recipe)
    work.say("")
    work.change(total=len(cells) * job.recipe.max_tokens, texts=("",) * len(cells))
    whose = ["base", "adapters"] if job.compare else ["adapters"]
    result: Json = {"whose": [whose[k % len(whose)] for k in range(1, len(cells) + 1)], "notes": list(desk.notes)}
    result["seeds"], result["forgotten"] = [cell.seed for cell in cells], 0
    try:
        if job.said:
            made, result["forgotten"] = _answers(work, desk, job, cells)
        else:
            made = generate.write(desk, cells, work.write)
    except Cancelled:
        work.change(result=result | {"texts": list(work.snapshot().texts), "endings": ["stopped"] * len(cells)})
        raise
    notes = [*desk.notes, *generate.cut_notes(made, desk.family.context)]
    texts, endings = [text.text for text in made], [text.ending for text in made]
    return result | {"texts": texts, "endings": endings, "notes": notes}


def _cells(job: Write) -> list[WritingRecipe]:
    """Those of the recipe (of its grid, if it has one), with `compare` each followed by the bare base's."""
    from studio.write import grid

    cells = list(grid.plan(job.recipe).cells) if job.recipe.grid else job.recipe.texts()
    if job.said and (job.recipe.grid or not job.recipe.chat or len(job.said) % 2):
        raise ConfigError("no chat goes on from here", next_step="ask plainly, or begin the chat anew")
    return [one for cell in cells for one in ((cell, bare(cell)) if job.compare else (cell,))]


def bare(recipe: WritingRecipe) -> WritingRecipe:
    """The same without any adapter acting; all are in the batch, where a gain of 0 adds nothing."""
    from trainers.lora.gains import Gain

    return replace(recipe, adapters=tuple(replace(use, gain=Gain(0.0)) for use in recipe.adapters))


def _answers(work: Work, desk: Desk, job: Write, cells: list[WritingRecipe]) -> tuple[list[Text], int]:
    """Answers to the prompt after what was said, and how many of the oldest turns no longer fit."""
    from studio.write.chat import Conversation, Turn
    from studio.write.generate import batch

    turns = [Turn("assistant" if k % 2 else "user", text) for k, text in enumerate((*job.said, job.recipe.prompt))]
    ids, forgotten = Conversation(desk).fitted(turns)
    return batch(desk, [ids] * len(cells), cells, work.write), forgotten
