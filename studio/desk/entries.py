"""An adapter as the library shows it, made of what the index knows; how it fits a base.

Try it: python -c "from studio.desk.entries import *; print(Entry.__annotations__)"
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from studio.desk import shelf
from studio.desk.rows import AdapterRow, Fit, Json, Notes
from studio.desk.store import Store
from trainers.errors import AdapterError, StyloraError


@dataclass(frozen=True)
class Entry:
    """An adapter of the library. Where `error` (what, faults, next_step) is there, the file is broken: no facts."""

    id: str
    path: Path
    name: str  # as its file is called
    size: int  # bytes
    added: float  # seconds since 1970
    tags: tuple[str, ...] = ()  # a person's
    copies: tuple[str, ...] = ()  # other files of the same numbers
    error: Json | None = None
    family: str = ""  # a key of trainers.lora.family.FAMILIES; "" unknown
    kind: str = ""  # "pictures" or "text"; "" for a broken file
    base_name: str = ""
    trigger: str = ""
    title: str = ""
    rank: int = 0
    facts: Json | None = None  # all of studio.look.card.Card, long header entries cut

    @property
    def header_tags(self) -> dict[str, int]:
        """The most frequent tags of its training captions."""
        return dict((self.facts or {}).get("tags", {}))

    def says(self, word: str) -> bool:
        """Whether a word, in small letters, stands in its name, title, trigger, tags or base."""
        words = (self.name, self.title, self.trigger, self.family, self.base_name, *self.tags, *self.header_tags)
        return any(word in text.casefold() for text in words)


def entry_of(home: Path, rows: Sequence[AdapterRow], notes: Notes) -> Entry:
    """The entry of one or more files with the same id; the first is the one that is meant, the others are copies."""
    first, *others = rows
    path, facts = home / first.path, first.facts or {}
    known = {key: facts[key] for key in ("family", "kind", "trigger", "title", "rank") if key in facts}
    return Entry(
        id=first.id,
        path=path,
        name=shelf.stem_of(path),
        size=facts.get("size") or shelf.size(path),
        added=notes.added,
        tags=notes.tags,
        copies=tuple(Path(row.path).name for row in others),
        error=first.error,
        base_name=facts.get("base", ""),
        facts=first.facts,
        **known,
    )


def the(id: str, entries: Iterable[Entry], where: str) -> Entry:
    """The first entry of this id. Raises AdapterError: there is none."""
    for entry in entries:
        if entry.id == id:
            return entry
    raise AdapterError(f"this adapter isn't {where}", next_step="reload the page")


def fit_of(entry: Entry, base: str, store: Store) -> Fit:
    """How it fits a base; looked at once and remembered in the store as long as both stay the same."""
    try:
        mark = shelf.base_stamp(base)
        key = f"{base} {mark}"
        if kept := store.fit(entry.id, key):
            return Fit(**kept | {"faults": tuple(kept["faults"])})
        if entry.error:
            return Fit(False, 0.0, entry.error["what"], tuple(entry.error["faults"]))
        from studio.desk.cards import fit

        found = fit(entry.path, base, mark)
    except StyloraError as error:  # not remembered: the base may come
        return Fit(False, 0.0, error.what, error.faults)
    store.put_fit(entry.id, key, asdict(found))
    return found
