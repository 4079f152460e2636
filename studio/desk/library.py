"""The library: a folder of adapters with an index. What lies on the disk is true; the index is read from it once.

Files are known by the digest of their numbers. Removed ones lie in `.studio/bin` until they are restored or it is
emptied. Broken files are listed with their fault. Any thread may use it.

Try it: python -c "from studio.desk.library import *; print(Library(Path('.'), Store(Path('/tmp/a.db'))).refresh())"
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from studio.desk import arrivals, downloads, shelf
from studio.desk.entries import Entry as Entry
from studio.desk.entries import entry_of, fit_of, the
from studio.desk.places import inside, path_of, reason, written
from studio.desk.rows import AdapterRow, Fit
from studio.desk.store import Store
from studio.desk.thumbnails import Thumbnails
from trainers.errors import AdapterError, RunError

if TYPE_CHECKING:
    from studio.desk.cards import Described  # torch takes seconds: it is imported where a file is read

ROOM, BIN, ASIDE = ".studio", ".studio/bin", "adapter-"
OLD = 24 * 3600.0  # seconds after which a broken-off upload is swept away


@dataclass(frozen=True)
class Changes:
    """How many files a look at the disk found new, changed and gone."""

    new: int = 0
    changed: int = 0
    gone: int = 0


class Library:
    """The adapters in `home`; `roots` are further folders that `add_path` may take files from."""

    def __init__(
        self, home: Path, store: Store, roots: Sequence[Path] = (), *, largest: int = arrivals.LARGEST
    ) -> None:
        self.home, self.store, self.largest = Path(home).resolve(), store, largest
        self.roots = (self.home, *(Path(root).resolve() for root in roots))
        self._lock = threading.RLock()
        self._made: dict[bool, tuple[tuple[int, int], list[Entry]]] = {}  # removed? -> (the index's edition, entries)
        self.pictures = Thumbnails(self.home / ROOM / "thumbnails")
        with written(str(self.home / ROOM), RunError):
            for name in ("bin", "thumbnails", "uploads"):
                (self.home / ROOM / name).mkdir(parents=True, exist_ok=True)
            self._sweep()

    # --- looking -----------------------------------------------------------------------------------------------------

    def refresh(self, wait: bool = True) -> Changes:
        """Look at the disk: read what is new or changed, forget what is gone. Not `wait`: unless others do so now."""
        if not self._lock.acquire(blocking=wait):
            return Changes()
        try:
            known = {row.path: row for row in self.store.adapters()}
            there = {self._key(path): path for path in self._found()}
            stamps = {key: mark for key, path in there.items() if (mark := shelf.stamp(path))}
            for key in (gone := known.keys() - stamps.keys()):
                self.store.forget_adapter(key)
            fresh = {key for key, mark in stamps.items() if key not in known or known[key].stamp != mark}
            if fresh:
                from studio.desk.cards import described
            for key in sorted(fresh):
                self._remember(there[key], stamps[key], described(there[key]))
            new = len(fresh - known.keys())
            return Changes(new, len(fresh) - new, len(gone))
        finally:
            self._lock.release()

    def cards(self, query: str = "", tags: Iterable[str] = (), family: str = "", base: str = "") -> list[Entry]:
        """Those that say every word of the query, have all the tags, are of the family and for the base; by name."""
        words, wanted = query.casefold().split(), {tag.casefold() for tag in tags}
        return [
            entry
            for entry in self._entries()
            if all(entry.says(word) for word in words)
            and wanted <= {tag.casefold() for tag in (*entry.tags, *entry.header_tags)}
            and family in ("", entry.family)
            and base.casefold() in ("", entry.base_name.casefold())
        ]

    def entry(self, id: str) -> Entry:
        """Raises AdapterError: it isn't in the library."""
        return the(id, self._entries(), "in the library")

    def removed(self) -> list[Entry]:
        """What lies in the bin, the last first."""
        return sorted(self._entries(removed=True), key=lambda entry: entry.path.parent.name, reverse=True)

    # --- changing ----------------------------------------------------------------------------------------------------

    def add_file(self, name: str, data: bytes) -> Entry:
        """Take an upload: a .safetensors file or a zipped PEFT folder. If its numbers are here already, that entry.

        AdapterError: it is of another kind, too large or broken; nothing of it is left then.
        """
        with self._aside() as folder:
            return self._admit(arrivals.unpacked(name, data, folder, self.largest))

    def add_path(self, path: Path, name: str = "") -> Entry:
        """Take a copy of a file, PEFT folder or finished run's folder in the home folder or one of the roots.

        A relative path is seen from the home folder. AdapterError: it lies elsewhere (links followed), is too large or
        broken; nothing of it is left then. ConfigError: it can't be a path.
        """
        path = path_of(path, self.home)
        if not inside(path, self.roots):
            raise arrivals.outside(path)
        from studio.draw.use import adapter_file

        try:
            whole = adapter_file(path)
        except OSError as error:
            raise AdapterError(f"{path.name}: can't be read", [reason(error)], "check the folder's rights") from None
        with self._aside() as folder:
            return self._admit(arrivals.copied(whole, folder, self.roots, self.largest), name)

    def rename(self, id: str, name: str) -> Entry:
        """Call its file otherwise: what can't be in a name is left out, a number is added where it is taken."""
        with self._lock:
            entry, stem = self.entry(id), shelf.plain_name(name)
            return entry if stem == entry.name else self._moved(entry.path, self.home, stem)

    def remove(self, id: str) -> Entry:
        """Put it into the bin."""
        with self._lock:
            entry = self.entry(id)
            return self._moved(entry.path, self._new_bin(), entry.name)

    def restore(self, id: str, path: Path | None = None) -> Entry:
        """Take it out of the bin again, under its name or with a number. AdapterError: it isn't there.

        Of several of the same numbers the one that lies at `path`, else the last.
        """
        with self._lock:
            entry = the(id, [one for one in self.removed() if path in (None, one.path)], "in the bin")
            back = self._moved(entry.path, self.home, entry.name)
            with contextlib.suppress(OSError):
                entry.path.parent.rmdir()
            return back

    @contextmanager
    def replacing(self, name: str) -> Iterator[None]:
        """Within, a file of this name is written: an old one lies in the bin then, or is back where that failed."""
        with self._lock:
            self.refresh()
            if name not in {row.path for row in self.store.adapters()}:
                yield
                return
            old = self._moved(self.home / name, self._new_bin(), shelf.stem_of(self.home / name))
            with contextlib.ExitStack() as undo:
                undo.callback(self.restore, old.id, old.path)
                yield
                undo.pop_all()

    def empty_bin(self) -> int:
        """Delete for good what lies in the bin; how many."""
        with self._lock:
            gone = self.removed()
            for entry in gone:
                shutil.rmtree(entry.path.parent, ignore_errors=True)
            self.refresh()
            return len(gone)

    def set_tags(self, id: str, tags: Iterable[str]) -> Entry:
        """Give it these tags in place of its others."""
        self.store.set_tags(self.entry(id).id, tags)
        return self.entry(id)

    # --- what else one wants of it -----------------------------------------------------------------------------------

    def thumbnail(self, id: str) -> bytes | None:
        """A JPEG of at most 512 px: the one that a person set, else the header's."""
        return self.pictures.get(self._known(id))

    def set_thumbnail(self, id: str, data: bytes | None) -> None:
        """Show this PNG, JPEG or WebP; None: the header's again. AdapterError: it is no such picture, or too large."""
        self.pictures.set(self._known(id), data)

    def download(self, id: str) -> tuple[str, BinaryIO]:
        """(file name, open file) of its file, or of its PEFT folder as a .zip. AdapterError, RunError: it is gone."""
        path = self.entry(id).path
        return downloads.name_of(path), downloads.opened(path, self.home / ROOM)

    def fits(self, id: str, base: str) -> Fit:
        """How it fits a base, by name, folder or file; looked at once and remembered as long as both stay the same.

        The first time takes seconds: torch, and for a language model transformers, are imported.
        """
        return fit_of(self.entry(id), base, self.store)

    # --- within ------------------------------------------------------------------------------------------------------

    def _found(self) -> Iterator[Path]:
        yield from shelf.found(self.home)
        for folder in (self.home / BIN).glob("*"):
            yield from shelf.found(folder)

    def _entries(self, removed: bool = False) -> list[Entry]:
        edition = self.store.edition()
        if removed not in self._made or self._made[removed][0] != edition:
            self._made[removed] = edition, self._new_entries(removed)
        return self._made[removed][1]

    def _new_entries(self, removed: bool) -> list[Entry]:
        groups: dict[str, list[AdapterRow]] = {}
        rows = self.store.adapters()
        notes = self.store.notes()  # after the rows: of each there is a note then, whoever adds one meanwhile
        for row in rows:
            if row.path.startswith(f"{BIN}/") == removed:
                groups.setdefault(row.path if removed else row.id, []).append(row)
        entries = [entry_of(self.home, same, notes[same[0].id]) for same in groups.values()]
        return sorted(entries, key=lambda entry: (entry.name.casefold(), entry.name))

    def _known(self, id: str) -> str:
        return the(id, [*self._entries(), *self._entries(removed=True)], "in the library").id

    def _remember(self, path: Path, mark: str, told: Described) -> None:
        if told.thumbnail:
            self.pictures.set_header(told.id, told.thumbnail)
        self.store.put_adapter(AdapterRow(self._key(path), told.id, mark, told.facts, told.error))

    def _key(self, path: Path) -> str:
        return path.relative_to(self.home).as_posix()

    def _new_bin(self) -> Path:
        """A folder in the bin; the last one made is the last by name."""
        folder = self.home / BIN / f"{time.time_ns():020}-{secrets.token_hex(3)}"
        with written("the bin", AdapterError):
            folder.mkdir(parents=True)
        return folder

    @contextmanager
    def _aside(self) -> Iterator[Path]:
        """A folder of its own for what comes in; nothing of it stays."""
        folder = self.home / ROOM / "uploads" / f"{ASIDE}{secrets.token_hex(8)}"
        with written("the studio's folder", AdapterError):
            folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _admit(self, path: Path, name: str = "") -> Entry:
        """Give a file that lies aside its place, if it can be read and isn't here already."""
        from studio.desk.cards import described

        told = described(path)
        if told.error:
            raise AdapterError(**told.error)
        with self._lock:
            here = [entry for entry in self._entries() if entry.id == told.id and entry.path.exists()]
            if not here:
                placed = _move(path, self.home, shelf.plain_name(name) if name else shelf.stem_of(path))
                self._remember(placed, shelf.stamp(placed), told)
            return self.entry(told.id)

    def _moved(self, path: Path, folder: Path, stem: str) -> Entry:
        """Move a file; the index follows, and would find it by itself if it were stopped between."""
        (row,) = (row for row in self.store.adapters() if row.path == self._key(path))
        placed = _move(path, folder, stem)
        self.store.put_adapter(replace(row, path=self._key(placed), stamp=shelf.stamp(placed)))
        self.store.forget_adapter(row.path)
        there = self._entries(removed=folder != self.home)
        return next(entry for entry in there if entry.id == row.id and folder in entry.path.parents)

    def _sweep(self) -> None:
        """Remove what killed servers left of uploads."""
        for folder in (self.home / ROOM / "uploads").glob(f"{ASIDE}*"):
            if time.time() - folder.stat().st_mtime > OLD:
                shutil.rmtree(folder, ignore_errors=True)


def _move(path: Path, folder: Path, stem: str) -> Path:
    try:
        return shelf.move(path, folder, stem)
    except OSError as error:
        step = "reload the page; check the folder's rights and space"
        raise AdapterError(f"{path.name}: can't be moved", [reason(error)], step) from None
