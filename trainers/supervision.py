"""The receipt of what will be learned: how many tokens count in the loss, and a few pieces with these set apart.

Try it: `python -m pytest -q tests/test_supervision.py`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trainers.entries import Kind
from trainers.tokens import Piece

LONGEST = 240  # letters of a run that are shown; the middle of a longer one is left out
Run = tuple[str, bool]  # (text, supervised)


@dataclass(frozen=True)
class Shown:
    """One piece as it is learned: runs of text, in order, that join to the whole."""

    name: str
    kind: Kind
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Supervision:
    """Counts of documents, pieces, tokens and supervised tokens, and the first pieces of each kind."""

    documents: int
    pieces: int
    tokens: int
    supervised: int
    samples: tuple[Shown, ...]

    def as_lines(self, draw: Callable[[str, bool], str] | None = None) -> Iterator[str]:
        """A line of counts, then each sample under its name; `draw` colours runs, else the learned stand in ⟦ ⟧."""
        share = self.supervised / self.tokens if self.tokens else 0.0
        yield (
            f"{self.documents} documents in {self.pieces} pieces: {self.tokens:,} tokens, "
            f"{self.supervised:,} of them learned ({share:.0%})"
        )
        for sample in self.samples:
            yield f"{sample.name} ({sample.kind}):"
            yield "".join((draw or _bracketed)(_visible(text), supervised) for text, supervised in sample.runs)


def receipt(pieces: Sequence[Piece], tokenizer: Any, samples: int = 3) -> Supervision:
    """Counts the pieces' tokens and shows the first `samples` of them, of each kind at least one."""
    return Supervision(
        documents=len({piece.document.name for piece in pieces}),
        pieces=len(pieces),
        tokens=sum(len(piece.encoding["ids"]) for piece in pieces),
        supervised=sum(int(piece.encoding["supervised"].sum()) for piece in pieces),
        samples=tuple(_shown(pieces[place], tokenizer) for place in _chosen(pieces, samples)),
    )


def _chosen(pieces: Sequence[Piece], count: int) -> list[int]:
    """The first piece of each kind, then the first others."""
    firsts = {piece.document.kind: place for place, piece in reversed(list(enumerate(pieces)))}
    others = [place for place in range(len(pieces)) if place not in firsts.values()]
    return sorted([*firsts.values(), *others[: max(0, count - len(firsts))]])


def _shown(piece: Piece, tokenizer: Any) -> Shown:
    """Runs are cut out of the whole text: a letter may be spread over tokens, and spaces may show only between them."""
    ids, supervised = piece.encoding["ids"].tolist(), piece.encoding["supervised"].tolist()
    edges = [place for place in range(1, len(ids)) if supervised[place] != supervised[place - 1]]
    stops = [_letters(tokenizer, ids[:edge]) for edge in edges]
    whole = tokenizer.decode(ids, skip_special_tokens=False)
    bounds = [0, *stops, len(whole)]
    runs = [
        (whole[first:stop], bool(supervised[place]))
        for first, stop, place in zip(bounds, bounds[1:], [0, *edges], strict=False)
    ]
    return Shown(piece.document.name, piece.document.kind, tuple(runs))


def _letters(tokenizer: Any, ids: Sequence[int]) -> int:
    """Letters that these tokens stand for, without one that is only begun."""
    return len(tokenizer.decode(ids, skip_special_tokens=False).rstrip("\ufffd"))


def _bracketed(text: str, supervised: bool) -> str:
    return f"⟦{text}⟧" if supervised else text


def _visible(text: str) -> str:
    """Line ends shown, as they are tokens, too; the middle of a long text left out."""
    half = LONGEST // 2
    short = text if len(text) <= LONGEST else f"{text[:half]} […] {text[-half:]}"
    return short.replace("\n", "↵\n")
