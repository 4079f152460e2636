"""Documents as pieces of at most `context` tokens, each token marked as learned or only read; every fault at once.

Whatever is longer is cut in windows that overlap: the tokens seen before are read again, but count only once. Try it:
`python -m pytest -q tests/test_tokens.py`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainers.entries import Document
from trainers.errors import DatasetError
from trainers.families.base import Encoding
from trainers.marking import Marked, Marker, Supervise

NAMED = 3  # documents that a fault or note names, before it only counts


@dataclass(frozen=True)
class Piece:
    """What is read at once. encoding: {"ids": (T,) int64, "supervised": (T,) bool}; the first is never supervised."""

    document: Document
    encoding: Encoding


@dataclass(frozen=True)
class Tokenized:
    """`pieces` of the sound documents, in their order; with any fault they can't be trained on."""

    pieces: tuple[Piece, ...] = ()
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def sound(tokenized: Tokenized) -> Tokenized:
    """The pieces themselves if there are no faults, else a DatasetError that lists them all."""
    if tokenized.faults:
        raise DatasetError(
            "these texts can't be learned by this base", tokenized.faults, "put these right, or drop them"
        )
    return tokenized


def pieces(
    documents: Sequence[Document],
    tokenizer: Any,
    *,
    context: int,
    overlap: int = 64,
    supervise: Supervise = "auto",
    vocabulary: int | None = None,
) -> Tokenized:
    """All documents as pieces. `vocabulary`: tokens that the base knows, where its tokenizer may know more."""
    marker = Marker(tokenizer, supervise)
    found: list[Piece] = []
    faults: dict[str, list[str]] = {}
    remarks: dict[str, list[str]] = {}
    cut: list[int] = []  # pieces of each document that is too long
    idle = 0
    for document in documents:
        try:
            for marked in _marked(document, marker, vocabulary):
                windows = list(_windows(marked, context, overlap, marker.bos))
                kept = [one for one in windows if any(one.supervised)]
                idle += len(windows) - len(kept)
                cut += [len(windows)] if len(windows) > 1 else []
                found += [Piece(document, _encoding(one)) for one in kept]
                for remark in marked.remarks:
                    remarks.setdefault(remark, []).append(document.name)
        except DatasetError as error:
            for fault in error.faults:
                faults.setdefault(fault, []).append(document.name)
    notes = [*_cut_notes(cut, idle, context, overlap), *_by_name(remarks)]
    return Tokenized(tuple(found), tuple(_by_name(faults)), tuple(notes))


def _marked(document: Document, marker: Marker, vocabulary: int | None) -> list[Marked]:
    marked = marker.mark(document)
    beyond = sorted({token for one in marked for token in one.ids if vocabulary and token >= vocabulary})
    if beyond:
        which = ", ".join(f"{token} ({marker.tokenizer.decode([token])})" for token in beyond[:NAMED])
        raise DatasetError("unknown tokens", [f"tokens outside the base's vocabulary of {vocabulary}: {which}"])
    return marked


def _windows(marked: Marked, context: int, overlap: int, bos: int | None) -> list[Marked]:
    """Windows of `context` tokens; begin-of-sequence stands in front of each, if the document has one.

    Each begins with `overlap` tokens of the one before, at least the one from which its first new token is predicted.
    They aren't supervised again, so every supervised token of the document is supervised once.
    """
    ids, supervised = marked.ids, marked.supervised
    if len(ids) <= context:
        return [marked]
    front = ids[:1] if ids[0] == bos else ()
    again = max(overlap, 1 - len(front))
    room = context - len(front)
    if again >= room:
        raise DatasetError(
            "no room", [f"longer than {context} tokens, and windows that overlap by {overlap} hold nothing new"]
        )
    made = [Marked(ids[:context], supervised[:context])]
    stop = context
    while stop < len(ids):
        first, stop = stop - again, min(stop - again + room, len(ids))
        seen = (False,) * (len(front) + again)
        made.append(Marked((*front, *ids[first:stop]), (*seen, *supervised[first + again : stop])))
    return made


def _encoding(marked: Marked) -> Encoding:
    return {"ids": torch.tensor(marked.ids), "supervised": torch.tensor(marked.supervised)}


def _cut_notes(cut: Sequence[int], idle: int, context: int, overlap: int) -> list[str]:
    notes = []
    if cut:
        longer = f"{len(cut)} are longer than the {context} tokens that are read at once"
        notes.append(f"{longer}: cut into {sum(cut)} pieces that overlap by {overlap} tokens")
    if idle:
        notes.append(f"{idle} of these pieces have nothing to learn and are left out")
    return notes


def _by_name(found: Mapping[str, Sequence[str]]) -> list[str]:
    """Each fault once, with the documents that have it."""
    lines = []
    for fault, names in found.items():
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        lines.append(f"{', '.join(names[:NAMED])}{more}: {fault}")
    return lines
