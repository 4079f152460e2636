"""One SQLite file that threads and processes share: whole transactions, tables brought up to date, faults in words.

And the lock of a server that must be the only one on its folder.

Try it: python -c "from studio.desk.database import *; print(Database(Path('/tmp/a.db'), []).rows('SELECT 1')[0][0])"
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from studio.desk.places import reason
from trainers.errors import RunError

PATIENCE = 15.0  # seconds to wait for another process that writes


class Database:
    """An open file. `migrations` are scripts, each of which makes of the tables' last version the next one.

    RunError, from any method: it can't be opened, read or written, or a newer stylora wrote it.
    """

    def __init__(self, path: Path, migrations: Sequence[str]) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()
        with self._told("opened"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # no isolation level: transactions begin where this file says so
            self._db = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            self._write_ahead()
            self._db.execute("PRAGMA synchronous = FULL")
        self._migrate(migrations)

    def close(self) -> None:
        """Close the file; nothing is lost without it."""
        with self._lock:
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing. One within another belongs to the outer one."""
        with self._lock:
            if self._db.in_transaction:
                yield
                return
            self.write("BEGIN IMMEDIATE")  # waits for other writers now, when waiting is still possible
            try:
                yield
                self.write("COMMIT")
            finally:
                if self._db.in_transaction:
                    self.write("ROLLBACK")

    def write(self, statement: str, *values: Any) -> sqlite3.Cursor:
        """One statement, on the disk when it returns, unless a transaction is open."""
        with self._lock, self._told("written"):
            return self._db.execute(statement, values)

    def rows(self, statement: str, *values: Any) -> list[sqlite3.Row]:
        """What a query finds."""
        with self._lock, self._told("read"):
            return self._db.execute(statement, values).fetchall()

    def _write_ahead(self) -> None:
        """Turn the write-ahead log on. While another does so, SQLite says busy at once instead of waiting."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
                time.sleep(0.02)

    def _migrate(self, migrations: Sequence[str]) -> None:
        with self.transaction():
            version = self.rows("PRAGMA user_version")[0][0]
            if version > len(migrations):
                step = "update stylora, or name another --library"
                raise RunError(f"{self.path} was written by a newer stylora", [f"its version is {version}"], step)
            for script in migrations[version:]:
                for statement in script.split(";"):
                    self.write(statement)
            self.write(f"PRAGMA user_version = {len(migrations)}")

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            step = "free some space, check the folder's rights, or name another --library"
            raise RunError(f"{self.path} can't be {what}", [str(error)], step) from error


def lock(folder: Path) -> IO[str]:
    """Be the only server on this folder, until the file that is given is closed or the process ends, were it by a kill.

    Raises RunError: another has it open, or it can't be written.
    """
    step = f"use that one, or end it; or name another --library than {folder.parent}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "server.lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            by = f"by process {file.read().strip() or 'unknown'}"
            file.close()
            raise RunError(f"the studio in {folder.parent} is open already", [by], step) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
    except OSError as error:
        raise RunError(f"{folder} can't be written", [reason(error)], "check its rights and space") from error
    return file
