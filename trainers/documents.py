"""A folder of texts as documents, and all that is wrong with it, file by file and line by line, before any model.

`.txt` and `.md` hold one document each, `.jsonl` one a line, `.json` a list of them. Try it:
`python -c "from trainers.documents import read; print(*read('sample_data/text/pirate').notes, sep='\\n')"`
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from trainers import dataset, entries
from trainers.entries import Document, Kind
from trainers.errors import ConfigError, DatasetError

__all__ = ["Document", "Reading", "holds_texts", "kinds_said", "read", "sound"]

PLAIN = (".txt", ".md")
LINES, LIST = ".jsonl", ".json"
SUFFIXES = (*PLAIN, LINES, LIST)
HELD_OUT = ("heldout", "held_out", "held-out", "validation", "valid", "val", "test", "eval")
NOT_TEXTS = ("readme", "license", "licence", "copying", "changelog")  # what lies beside texts and isn't one
FEWEST = 10  # documents, of which a share can be held out
NAMED = 5  # cases that a note names, before it only counts


@dataclass(frozen=True)
class Reading:
    """`documents` are the sound ones; with any fault they can't be trained on; notes say what was read and held out."""

    documents: tuple[Document, ...] = ()
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def training(self) -> tuple[Document, ...]:
        return tuple(one for one in self.documents if not one.heldout)

    @property
    def heldout(self) -> tuple[Document, ...]:
        return tuple(one for one in self.documents if one.heldout)


@dataclass(frozen=True)
class _File:
    """What one file turned out to hold."""

    documents: tuple[Document, ...] = ()
    faults: tuple[str, ...] = ()
    unread: Counter[str] = field(default_factory=Counter)


def sound(reading: Reading, path: Path) -> Reading:
    """The reading itself if it has no faults, else a DatasetError that lists them all."""
    if reading.faults:
        raise DatasetError(f"{path} can't be trained on", reading.faults, "put these right and start again")
    return reading


def holds_texts(path: Path) -> bool:
    """True for a file of texts, and for a folder in which some lie but no pictures, of which they would be captions."""
    if not path.is_dir():
        return path.suffix.lower() in SUFFIXES
    suffixes = {file.suffix.lower() for file in _walk(path, set())}
    return bool(suffixes.intersection(SUFFIXES)) and not suffixes.intersection(dataset.PICTURES)


def holds_pictures(folder: Path) -> bool:
    """True where pictures lie in it, or in a folder in it."""
    return any(file.suffix.lower() in dataset.PICTURES for file in _walk(folder, set()))


def read(path: Path | str, *, heldout: float = 0.1, repeats: int = 1) -> Reading:
    """Reads a file, or a folder with all folders in it; hidden ones are passed over.

    Files (or folders in it) called `heldout`, `validation`, `test` or the like are held out. Where there are none, the
    share `heldout` of the documents is, chosen by what they say, so that a new document moves no other.
    """
    if not 0 <= heldout < 1:
        raise ConfigError("Texts can't be held out", [f"the share to hold out is {heldout:g}; wanted 0 up to below 1"])
    root = Path(path)
    try:
        files = _files(root)
    except DatasetError as error:
        return Reading(faults=error.faults)
    texts = [file for file in files if file == root or _is_text(file)]
    found = [_read_file(file, root) for file in texts]
    faults = [fault for one in found for fault in one.faults]
    documents = [replace(one, repeats=repeats) for file in found for one in file.documents]
    documents, leaks = _without_leaks(documents)
    sources = _sources(documents, root)
    documents, how = _hold_out(documents, heldout)
    if not texts:
        faults.append(_no_texts(root, files))
    elif not faults and all(one.heldout for one in documents):
        faults.append(f"{root}: every text is held out, none is left to learn from; rename a file")
    notes = (*sources, *how, *leaks, *_twice(documents), *_unread(found), *_spare(files, texts, root))
    return Reading(tuple(documents), tuple(faults), notes)


def _files(root: Path) -> list[Path]:
    """Every file there is, in order."""
    if not root.exists():
        raise DatasetError("no texts", [f"{root}: no such file or folder"])
    if root.is_dir():
        return list(_walk(root, set()))
    if root.suffix.lower() not in SUFFIXES:
        raise DatasetError("no texts", [f"{root}: not a kind of text that is read ({' '.join(SUFFIXES)})"])
    return [root]


def _walk(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """Files first, then folders; a folder that a link leads back to is read once."""
    if (real := folder.resolve()) in seen:
        return
    seen.add(real)
    files, folders = dataset.listed(folder)
    yield from files
    for each in folders:
        yield from _walk(each, seen)


def _is_text(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and file.stem.lower() not in NOT_TEXTS


def _read_file(file: Path, root: Path) -> _File:
    name = _name(file, root)
    try:
        text = dataset.read_text(file)
        if file.suffix.lower() in PLAIN:
            return _File((_plain(text, name, file, root),))
        listed = list(_lines(text, name) if file.suffix.lower() == LINES else _list(text, name))
    except DatasetError as error:
        return _File(faults=tuple(f"{name}: {fault}" for fault in error.faults))
    return _entries(listed, file, root) if listed else _File(faults=(f"{name}: empty file",))


def _plain(text: str, name: str, file: Path, root: Path) -> Document:
    """A file as one document: its lines end in \\n, and the empty lines around it aren't part of it."""
    text = text.replace("\r\n", "\n").strip("\n")
    if faults := entries.text_faults(text, "text"):
        raise DatasetError(f"{name} can't be used", ["empty file"] if not text.strip() else faults)
    return Document(name, file, "text", text=text, heldout=_is_held_out(file, root))


def _lines(text: str, name: str) -> Iterator[tuple[str, object]]:
    """(name, entry) of each line; the entry is an error where the line isn't JSON."""
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: JSON strings may hold U+2028
        if line.strip():
            try:
                yield f"{name}:{number}", json.loads(line)
            except json.JSONDecodeError as error:
                yield f"{name}:{number}", error


def _list(text: str, name: str) -> Iterator[tuple[str, object]]:
    """(name, entry) of a .json's entries, counted from 1."""
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise DatasetError("not JSON", [f"not JSON ({error.msg} at line {error.lineno})"]) from error
    if not isinstance(values, list):
        raise DatasetError("no list", ["not a list of entries; make it one, or move the file away"])
    yield from ((f"{name}:entry {number}", value) for number, value in enumerate(values, start=1))


def _entries(listed: Sequence[tuple[str, object]], file: Path, root: Path) -> _File:
    documents, faults, unread = [], [], Counter[str]()
    held_out = _is_held_out(file, root)
    for name, entry in listed:
        if isinstance(entry, json.JSONDecodeError):
            faults.append(f"{name}: not JSON ({entry.msg} at column {entry.colno})")
            continue
        try:
            documents.append(replace(entries.document(entry, name, file), heldout=held_out))
            unread.update(entries.unread(entry))
        except DatasetError as error:
            faults += [f"{name}: {fault}" for fault in error.faults]
    return _File(tuple(documents), tuple(faults), unread)


def _is_held_out(file: Path, root: Path) -> bool:
    """By the name of the file or of a folder on the way to it; a file that is asked for by itself never is."""
    way = [] if file == root else file.relative_to(root).with_suffix("").parts
    return any(part.lower() in HELD_OUT for part in way)


def _without_leaks(documents: Sequence[Document]) -> tuple[list[Document], list[str]]:
    """Held-out documents that are trained on as well measure nothing: they are left out."""
    trained = {one.digest: one.name for one in documents if not one.heldout}
    leaks = [one for one in documents if one.heldout and one.digest in trained]
    cases = [f"{one.name} is {trained[one.digest]}" for one in leaks]
    kept = [one for one in documents if not (one.heldout and one.digest in trained)]
    return kept, _cases(f"{len(leaks)} held-out texts are trained on, too, so they aren't held out", cases)


def _hold_out(documents: list[Document], share: float) -> tuple[list[Document], list[str]]:
    """Marks the share whose digests are lowest on a scale from 0 to 1: at least one, and never all."""
    if not documents or any(one.heldout for one in documents):
        return documents, []
    ranks = {one.digest: int(one.digest[:16], 16) / 16**16 for one in documents}
    if share == 0 or len(ranks) < FEWEST:
        why = "" if share == 0 else f": {len(ranks)} are too few; put some into heldout.txt to measure what is learned"
        return documents, [f"no texts are held out{why}"]
    held = {digest for digest, rank in ranks.items() if rank < share} or {min(ranks)}
    held -= {max(ranks)} if len(held) == len(ranks) else set()
    chosen = [replace(one, heldout=one.digest in held) for one in documents]
    return chosen, [f"{sum(one.heldout for one in chosen)} of {len(chosen)} are held out, chosen by what they say"]


def kinds_said(documents: Iterable[Document]) -> str:
    """How many there are of each kind: "240 texts, 1 chat"."""
    counts = Counter(one.kind for one in documents)
    names: tuple[Kind, ...] = ("text", "completion", "chat")
    return ", ".join(f"{counts[kind]} {kind}{'s' * (counts[kind] != 1)}" for kind in names if counts[kind])


def _sources(documents: Sequence[Document], root: Path) -> list[str]:
    """How many of which kind came from where; a folder's many .txt are counted together."""
    if not documents:
        return []
    sources: dict[tuple[str, bool], list[Document]] = {}
    for one in documents:
        suffix = one.path.suffix.lower()
        source = f"{suffix} files" if suffix in PLAIN else _name(one.path, root)
        sources.setdefault((source, one.heldout), []).append(one)
    parts = [f"{kinds_said(those)} from {source}{' (held out)' * held}" for (source, held), those in sources.items()]
    return [f"{len(documents)} documents: {'; '.join(parts)}"]


def _twice(documents: Iterable[Document]) -> list[str]:
    same: dict[str, list[str]] = {}
    for one in documents:
        same.setdefault(one.digest, []).append(one.name)
    cases = [" = ".join(names) for names in same.values() if len(names) > 1]
    return _cases(f"{len(cases)} texts stand here more than once and count as often", cases)


def _unread(found: Iterable[_File]) -> list[str]:
    keys = sum((one.unread for one in found), Counter[str]())
    said = ", ".join(f'"{key}" ({count})' for key, count in sorted(keys.items()))
    return [f"keys that aren't read: {said}"] if keys else []


def _cases(what: str, cases: Sequence[str]) -> list[str]:
    more = f" and {len(cases) - NAMED} more" if len(cases) > NAMED else ""
    return [f"{what}: {', '.join(cases[:NAMED])}{more}"] if cases else []


def _no_texts(root: Path, files: Sequence[Path]) -> str:
    if not files:
        return f"{root}: no texts: the folder is empty; put texts in it ({' '.join(SUFFIXES)})"
    return f"{root}: no texts ({' '.join(SUFFIXES)} are read); found {_by_suffix(files)}"


def _spare(files: Sequence[Path], texts: Sequence[Path], root: Path) -> list[str]:
    """The files that aren't read: a few by name, many by kind."""
    spare = [file for file in files if file not in set(texts)]
    named = ", ".join(_name(file, root) for file in spare)
    return [f"not read: {named if len(spare) <= 2 * NAMED else _by_suffix(spare)}"] if spare else []


def _by_suffix(files: Iterable[Path]) -> str:
    found = Counter(file.suffix.lower() or file.name for file in files)
    return ", ".join(f"{count} {suffix}" for suffix, count in sorted(found.items()))


def _name(file: Path, root: Path) -> str:
    return file.name if file == root else file.relative_to(root).as_posix()
