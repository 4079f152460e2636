"""Transactions are whole or nothing; a file is brought up to date, once, whoever opens it; faults are told in words."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from studio.desk import rows
from studio.desk.database import Database, lock
from studio.desk.store import Store
from trainers.errors import RunError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "home" / "studio.db")
    yield opened
    opened.close()


def test_a_transaction_is_whole_or_nothing(store: Store) -> None:
    with contextlib.suppress(KeyError), store._db.transaction():
        store.put("a", 1)
        raise KeyError
    assert store.get("a") is None
    with pytest.raises(RunError, match="can't be written"):
        store.put_adapter(rows.AdapterRow("a", None, "c", None, None))  # type: ignore[arg-type]
    assert store.adapters() == []
    store.put("a", 2)
    assert store.get("a") == 2


def test_older_files_are_brought_up_to_date(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("a", 1)
    with monkeypatch.context() as patch:
        patch.setattr("studio.desk.store.MIGRATIONS", (*rows.MIGRATIONS, "CREATE TABLE more (x TEXT)"))
        newer = Store(store.path)
        assert (newer.get("a"), newer._db.rows("SELECT * FROM more")) == (1, [])
        newer.close()
    with pytest.raises(RunError, match="newer stylora"):
        Store(store.path)


def test_several_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    for number in range(3):
        opened: list[Store] = []
        threads = [threading.Thread(target=lambda: opened.append(Store(tmp_path / f"{number}.db"))) for _ in range(8)]  # noqa: B023
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(opened) == 8
        for store in opened:
            store.close()


def test_files_that_are_no_database(tmp_path: Path) -> None:
    (tmp_path / "studio.db").write_bytes(b"not at all" * 200)
    (tmp_path / "file").touch()
    for path in (tmp_path / "studio.db", tmp_path / "file" / "studio.db", tmp_path):
        with pytest.raises(RunError, match="can't be opened"):
            Store(path)
    assert (tmp_path / "studio.db").read_bytes() == b"not at all" * 200


def test_another_programs_lock_is_waited_for(store: Store) -> None:
    other = sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.2, lambda: other.execute("COMMIT"))
    timer.start()
    store.put("a", 1)
    timer.join()
    assert store.get("a") == 1
    other.close()


def test_a_file_of_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    old = Database(tmp_path / "studio.db", rows.MIGRATIONS[:1])
    columns = "desk, file, recipe, width, height, created, kept"
    old.write(f"INSERT INTO pictures ({columns}) VALUES ('a', 'f', 'r', 1, 1, 0, 1)")
    old.close()
    store = Store(tmp_path / "studio.db")
    assert [picture.file for picture in store.pictures("a")] == ["f"]
    assert store.picture(store.add_picture("a", None, "g", "r", 1, 1)).file == "g"
    store.close()


ALONE = """
import sys, time
from pathlib import Path
from studio.desk.database import lock
held = lock(Path(sys.argv[1]))
print("open", flush=True)
time.sleep(100)
"""


def test_one_server_at_a_time_has_a_home(tmp_path: Path) -> None:
    folder = tmp_path / "home" / ".studio"
    child = subprocess.Popen([sys.executable, "-c", ALONE, str(folder)], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    assert child.stdout.readline() == "open\n"
    with pytest.raises(RunError) as refusal:
        lock(folder)
    assert str(tmp_path / "home") in refusal.value.what
    assert refusal.value.faults == (f"by process {child.pid}",)
    Store(folder / "studio.db").close()  # whoever only looks may
    child.kill()
    child.communicate()
    first = lock(folder)
    with pytest.raises(RunError, match="open already"):
        lock(folder)
    sleeper = subprocess.Popen(["sleep", "100"])  # as a training that outlives the server
    first.close()
    lock(folder).close()
    sleeper.kill()
    sleeper.wait()
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="can't be written"):
        lock(tmp_path / "file")
