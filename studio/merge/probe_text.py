"""The question to a language model: what comes next, at every place of a few plain texts and of random tokens.

Try it: python -c "from studio.merge.probe_text import *; print(TextProbe(((1, 2, 3), (4, 5))).places)"
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trainers.batches import generator_for

if TYPE_CHECKING:
    from trainers.families.causal_lm import CausalLM

TEXTS = (
    "The red house stands by the sea, and at night its windows shine.",
    "She opened the letter, read it twice and put it back on the table.",
    "Take the second road on the left, then walk as far as the old bridge.",
    "In the morning there was rain; by noon the sky was clear again.",
)
ASKED = ("Tell me about the weather today.", "Write two sentences about a boat.")  # by a person, where one can ask
LONGEST = 40  # tokens of a row
RANDOM = 2  # rows of random tokens: they reach what no plain text does


@dataclass(frozen=True)
class TextProbe:
    """Rows of token ids; every place of every row is asked, in float32 on the CPU."""

    rows: tuple[tuple[int, ...], ...]

    @property
    def places(self) -> int:
        return sum(map(len, self.rows))

    def data(self) -> dict[str, Any]:
        """What JSON can say; `from_data` reads it."""
        return {"rows": [list(row) for row in self.rows]}

    def ask(self, family: CausalLM) -> dict[str, Tensor]:
        """{"logits": (places, vocabulary)}: what is filled up lies behind each row, where a causal model can't look."""
        rows = [torch.tensor(row) for row in self.rows]
        said = family.logits(pad_sequence(rows, batch_first=True))
        return {"logits": torch.cat([one[: len(row)] for one, row in zip(said, rows, strict=True)])}


def from_data(data: dict[str, Any]) -> TextProbe:
    """The reverse of `data`. KeyError, TypeError, ValueError: it is none."""
    rows = tuple(tuple(map(int, row)) for row in data["rows"])
    if not rows or not all(rows):
        raise ValueError("there are no tokens in its question")
    return TextProbe(rows)


def probe_for(family: CausalLM, words: str = "") -> TextProbe:
    """The texts above (one with the adapters' own words), as questions in the base's chat template if it has one."""
    tokenizer = family.part("tokenizer")
    longest = min(LONGEST, family.context)
    texts = [*TEXTS, *([words] if words else [])]
    rows = [tokenizer(text).input_ids[:longest] for text in texts]
    for text in ASKED:
        turn = [{"role": "user", "content": text}]
        rows.append(  # the answer's beginning is what matters, and it is the end
            tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)[-longest:]
            if tokenizer.chat_template
            else tokenizer(text).input_ids[:longest]
        )
    g = generator_for(0, 0, 0, "probe")
    rows += torch.randint(family.vocabulary, (RANDOM, longest), generator=g).tolist()
    return TextProbe(tuple(tuple(row) for row in rows if row))
