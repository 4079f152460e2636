"""How a language model is asked: the beginnings of plain texts and its own way on; it answers with all tokens' logits.

Logits that differ by one number for all tokens are the same distribution, so answers are centred: their mean is 0.

Try it: `stylora strength runs/pirate --base tiny-lm`
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.bases import Kind
from trainers.errors import ConfigError
from trainers.families.causal_lm import CausalLM
from trainers.families.sampling import Sampling
from trainers.lora.rack import Gains, Rack

PROMPTS = (
    "Yesterday, I went to the", "The weather is", "Dear Tom,\nHow are you?", "At noon, we went to", "To make a cake,",
    "My sister found a", "It rained all", "On Monday, the old farmer",
)  # fmt: skip
OWN = 16  # tokens that the bare base adds to a prompt before it is asked
LINE = 24  # tokens of what is shown
MOST_NUMBERS = 2**22  # float64 numbers of one piece of answers, 32 MB
MOST_AT_ONCE = 8  # texts written as one batch
REFERENCE = 0.7  # the effect at which weights feel equal, see docs/methods.md


class Texts:
    """A measure.Base of text."""

    kind: Kind = "text"
    prompts: tuple[str, ...] = PROMPTS
    reference = REFERENCE

    def __init__(self, family: CausalLM) -> None:
        self.family, self.rack = family, Rack(family.parts())

    def digest(self) -> str:
        return self.family.digest("model")

    def probes(self, prompts: Sequence[str]) -> Contexts:
        """Each prompt with the OWN likeliest tokens after it. ConfigError: all that are too long for the base."""
        ids = [self._tokens(prompt) for prompt in prompts]
        most = self.family.context - OWN
        if long := [f"{p[:40]!r}…: {len(t)} tokens" for p, t in zip(prompts, ids, strict=True) if len(t) > most]:
            step = f"shorten them: this base reads {self.family.context} tokens at once, {OWN} of them its own"
            raise ConfigError("prompts are too long for the base", long, step)
        self.rack.set([{}])
        own = self._written(ids, OWN)
        return Contexts(self, tuple(torch.tensor(a + b) for a, b in zip(ids, own, strict=True)))

    def show(self, cells: Sequence[Gains], prompt: str) -> list[str]:
        """The prompt and the LINE likeliest tokens after it in each cell, in batches of MOST_AT_ONCE."""
        ids, written = self._tokens(prompt), list[list[int]]()
        for first in range(0, len(cells), MOST_AT_ONCE):
            self.rack.set(part := cells[first : first + MOST_AT_ONCE])
            written += self._written([ids] * len(part), LINE)
        return [self._text(ids + tokens) for tokens in written]

    def _tokens(self, text: str) -> list[int]:
        """As the base's tokenizer begins a text; an end that it adds is left out, as the text goes on."""
        tokenizer = self.family.part("tokenizer")
        ids: list[int] = tokenizer(text)["input_ids"]
        return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids

    def _text(self, tokens: Sequence[int]) -> str:
        text: str = self.family.part("tokenizer").decode(tokens, skip_special_tokens=True)
        return " ".join(text.split())

    def _written(self, prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        return self.family.write(prompts, [0] * len(prompts), Sampling(max_tokens=most, temperature=0))


@dataclass(frozen=True)
class Contexts:
    """Texts as tokens, asked at every position: measure.Probes of text."""

    base: Texts
    ids: tuple[Tensor, ...]  # (T,) each, of any lengths
    places: tuple[int, ...] = ()
    logits = True

    def answers(self, cells: Sequence[Gains]) -> Iterator[Tensor]:
        """(positions, cells, vocabulary): centred logits, one text at a time, so that nothing is padded."""
        self.base.rack.set(cells)
        for ids in self.ids:
            said = self.base.family.logits(ids.expand(len(cells), -1)).cpu()  # (cells, T, V)
            for piece in said.split(max(1, MOST_NUMBERS // (len(cells) * said.shape[2])), 1):
                each = piece.double().transpose(0, 1)
                yield each - each.mean(2, keepdim=True)
