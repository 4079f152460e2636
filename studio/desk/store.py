"""What the studio remembers: jobs, pictures, the library's index, tags and settings, in one SQLite file.

Every change is one transaction, on the disk when its method returns; threads and processes may share the file. After a
kill at any moment the file opens as it was after the last change that returned.

Try it: python -c "from studio.desk.store import *; print(Store(Path('/tmp/a.db')).add_job('me', 'draw', {}, 'hi'))"
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.desk.database import Database
from studio.desk.rows import (
    MIGRATIONS,
    OPEN,
    STATES,
    AdapterRow,
    JobRow,
    Json,
    Notes,
    PictureRow,
    Row,
    read,
    written,
)
from trainers.errors import RunError

CHANGES = {"state", "done", "total", "error", "result", "title", "spec"}  # what set_job may set


@dataclass(frozen=True)
class Recovered:
    """What a start found: jobs a killed server left, as they were then (oldest first); pictures whose file is gone."""

    jobs: list[JobRow]
    pictures: int


class Store:
    """An open database; any thread may use it. Raises RunError: not to be read or written, or of a newer stylora."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._changes = 0
        self._db = Database(self.path, MIGRATIONS)

    def close(self) -> None:
        """Close the file; nothing is lost without it."""
        self._db.close()

    # --- jobs --------------------------------------------------------------------------------------------------------

    def add_job(self, desk: str, kind: str, spec: Json, title: str) -> int:
        """A new job that waits; its number."""
        facts = {"desk": desk, "kind": kind, "spec": spec, "title": title}
        return self._insert("jobs", {**facts, "state": "waiting", "done": 0, "total": 0, "created": time.time()})

    def job(self, id: int, desk: str | None = None) -> JobRow:
        """Raises RunError: there is none of this number, or it is of another desk than `desk`."""
        return self._one(JobRow, "jobs", id, desk, "job")

    def jobs(self, desk: str | None, limit: int = 50, kinds: Sequence[str] | None = None) -> list[JobRow]:
        """The newest jobs of a desk (None: of all), of these kinds, newest first."""
        where, values = _where(desk=desk)
        if kinds is not None:
            where, values = f"{where} AND kind IN ({_marks(kinds)})", [*values, *kinds]
        return self._all(JobRow, f"SELECT * FROM jobs WHERE {where} ORDER BY id DESC LIMIT ?", *values, limit)

    def set_job(self, id: int, **changes: Any) -> None:
        """Change a job's CHANGES. The clock is read here: it started when it first runs, and finished in a final state.

        Raises RunError: there is no such job. ValueError: no such column or state.
        """
        if odd := changes.keys() - CHANGES or {changes.get("state", "done")} - {*STATES}:
            raise ValueError(f"set_job: {', '.join(map(str, odd))}")
        sets = [f"{column} = ?" for column in changes]
        values = [written(column, value) for column, value in changes.items()]
        state = changes.get("state")
        if state is not None and state != "waiting":
            sets.append("started = coalesce(started, ?)" if state == "running" else "finished = coalesce(finished, ?)")
            values.append(time.time())
        if sets and not self._db.write(f"UPDATE jobs SET {', '.join(sets)} WHERE id = ?", *values, id).rowcount:
            raise _gone("job", id)

    # --- pictures ----------------------------------------------------------------------------------------------------

    def add_picture(self, desk: str, job: int | None, file: str, recipe: str, width: int, height: int) -> int:
        """A finished picture, its file already on the disk (named from the database's folder); its number."""
        facts = {"file": file, "recipe": recipe, "width": width, "height": height}
        return self._insert("pictures", {**facts, "desk": desk, "job": job, "created": time.time()})

    def picture(self, id: int, desk: str | None = None) -> PictureRow:
        """Raises RunError: there is none of this number, or it is of another desk than `desk`."""
        return self._one(PictureRow, "pictures", id, desk, "picture")

    def pictures(self, desk: str | None, limit: int = 50, before: int | None = None) -> list[PictureRow]:
        """The newest pictures of a desk (None: of all) with a number below `before`, newest first."""
        where, values = _where(desk=desk)
        if before is not None:
            where, values = f"{where} AND id < ?", [*values, before]
        return self._all(PictureRow, f"SELECT * FROM pictures WHERE {where} ORDER BY id DESC LIMIT ?", *values, limit)

    def delete_picture(self, id: int) -> None:
        """Forget a picture; its file is its owner's to delete, and after this."""
        self._db.write("DELETE FROM pictures WHERE id = ?", id)

    def picture_path(self, row: PictureRow) -> Path:
        """Where a picture's file lies."""
        return self.path.parent / row.file

    # --- the library's index -----------------------------------------------------------------------------------------

    def adapters(self, id: str | None = None) -> list[AdapterRow]:
        """What was read of the library's files and of its bin, by path; those of one id."""
        where, values = _where(id=id)
        return self._all(AdapterRow, f"SELECT * FROM adapters WHERE {where} ORDER BY path", *values)

    def edition(self) -> tuple[int, int]:
        """Another one whenever the index or a tag was changed, here or by another process."""
        return self._changes, self._db.rows("PRAGMA data_version")[0][0]

    def put_adapter(self, row: AdapterRow) -> None:
        """What was read of a file, in place of what was read before; the first time, its id is dated."""
        with self._db.transaction():
            self._changes += 1
            self._insert("adapters", vars(row), replace=True)
            self._db.write("INSERT OR IGNORE INTO notes VALUES (?, '[]', ?)", row.id, time.time())

    def forget_adapter(self, path: str) -> None:
        """The file is gone. Its notes stay, should it come back."""
        with self._db.transaction():
            self._changes += 1
            self._db.write("DELETE FROM adapters WHERE path = ?", path)

    def notes(self) -> dict[str, Notes]:
        """{id: what is noted of it}, of every adapter there ever was."""
        return {row.id: row for row in self._all(Notes, "SELECT * FROM notes")}

    def set_tags(self, id: str, tags: Iterable[str]) -> None:
        """Give an adapter these tags in place of its others: once each, without blanks around them."""
        kept = written("tags", list(dict.fromkeys(tag for tag in map(str.strip, tags) if tag)))
        upsert = "INSERT INTO notes VALUES (?1, ?2, ?3) ON CONFLICT (id) DO UPDATE SET tags = ?2"
        with self._db.transaction():
            self._changes += 1
            self._db.write(upsert, id, kept, time.time())

    def fit(self, id: str, base: str) -> Json | None:
        """What was found out about an adapter on a base; None: nothing yet."""
        rows = self._db.rows("SELECT facts FROM fits WHERE id = ? AND base = ?", id, base)
        return json.loads(rows[0][0]) if rows else None

    def put_fit(self, id: str, base: str, facts: Json) -> None:
        """Remember it."""
        self._insert("fits", {"id": id, "base": base, "facts": facts}, replace=True)

    # --- settings ----------------------------------------------------------------------------------------------------

    def get(self, key: str, default: Any = None) -> Any:
        """What `put` was given under this key."""
        rows = self._db.rows("SELECT value FROM settings WHERE key = ?", key)
        return json.loads(rows[0][0]) if rows else default

    def put(self, key: str, value: Any) -> None:
        """Keep anything that JSON can say."""
        text = json.dumps(value, ensure_ascii=False)
        self._insert("settings", {"key": key, "value": text}, replace=True)

    def under(self, start: str) -> dict[str, Any]:
        """{key: value} of the settings whose keys begin with `start`."""
        rows = self._db.rows(
            "SELECT key, value FROM settings WHERE substr(key, 1, ?) = ? ORDER BY key", len(start), start
        )
        return {row["key"]: json.loads(row["value"]) for row in rows}

    def drop(self, key: str) -> None:
        """Forget a setting."""
        self._db.write("DELETE FROM settings WHERE key = ?", key)

    # --- the file ----------------------------------------------------------------------------------------------------

    def recover(self) -> Recovered:
        """At a server's start, before its first job: open jobs are lost; pictures without a file are forgotten.

        The jobs are given as they were, so that those that waited can be given again. Files without a row stay.
        """
        with self._db.transaction():
            lost = self._all(JobRow, f"SELECT * FROM jobs WHERE state IN ({_marks(OPEN)}) ORDER BY id", *OPEN)
            for row in lost:
                self.set_job(row.id, state="lost")
            gone = [row.id for row in self.pictures(None, -1) if not self.picture_path(row).is_file()]
            for id in gone:
                self.delete_picture(id)
        return Recovered(lost, len(gone))

    def _all(self, kind: type[Row], statement: str, *values: Any) -> list[Row]:
        return [read(kind, row) for row in self._db.rows(statement, *values)]

    def _one(self, kind: type[Row], table: str, id: int, desk: str | None, word: str) -> Row:
        where, values = _where(id=id, desk=desk)
        if found := self._all(kind, f"SELECT * FROM {table} WHERE {where}", *values):
            return found[0]
        raise _gone(word, id)

    def _insert(self, table: str, values: Mapping[str, Any], replace: bool = False) -> int:
        verb = "INSERT OR REPLACE" if replace else "INSERT"
        kept = [written(column, value) for column, value in values.items()]
        return int(
            self._db.write(f"{verb} INTO {table} ({', '.join(values)}) VALUES ({_marks(kept)})", *kept).lastrowid or 0
        )


def _where(**wanted: Any) -> tuple[str, list[Any]]:
    """The condition that columns have these values; None is any."""
    asked = {column: value for column, value in wanted.items() if value is not None}
    return " AND ".join(["1", *(f"{column} = ?" for column in asked)]), list(asked.values())


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))


def _gone(word: str, id: int) -> RunError:
    return RunError(f"there is no {word} {id} here", next_step="reload the page")
