"""A document as token ids, and which of them count in the loss: what is learned, and the token that ends it.

A text counts whole; of a completion what comes after the prompt; of a chat what the assistant says. The end-of-sequence
(or end-of-turn) token always counts: a base that never learns it never stops. Try it:
`python -m pytest -q tests/test_marking.py`
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from jinja2 import TemplateError

from trainers.entries import Document, Message
from trainers.errors import DatasetError

Supervise = Literal["auto", "all"]
Span = tuple[int, int]

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")  # how a chat template marks what the assistant says
REACHES_BACK = (
    "the first token of the completion holds the end of the prompt; end the prompt without a space and begin the "
    "completion with one"
)
ASKED_OTHERWISE = "the tokens before the assistant's turn aren't those that the base is asked with later"
BY_TURN = "the chat template writes a turn differently when others follow; each assistant turn is a piece of its own"
ENDS_INSIDE = "the end-of-sequence token stands inside the text; what follows it is learned as if it were a new text"


@dataclass(frozen=True)
class Marked:
    """Token ids, which of them are supervised, and what a person should know about it."""

    ids: tuple[int, ...]
    supervised: tuple[bool, ...]
    remarks: tuple[str, ...] = ()


class Marker:
    """Marks documents with one tokenizer (of transformers); with "all" every token but the first counts."""

    def __init__(self, tokenizer: Any, supervise: Supervise = "auto") -> None:
        self.tokenizer, self.everything = tokenizer, supervise == "all"
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.closing = added | set(tokenizer.all_special_ids)  # the tokens that can end a turn
        template = tokenizer.get_chat_template() if tokenizer.chat_template else ""
        self.has_template, self.marks_turns = bool(template), bool(GENERATION.search(template))

    def mark(self, document: Document) -> list[Marked]:
        """The document's tokens: one list, or one an assistant turn. A DatasetError lists what is wrong with them."""
        if document.kind != "text" and not self.tokenizer.is_fast:
            raise _fault("the base's tokenizer can't say which letters a token stands for: it can only be taught texts")
        if document.kind == "chat":
            return self._chat(document)
        if self.eos is None:
            raise _fault("the base's tokenizer has no end-of-sequence token: nothing would teach it to stop")
        return [self._text(document) if document.kind == "text" else self._completion(document)]

    def _text(self, document: Document) -> Marked:
        ids = list(self.tokenizer(document.text, verbose=False).input_ids)
        return self._closed(ids, [True] * len(ids))

    def _completion(self, document: Document) -> Marked:
        whole = document.prompt + document.text
        ids, supervised = self._spoken(whole, [(len(document.prompt), len(whole))], special=True)
        asked = self.tokenizer(document.prompt, verbose=False).input_ids
        asked = asked[:-1] if asked[-1:] == [self.eos] else asked  # a tokenizer may write it itself
        return self._closed(ids, supervised, () if asked == ids[: len(asked)] else (REACHES_BACK,))

    def _closed(self, ids: list[int], supervised: list[bool], remarks: tuple[str, ...] = ()) -> Marked:
        """Ended by exactly one supervised end-of-sequence, begun by at most one begin-of-sequence."""
        if ids[-1:] != [self.eos]:
            ids, supervised = [*ids, self.eos], [*supervised, True]
        supervised[-1] = True
        begins = [place for place, token in enumerate(ids) if token == self.bos and self.bos != self.eos]
        if begins not in ([], [0]) or ids[:2] == [self.bos, self.bos]:
            raise _fault(f"doubled begin-of-sequence: the text has {self.tokenizer.bos_token} in it; take it out")
        if self.eos in ids[1:-1]:
            remarks = (*remarks, ENDS_INSIDE)
        return self._marked(ids, supervised, remarks)

    def _marked(self, ids: Sequence[int], supervised: Sequence[bool], remarks: tuple[str, ...] = ()) -> Marked:
        """The first token is never predicted."""
        learned = (False, *([True] * (len(ids) - 1) if self.everything else supervised[1:]))
        if not any(learned):
            raise _fault("no supervised tokens: nothing to learn from")
        return Marked(tuple(ids), learned, remarks)

    def _chat(self, document: Document) -> list[Marked]:
        if not self.has_template:
            raise _fault(
                "a chat, but the base's tokenizer has no chat template; take a base that has one, "
                'or write "prompt" and "completion"'
            )
        messages = document.messages
        turns = [place for place, one in enumerate(messages) if one["role"] == "assistant" and place >= document.given]
        try:
            if self.everything:
                return [self._turns(messages, turns, self._asked(messages), [])]
            if self.marks_turns and (made := self._as_the_template_says(messages, turns)):
                return [made]
            if all(self._steady(messages, turn) for turn in turns):
                return [self._by_prefixes(messages, turns)]
            alone = [self._by_prefixes(messages[: turn + 1], [turn], (BY_TURN,)) for turn in turns]
        except TemplateError as error:
            raise _fault(f"the base's chat template refuses it: {error}") from error
        return alone

    def _as_the_template_says(self, messages: Sequence[Message], turns: Sequence[int]) -> Marked | None:
        """By the template's {% generation %} marks; None where these don't mark every assistant turn."""
        encoded = self.tokenizer.apply_chat_template(
            list(messages), return_dict=True, return_assistant_tokens_mask=True, tokenizer_kwargs={"verbose": False}
        )
        runs = runs_of([bool(mark) for mark in encoded["assistant_masks"]])
        speakers = [place for place, one in enumerate(messages) if one["role"] == "assistant"]
        if len(runs) != len(speakers):
            return None
        spoken = [run for run, place in zip(runs, speakers, strict=True) if place in turns]
        return self._turns(messages, turns, list(encoded["input_ids"]), spoken)

    def _by_prefixes(self, messages: Sequence[Message], turns: Sequence[int], remarks: tuple[str, ...] = ()) -> Marked:
        """What the template writes between its generation prompt for a turn and the turn's end."""
        spans = []
        for turn in turns:
            asked, said = self._rendered(messages[:turn], ask=True), self._rendered(messages[: turn + 1])
            if not said.startswith(asked):
                raise _fault("the base's chat template doesn't begin the assistant's turn with its generation prompt")
            spans.append((len(asked), len(said)))
        ids, supervised = self._spoken(self._rendered(messages), spans, special=False)
        return self._turns(messages, turns, ids, runs_of(supervised), remarks)

    def _steady(self, messages: Sequence[Message], turn: int) -> bool:
        """True if what is written up to a turn's end stays as it is when others follow."""
        whole = self._rendered(messages)
        parts = (self._rendered(messages[:turn], ask=True), self._rendered(messages[: turn + 1]))
        return all(whole.startswith(part) for part in parts)

    def _rendered(self, messages: Sequence[Message], ask: bool = False) -> str:
        return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask))

    def _asked(self, messages: Sequence[Message], ask: bool = False) -> list[int]:
        plain = {"return_dict": True, "tokenizer_kwargs": {"verbose": False}}
        return list(self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=ask, **plain)["input_ids"])

    def _turns(
        self,
        messages: Sequence[Message],
        turns: Sequence[int],
        ids: list[int],
        spoken: Sequence[Span],
        remarks: tuple[str, ...] = (),
    ) -> Marked:
        """Supervises the turns up to the token that ends each; `spoken` are their places among the ids."""
        if any(one == other == self.bos for one, other in pairwise(ids)):
            raise _fault(f"doubled begin-of-sequence: the base's chat template writes {self.tokenizer.bos_token} twice")
        supervised = [False] * len(ids)
        for first, stop in spoken:
            end = self._end(ids, first, stop)
            supervised[first:end] = [True] * (end - first)
        if spoken and self._asked(messages[: turns[-1]], ask=True) != ids[: spoken[-1][0]]:
            remarks = (*remarks, ASKED_OTHERWISE)
        return self._marked(ids, supervised, remarks)

    def _end(self, ids: Sequence[int], first: int, stop: int) -> int:
        """Where a turn ends: after its end-of-turn token, without the white space that a template writes behind it."""
        end = stop
        while end > first and ids[end - 1] not in self.closing and not self.tokenizer.decode([ids[end - 1]]).strip():
            end -= 1
        if end > first and ids[end - 1] in self.closing:
            return end
        raise _fault("unsupervised end-of-turn: what the chat template gives the assistant ends without a token for it")

    def _spoken(self, text: str, spans: Sequence[Span], *, special: bool) -> tuple[list[int], list[bool]]:
        """Token ids of a text, True where a token ends in one of the spans of letters.

        A token that reaches over the beginning of a span belongs to it: what follows can only be predicted so. Special
        tokens that the tokenizer adds have the letters (0, 0).
        """
        encoded = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
        ends = [end for _, end in encoded["offset_mapping"]]
        return list(encoded["input_ids"]), [any(first < end <= stop for first, stop in spans) for end in ends]


def runs_of(flags: Sequence[bool]) -> list[Span]:
    """(first, stop) of each run of True."""
    edges = [place for place, flag in enumerate(flags) if flag != (place > 0 and flags[place - 1])]
    edges += [len(flags)] if flags and flags[-1] else []
    return list(zip(edges[::2], edges[1::2], strict=True))


def _fault(fault: str) -> DatasetError:
    return DatasetError("the document can't be learned", [fault])
