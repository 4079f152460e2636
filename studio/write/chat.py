"""A conversation with a base and its adapters: turns, their weights while it goes on, what no longer fits forgotten.

`stylora chat --base tiny-lm --adapter runs/pirate:0.8`; in Python:
`Conversation(load(WritingRecipe("", chat=True))).ask("How do I get to the mill?").text`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from studio.draw.axes import adapter_of
from studio.write.generate import Desk, Ending, batch, check_template, encode_chat
from studio.write.recipe import WritingRecipe
from trainers.errors import ConfigError

REFUSED = "this can't be"


@dataclass(frozen=True)
class Turn:
    """What one of the two said."""

    role: Literal["user", "assistant"]
    content: str


@dataclass(frozen=True)
class Reply:
    """An answer, why it ends, its seed, and how many more of the oldest turns the base no longer read for it."""

    text: str
    ending: Ending
    seed: int
    forgotten: int


class Conversation:
    """Questions and answers in turn. Answer k of it is drawn with the recipe's seed + k.

    `recipe` holds weights, sampling and what the base is told first, and may be exchanged between turns by `change`.
    """

    def __init__(self, desk: Desk) -> None:
        """Raises ConfigError where the base has no chat template."""
        check_template(desk.family.part("tokenizer"), desk.recipe.base)
        self.desk, self.recipe = desk, replace(desk.recipe, chat=True, prompt="")
        self.turns: list[Turn] = []
        self.forgotten = 0  # so many turns at the beginning are no longer read
        self._drawn = 0

    def ask(self, text: str, on_text: Callable[[str], bool | None] | None = None) -> Reply:
        """The answer to `text`, told piece by piece as it comes; False from `on_text` ends it where it is.

        Raises ConfigError, and nothing has been said, where not even the question alone fits the base's context.
        """
        turns = [*self.turns, Turn("user", text)]
        ids, forgotten = self.fitted(turns)
        seed = self.recipe.seed + self._drawn
        tell = (lambda _, piece: on_text(piece)) if on_text else None
        (made,) = batch(self.desk, [ids], [replace(self.recipe, prompt=text, seed=seed)], tell)
        reply = Reply(made.text.strip(), made.ending, seed, forgotten - self.forgotten)
        self.turns, self.forgotten = [*turns, Turn("assistant", reply.text)], forgotten
        self._drawn += 1
        return reply

    def again(self, on_text: Callable[[str], bool | None] | None = None) -> Reply:
        """Another answer in the place of the last one. Raises ConfigError where there is none."""
        if not self.turns:
            raise ConfigError("nothing was asked yet", next_step="ask something")
        before, self.turns = self.turns, self.turns[:-2]
        try:
            return self.ask(before[-2].content, on_text)
        finally:
            if len(self.turns) < len(before):  # it was stopped
                self.turns = before

    def reset(self) -> None:
        """Begin anew: nothing has been said; weights, sampling and seed stay."""
        self.turns, self.forgotten, self._drawn = [], 0, 0

    def weigh(self, name: str, weight: float) -> None:
        """Another weight for an adapter, told by its name or its letter. Raises ConfigError."""
        place, _ = adapter_of(self.recipe, name)
        uses = list(self.recipe.adapters)
        uses[place] = replace(uses[place], gain=replace(uses[place].gain, weight=weight))
        self.change(replace(self.recipe, adapters=tuple(uses)))

    def change(self, recipe: WritingRecipe) -> None:
        """Other weights, sampling, system text or seed from now on. Raises ConfigError with all that is wrong."""
        if faults := recipe.faults():
            raise ConfigError(REFUSED, faults, "name other numbers")
        self.recipe = recipe

    def redraw(self) -> None:
        """The next answer is drawn with the recipe's own seed."""
        self._drawn = 0

    def fitted(self, turns: list[Turn]) -> tuple[list[int], int]:
        """The tokens of what still fits with room for an answer (half the context, if that is asked), and how many
        turns don't: the oldest go, each question with its answer."""
        context, forgotten = self.desk.family.context, self.forgotten
        room = min(self.recipe.max_tokens, context // 2)
        while True:
            ids = self._encoded(turns[forgotten:])
            if len(ids) + room <= context or forgotten + 1 >= len(turns):
                return ids, forgotten
            forgotten += 2

    def _encoded(self, turns: list[Turn]) -> list[int]:
        said = [{"role": "system", "content": self.recipe.system}] if self.recipe.system else []
        said += [{"role": turn.role, "content": turn.content} for turn in turns]
        return encode_chat(self.desk.family.part("tokenizer"), said)
