"""What a finished text run did: style, what was forgotten, variety and what was copied, adapter beside base.

`appraise` trains and loads nothing: it takes the language model without LoRA in it and puts the finished adapter into
a rack, at gain 0 and 1 in one batch. The measures are those of `prose`; docs/methods.md, "Text", has their checks.
Try it: `python -m pytest -q tests/test_appraisal.py`
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from trainers import prose
from trainers.errors import StyloraError
from trainers.events import Busy
from trainers.families.base import Encoding
from trainers.families.sampling import Sampling
from trainers.lora.adapter import Adapter
from trainers.lora.gains import Gain
from trainers.lora.rack import Rack
from trainers.prose import Copied

TEXTS = 40  # written by the base and by the adapter: half of them start as training texts do, half anew
BATCH = 20  # prompts at once
OPENING = 3  # words of a text outside the style
LENGTHS = (16, 80)  # tokens: a written text is as long as the style's median, between these
MEASURED = 200  # texts of a kind at the most whose perplexity is taken
SHOWN = 6
DRAW = 500  # pairs of words that distinctness draws, at the most
WHAT = "texts written for the report"

Prompt = list[int]
Cell = dict[str, Gain]
OFF: Cell = {}


class Writer(Protocol):
    """What `appraise` needs of a language model: families.causal_lm.CausalLM has it."""

    context: int  # tokens it reads at once

    def part(self, name: str) -> Any: ...

    def parts(self) -> dict[str, nn.Module]: ...

    def nll(self, encodings: Sequence[Encoding]) -> Tensor: ...

    def write(self, prompts: Sequence[Prompt], seeds: Sequence[int], sampling: Sampling) -> list[list[int]]: ...


class Said(Protocol):
    """A document, as far as it matters here: entries.Document is one."""

    @property
    def kind(self) -> str: ...

    @property
    def learned(self) -> tuple[str, ...]: ...


class Read(Protocol):
    """A document's tokens, or a piece of them: tokens.Piece is one."""

    @property
    def document(self) -> Said: ...

    @property
    def encoding(self) -> Encoding: ...


@dataclass(frozen=True)
class Change:
    """A number without and with the adapter."""

    before: float
    after: float


@dataclass(frozen=True)
class Sample:
    """What base and adapter wrote after the same opening, with the same seed."""

    opening: str
    before: str
    after: str


@dataclass(frozen=True)
class Appraisal:
    """All that report.json tells of a text run's worth; None is what couldn't be measured, and `notes` say why."""

    perplexity: Change | None  # of the texts of the style that were kept apart
    perplexity_outside: Change | None  # of the texts outside the style
    style_gain: float | None
    distinct: dict[str, float | None]  # base, adapter, style: distinct pairs of words in equal draws
    copied: dict[str, Copied]  # base, adapter, and style where texts were kept apart
    alarm: str  # "" or what is wrong
    samples: list[Sample]
    notes: list[str]

    @property
    def forgetting(self) -> float | None:
        """How many times the perplexity outside the style is what it was; 1: nothing is forgotten."""
        change = self.perplexity_outside
        return change.after / change.before if change else None

    def facts(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self) | {"forgetting": self.forgetting}


def appraise(
    family: Writer,
    adapter: Adapter,
    training: Sequence[Read],
    heldout: Sequence[Read],
    plain: Sequence[Read],
    seed: int = 0,
) -> Generator[Busy, None, Appraisal]:
    """Measure an adapter that isn't in the model; `yield from` gives the Appraisal. The model is left as it was.

    `heldout` are texts of the style that weren't trained on, `plain` texts outside it; without `plain` the bare base
    writes some from nothing, at temperature 1. What is supervised is the text. AdapterError: it doesn't fit.
    """
    notes = [] if heldout else ["no texts of the style were kept apart: neither their perplexity nor style_gain"]
    trained = [text for document in _documents(training) for text in document.learned]
    longest = _length(heldout or training)
    with Rack(family.parts()) as rack:
        cells = (OFF, {rack.add(adapter): Gain()})
        outside = [piece.encoding for piece in plain]
        if not outside:
            notes.append("the texts outside the style are what the bare base writes from nothing, at temperature 1")
            nothing, free = [_start(family)] * TEXTS, Sampling(longest, temperature=1.0, top_p=1.0)
            (rows,) = yield from _write(family, rack, [OFF], nothing, seed, free)
            outside = [_encoding(nothing[0], row) for row in rows]
        style, others = [_text_of(family, piece.encoding) for piece in heldout], [_text_of(family, e) for e in outside]
        prompts = _prompts(family, training, heldout, others, longest)
        made = yield from _write(family, rack, cells, prompts, seed, Sampling(longest))
        before, after = ([_text(family, row) for row in rows] for rows in made)
        perplexity = _change(family, rack, cells, [piece.encoding for piece in heldout])
        perplexity_outside = _change(family, rack, cells, outside)
    sets = {"base": before, "adapter": after} | ({"style": style} if style else {})
    copied = {name: prose.copied(texts, trained) for name, texts in sets.items()}
    return Appraisal(
        perplexity=perplexity,
        perplexity_outside=perplexity_outside,
        style_gain=_style_gain(after, before, style, others, notes) if style else None,
        distinct=_distinct(sets),
        copied=copied,
        alarm=prose.alarm(**copied),
        samples=[Sample(_text(family, p), b, a) for p, b, a in zip(prompts[:SHOWN], before, after, strict=False)],
        notes=notes,
    )


# --- texts and prompts ----------------------------------------------------------------------------------------------


def _documents(pieces: Sequence[Read]) -> list[Said]:
    return list({id(piece.document): piece.document for piece in pieces}.values())


def _text(family: Writer, tokens: Sequence[int]) -> str:
    decoded: str = family.part("tokenizer").decode(list(tokens), skip_special_tokens=True)
    return decoded


def _text_of(family: Writer, encoding: Encoding) -> str:
    """What an encoding supervises, in letters."""
    return _text(family, encoding["ids"][encoding["supervised"]].tolist())


def _encoding(prompt: Prompt, row: Sequence[int]) -> Encoding:
    return {"ids": torch.tensor([*prompt, *row]), "supervised": torch.arange(len(prompt) + len(row)) >= len(prompt)}


def _length(pieces: Sequence[Read]) -> int:
    """As many tokens as a text of the style usually has, within LENGTHS."""
    usual = median([int(piece.encoding["supervised"].sum()) for piece in pieces] or [LENGTHS[1]])
    return int(min(max(usual, LENGTHS[0]), LENGTHS[1]))


def _start(family: Writer) -> Prompt:
    """What stands before a text: one token, so that there is something to go on from."""
    tokenizer = family.part("tokenizer")
    marks = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return [next((mark for mark in marks if mark is not None), 0)]


def _questions(pieces: Sequence[Read], most: int) -> list[Prompt]:
    """What comes before each document's first learned token, if it's a chat or completion of `most` tokens; else []."""
    found: dict[int, Prompt] = {}
    for piece in pieces:
        taught = piece.encoding["supervised"].nonzero()
        asked = piece.encoding["ids"][: int(taught[0]) if len(taught) else 0].tolist()
        found.setdefault(id(piece.document), asked if piece.document.kind != "text" and len(asked) <= most else [])
    return list(found.values())


def _prompts(
    family: Writer, training: Sequence[Read], heldout: Sequence[Read], others: Sequence[str], longest: int
) -> list[Prompt]:
    """TEXTS prompts in turn: one as a training text starts (what was learned by heart shows there), one anew.

    A training text starts with its question, or with nothing. Anew: with a question kept apart, or where there is none
    with the first words of a text outside the style.
    """
    tokenizer, start, most = family.part("tokenizer"), _start(family), family.context - longest
    opened = [" ".join(text.split()[:OPENING]) for text in others if len(text.split()) > OPENING]
    openings = [start + tokenizer(text, add_special_tokens=False)["input_ids"] for text in opened] or [start]
    learned = [asked or start for asked in _questions(training, most)] or [start]
    anew = [asked or openings[k % len(openings)] for k, asked in enumerate(_questions(heldout, most))] or openings
    half = TEXTS // 2
    return [found[k * len(found) // half % len(found)] for k in range(half) for found in (learned, anew)]


def _write(
    family: Writer, rack: Rack, cells: Sequence[Cell], prompts: Sequence[Prompt], seed: int, sampling: Sampling
) -> Generator[Busy, None, list[list[list[int]]]]:
    """For each cell of gains its rows of tokens, one a prompt; a prompt has one seed and one batch for all cells."""
    made: list[list[list[int]]] = [[] for _ in cells]
    for first in range(0, len(prompts), BATCH):
        chunk = list(prompts[first : first + BATCH])
        seeds = [seed * TEXTS + first + k for k in range(len(chunk))]
        rack.set([cell for cell in cells for _ in chunk])
        rows = family.write(chunk * len(cells), seeds * len(cells), sampling)
        for k, found in enumerate(made):
            found += rows[k * len(chunk) : (k + 1) * len(chunk)]
        yield Busy(WHAT, first + len(chunk), len(prompts))
    return made


# --- numbers --------------------------------------------------------------------------------------------------------


def _change(family: Writer, rack: Rack, cells: Sequence[Cell], encodings: Sequence[Encoding]) -> Change | None:
    """Perplexity per supervised token of the first MEASURED texts; None where there are none."""
    found = [encoding for encoding in encodings if encoding["supervised"].any()][:MEASURED]
    if not found:
        return None
    numbers = []
    for cell in cells:
        rack.set([cell])
        total, count = family.nll(found).double().sum(0).tolist()
        numbers.append(math.exp(total / count))
    return Change(*numbers)


def _style_gain(
    after: Sequence[str], before: Sequence[str], style: Sequence[str], outside: Sequence[str], notes: list[str]
) -> float | None:
    """None, and a note that says why, where it can't be measured."""
    try:
        gain = prose.style_gain(after, before, style, prose.yardstick(style, outside))
    except StyloraError as error:
        notes.append(f"no style_gain: {error.what} {'; '.join(error.faults)}".rstrip())
        return None
    if math.isnan(gain):
        notes.append("no style_gain: the bare base can't be told from the style")
        return None
    return gain


def _distinct(sets: Mapping[str, Sequence[str]]) -> dict[str, float | None]:
    """Share of different pairs of words in draws of one size for all; None where there are too few words."""
    draw = min(DRAW, *(prose.runs(texts, 2) for texts in sets.values()))
    found = {name: prose.distinctness(texts, 2, draw) for name, texts in sets.items()}
    return {name: None if math.isnan(number) else number for name, number in found.items()}


# --- for people -----------------------------------------------------------------------------------------------------


def figures(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a report says of the style, as rows of a table; what couldn't be measured is left out."""
    rows = []
    for name, key in (("in the style", "perplexity"), ("outside it", "perplexity_outside")):
        if change := report[key]:
            rows.append((f"perplexity {name}, before and after", f"{change['before']:.1f}, {change['after']:.1f}"))
    if report["style_gain"] is not None:
        rows.append(("style_gain (1 arrived, 0 no nearer)", f"{report['style_gain']:.2f}"))
    copied = report["copied"]["adapter"]
    rows.append(("longest run of words copied", str(copied["longest"])))
    rows.append(("8-grams copied", f"{copied['share']:.1%}"))
    return [*rows, ("alarm", report["alarm"] or "none"), ("all of it, with samples", "report.json")]
