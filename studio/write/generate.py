"""Recipe -> base and adapters in memory -> texts; those of one batch may have other prompts, seeds, styles, sampling.

`stylora generate --base tiny-lm --adapter runs/pirate:0.8 --prompt "On Monday, Anna"`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from jinja2 import TemplateError

from studio import resident
from studio.resident import Reader
from studio.write.recipe import DIGESTS, WritingRecipe
from trainers import bases, devices
from trainers.errors import ConfigError
from trainers.families.causal_lm import CausalLM
from trainers.lora.rack import Rack

MOST_AT_ONCE = 16  # texts written as one batch
OnText = Callable[[int, str], bool | None]  # (which text, what came to it): False stops
Ending = Literal["end", "most", "context", "stopped"]
BEFORE = 8  # tokens of the prompt with which new ones are decoded: some tokenizers write no space at a text's start


@dataclass(frozen=True)
class Desk:
    """A language model with adapters resident in its rack, ready to write; `recipe` now has every digest."""

    family: CausalLM
    rack: Rack
    keys: tuple[str, ...]  # the rack's, in the order of the recipe's adapters
    recipe: WritingRecipe
    notes: tuple[str, ...]  # what a person should know of it


@dataclass(frozen=True)
class Text:
    """What was written (the prompt isn't in it), in so many tokens, with which recipe, and why it ends."""

    text: str
    recipe: WritingRecipe
    tokens: int
    ending: Ending

    @property
    def whole(self) -> str:
        """As a person reads it: after its prompt, but a chat's answer alone."""
        return self.text.strip() if self.recipe.chat else self.recipe.prompt + self.text


# --- the base and its adapters ---------------------------------------------------------------------------------------


def load(recipe: WritingRecipe, device: str = "auto") -> Desk:
    """The base with the recipe's adapters resident in it.

    Raises BaseError or ConfigError; AdapterError with what is wrong with any of the adapters; a digest of the recipe
    that isn't what is there is an error too.
    """
    return set_up(recipe, open_base(bases.find(recipe.base, kind="text"), device))


def open_base(folder: Path, device: str = "auto") -> CausalLM:
    """The base in `folder`; it is loaded when it is first needed. Raises BaseError or ConfigError."""
    machine = devices.machine(device)
    return CausalLM(folder, device=machine.device, dtype=machine.frozen_dtype)


def set_up(recipe: WritingRecipe, family: CausalLM, rack: Rack | None = None, read: Reader = resident.read) -> Desk:
    """`load` with a base that is open already; of the rack's residents, those that the recipe names stay as they are.

    `read` gives an adapter's file as it acts in the rack.
    """
    if recipe.chat:
        check_template(family.part("tokenizer"), recipe.base)
    digests = {part: family.digest(part) for part in DIGESTS}
    resident.check_digests(recipe.base, recipe.digests, digests)
    rack = Rack(family.parts()) if rack is None else rack
    uses, notes = resident.hang(rack, recipe.adapters, recipe.partial, read, recipe.base, digests["model"])
    known = replace(recipe, base=resident.base_of(recipe.base), digests=digests, adapters=uses)
    return Desk(family, rack, tuple(use.digest for use in uses), known, notes)


# --- prompts as tokens -----------------------------------------------------------------------------------------------


def check_template(tokenizer: Any, base: str) -> None:
    """Raises ConfigError where a base has no chat template."""
    if not tokenizer.chat_template:
        step = "write plainly with `stylora generate --plain`, or name a base that was made for chats"
        raise ConfigError(f"base {base}: its tokenizer has no chat template", next_step=step)


def encode(tokenizer: Any, cell: WritingRecipe) -> list[int]:
    """The prompt's tokens: as a chat of one question, or plain, with what the tokenizer puts before a text.

    Raises ConfigError where the chat template takes no such chat.
    """
    if cell.chat:
        said = [{"role": "system", "content": cell.system}] if cell.system else []
        return encode_chat(tokenizer, [*said, {"role": "user", "content": cell.prompt}])
    ids = [int(token) for token in tokenizer(cell.prompt)["input_ids"]]
    while ids and ids[-1] == tokenizer.eos_token_id:  # some tokenizers end every text
        ids.pop()
    start = next((token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None), None)
    return ids or ([] if start is None else [start])


def encode_chat(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """A conversation's tokens, up to where its next answer begins. Raises ConfigError."""
    try:
        made = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=True)
    except TemplateError as error:
        raise ConfigError(f"this base's chat template takes no such chat: {error}") from error
    return [int(token) for token in made["input_ids"]]


# --- writing ---------------------------------------------------------------------------------------------------------


def write(
    desk: Desk, cells: Sequence[WritingRecipe], on_text: OnText | None = None, most: int = MOST_AT_ONCE
) -> list[Text]:
    """A text for each cell, `most` in a batch.

    A cell is a recipe of one text with the desk's base and adapters; all else may differ within a batch, and a text is
    the same whatever is written beside it. Raises ConfigError.
    """
    tokenizer = desk.family.part("tokenizer")
    prompts = [encode(tokenizer, cell) for cell in cells]
    texts: list[Text] = []
    for first in range(0, len(cells), most):
        here = slice(first, first + most)

        def tell(row: int, piece: str, before: int = first) -> bool | None:
            return on_text(before + row, piece) if on_text else None

        texts += batch(desk, prompts[here], cells[here], tell)
        if texts[-1].ending == "stopped":
            break
    return texts


def batch(
    desk: Desk, prompts: Sequence[Sequence[int]], cells: Sequence[WritingRecipe], on_text: OnText | None = None
) -> list[Text]:
    """One batch: prompts as tokens, and the recipe of each."""
    tokenizer, context = desk.family.part("tokenizer"), desk.family.context
    desk.rack.set([{key: use.gain for key, use in zip(desk.keys, cell.adapters, strict=True)} for cell in cells])
    tails = [Tail(tokenizer, prompt) for prompt in prompts]
    stopped = False

    def tell(row: int, token: int) -> bool:
        nonlocal stopped
        piece = tails[row].take(token)
        stopped = bool(piece and on_text and on_text(row, piece) is False)
        return not stopped

    samplings = [cell.sampling for cell in cells]
    rows = desk.family.write(prompts, [cell.seed for cell in cells], samplings, tell)
    texts = []
    for k, (cell, prompt, ids) in enumerate(zip(cells, prompts, rows, strict=True)):
        if (rest := tails[k].rest()) and on_text and not stopped:
            on_text(k, rest)
        ending = "stopped" if stopped else ending_of(len(ids), cell.max_tokens, context - len(prompt))
        texts.append(Text(tails[k].text, cell, len(ids), ending))
    return texts


def ending_of(tokens: int, most: int, room: int) -> Ending:
    """Why a text of so many tokens ends: it is as long as it may be, fills the base's context, or says so itself."""
    if tokens < min(most, room):
        return "end"
    return "most" if most <= room else "context"


def cut_notes(texts: Sequence[Text], context: int) -> list[str]:
    """A note on those that end because the base reads no more."""
    cut = sum(text.ending == "context" for text in texts)
    which = "the text ends" if len(texts) == 1 else f"{cut} of {len(texts)} texts end"
    return [f"{which} where the base's context does: {context} tokens, prompt and text together"] if cut else []


class Tail:
    """Tokens -> text as it comes; a letter of several tokens comes when it is whole."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int]) -> None:
        self.tokenizer, self.text = tokenizer, ""
        self.ids = list(prompt[-BEFORE:])
        self.first, self.read = 0, len(self.ids)  # ids[first:read] has been told; ids[:first] isn't needed any more

    def take(self, token: int) -> str:
        """What a further token adds; "" as long as it ends within a letter."""
        self.ids.append(token)
        return "" if self._now().endswith("\N{REPLACEMENT CHARACTER}") else self.rest()

    def rest(self) -> str:
        """What hasn't been told, half letters too."""
        piece = self._now()[len(self._decoded(self.ids[self.first : self.read])) :]
        if piece:
            self.first, self.read = self.read, len(self.ids)
        self.text += piece
        return piece

    def _now(self) -> str:
        return self._decoded(self.ids[self.first :])

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
