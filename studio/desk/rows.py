"""The rows of the studio's database as values, and the statements that make its tables.

Try it: python -c "from studio.desk.rows import *; print(JobRow.__annotations__)"
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar, get_args

State = Literal["waiting", "running", "done", "failed", "cancelled", "lost"]
STATES: tuple[str, ...] = get_args(State)
OPEN = ("waiting", "running")  # all other states are final
JSON = {"spec", "error", "result", "facts", "tags"}  # the columns kept as JSON
Json = dict[str, Any]
Row = TypeVar("Row")

# One script for each version of the tables, in order; never change one that was released, add another.
MIGRATIONS = (
    """
    CREATE TABLE jobs (id INTEGER PRIMARY KEY AUTOINCREMENT, desk TEXT NOT NULL, kind TEXT NOT NULL,
        title TEXT NOT NULL, spec TEXT NOT NULL, state TEXT NOT NULL, done INTEGER NOT NULL, total INTEGER NOT NULL,
        error TEXT, result TEXT, created REAL NOT NULL, started REAL, finished REAL);
    CREATE INDEX jobs_of_desk ON jobs (desk, id);
    CREATE TABLE pictures (id INTEGER PRIMARY KEY AUTOINCREMENT, desk TEXT NOT NULL, job INTEGER, file TEXT NOT NULL,
        recipe TEXT NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL, created REAL NOT NULL,
        kept INTEGER NOT NULL);
    CREATE INDEX pictures_of_desk ON pictures (desk, id);
    CREATE TABLE adapters (path TEXT PRIMARY KEY, id TEXT NOT NULL, stamp TEXT NOT NULL, facts TEXT, error TEXT);
    CREATE INDEX adapters_by_id ON adapters (id);
    CREATE TABLE notes (id TEXT PRIMARY KEY, tags TEXT NOT NULL, added REAL NOT NULL);
    CREATE TABLE fits (id TEXT, base TEXT, facts TEXT NOT NULL, PRIMARY KEY (id, base));
    CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL)
    """,
    "ALTER TABLE pictures DROP COLUMN kept; DELETE FROM adapters",  # more is read of a file: look through all anew
)


@dataclass(frozen=True)
class JobRow:
    """A job of a desk. `done` of `total` steps; times are seconds since 1970; `error` is what, faults, next_step."""

    id: int
    desk: str
    kind: str
    title: str
    spec: Json
    state: State
    done: int
    total: int
    error: Json | None
    result: Json | None
    created: float
    started: float | None
    finished: float | None


@dataclass(frozen=True)
class PictureRow:
    """A picture on disk: `file` seen from the database's folder, its recipe as TOML, sizes in pixels."""

    id: int
    desk: str
    job: int | None
    file: str
    recipe: str
    width: int
    height: int
    created: float


@dataclass(frozen=True)
class AdapterRow:
    """What was read of a file of the library: `path` seen from the library's folder; one of facts and error is there.

    `stamp` tells whether the file is still the one that was read.
    """

    path: str
    id: str
    stamp: str
    facts: Json | None
    error: Json | None


@dataclass(frozen=True)
class Notes:
    """What the library knows of an adapter besides its file: a person's tags, when it came (seconds since 1970)."""

    id: str
    tags: tuple[str, ...]
    added: float


@dataclass(frozen=True)
class Fit:
    """How much of an adapter acts on a base: all (`whole`) or this share of its energy, 0..1, and `why` not more."""

    whole: bool
    share: float
    why: str
    faults: tuple[str, ...] = ()  # the single reasons


def written(column: str, value: Any) -> Any:
    """A value as its column keeps it."""
    return json.dumps(value, ensure_ascii=False) if column in JSON and value is not None else value


def read(kind: type[Row], row: sqlite3.Row) -> Row:
    """A row of the database as a value of `kind`, whose fields are called as the columns."""
    values = {field.name: row[field.name] for field in fields(kind)}  # type: ignore[arg-type]
    values |= {name: json.loads(text) for name, text in values.items() if name in JSON and text is not None}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
