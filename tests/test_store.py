"""What the store was told is there, for every thread, and after a kill at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from studio.desk.rows import AdapterRow
from studio.desk.store import Store
from trainers.errors import RunError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "home" / "studio.db")
    yield opened
    opened.close()


def test_a_job_from_its_wish_to_its_end(store: Store) -> None:
    spec = {"prompt": "a boat “at sea”", "n": [1, 2]}
    id = store.add_job("ann", "draw", spec, "A boat")
    new = store.job(id)
    assert (new.state, new.spec, new.done, new.started, new.error) == ("waiting", spec, 0, None, None)
    store.set_job(id, state="running", total=4)
    first = store.job(id)
    store.set_job(id, state="running", done=3)
    assert store.job(id) == replace(first, done=3)  # it started once
    assert first.finished is None
    assert first.started is not None
    store.set_job(id, state="failed", error={"what": "no", "faults": ["a"], "next_step": ""})
    ended = store.job(id)
    assert ended.error == {"what": "no", "faults": ["a"], "next_step": ""}
    assert ended.finished is not None
    assert new.created <= first.started <= ended.finished


def test_each_desk_sees_its_own(store: Store) -> None:
    ids = [store.add_job(desk, kind, {}, "") for desk in ("ann", "bob") for kind in ("draw", "write", "draw")]
    assert [row.id for row in store.jobs("ann")] == ids[2::-1]
    assert [row.id for row in store.jobs("bob", limit=2)] == ids[:3:-1]
    assert [row.id for row in store.jobs("bob", kinds=["write", "merge"])] == [ids[4]]
    assert (store.jobs("bob", kinds=[]), len(store.jobs(None))) == ([], 6)
    pictures = [store.add_picture(desk, None, "a.png", "", 8, 8) for desk in ("ann", "bob", "ann", "ann")]
    assert [row.id for row in store.pictures("ann", 2)] == [pictures[3], pictures[2]]
    assert [row.id for row in store.pictures("ann", 2, before=pictures[2])] == [pictures[0]]
    assert store.picture(pictures[1], "bob").desk == "bob"
    for ask in (store.job, store.picture):
        with pytest.raises(RunError, match=f"there is no .* {ids[0]} here"):
            ask(ids[0], "eve")


def test_what_there_is_not(store: Store) -> None:
    for wrong in (lambda: store.job(7), lambda: store.set_job(7, done=1), lambda: store.picture(7)):
        with pytest.raises(RunError, match="there is no"):
            wrong()
    for odd in ({"state": "asleep"}, {"desk": "eve"}):
        with pytest.raises(ValueError, match="set_job"):
            store.set_job(store.add_job("ann", "draw", {}, ""), **odd)


def test_a_picture_is_added_and_deleted(store: Store) -> None:
    id = store.add_picture("ann", 3, "pictures/1.png", "seed = 1", 64, 48)
    row = store.picture(id)
    assert (row.job, row.recipe, row.width, row.height) == (3, "seed = 1", 64, 48)
    assert store.picture_path(row) == store.path.parent / "pictures/1.png"
    store.delete_picture(id)
    assert store.pictures("ann") == []


def test_the_index_keeps_a_persons_tags_through_everything(store: Store) -> None:
    row = AdapterRow("ink.safetensors", "abc", "stamp", {"family": "sd1"}, None)
    store.put_adapter(row)
    added = store.notes()["abc"].added
    store.set_tags("abc", [" line ", "ink", "line", " "])
    moved = replace(row, path="pen.safetensors", stamp="other")
    store.put_adapter(moved)
    store.forget_adapter(row.path)
    assert store.adapters() == [moved]
    assert store.notes()["abc"].tags == ("line", "ink")
    assert store.notes()["abc"].added == added


def test_settings_and_fits(store: Store) -> None:
    store.put("theme", {"dark": True})
    store.put("theme", None)
    store.put("run/%", [1])
    assert (store.get("theme", 5), store.get("other", 5)) == (None, 5)
    assert store.under("run/") == {"run/%": [1]}
    store.drop("theme")
    assert store.under("") == {"run/%": [1]}
    store.put_fit("abc", "tiny-sd", {"share": 0.5})
    assert (store.fit("abc", "tiny-sd"), store.fit("abc", "sd15")) == ({"share": 0.5}, None)


def test_a_start_finds_lost_jobs_and_drops_pictures_without_a_file(store: Store, tmp_path: Path) -> None:
    states = ("waiting", "running", "done", "cancelled")
    ids = {state: store.add_job("ann", "draw", {}, "") for state in states}
    for state, id in ids.items():
        store.set_job(id, state=state)
    (tmp_path / "home" / "there.png").write_bytes(b"")
    there, _ = (store.add_picture("ann", None, file, "", 8, 8) for file in ("there.png", "gone.png"))
    found = store.recover()
    assert [(row.id, row.state) for row in found.jobs] == [(ids["waiting"], "waiting"), (ids["running"], "running")]
    assert [row.state for row in store.jobs("ann")] == ["cancelled", "done", "lost", "lost"]
    assert (found.pictures, [row.id for row in store.pictures("ann")]) == (1, [there])
    again = store.recover()
    assert (again.jobs, again.pictures) == ([], 0)


def test_eight_threads_at_once(store: Store) -> None:
    other = Store(store.path)  # as another server on the same folder

    def work(desk: str, through: Store) -> None:
        for number in range(20):
            id = through.add_job(desk, "draw", {"n": number}, "")
            through.set_job(id, state="done", done=number)
            assert through.job(id).done == number

    threads = [threading.Thread(target=work, args=(f"desk {n}", (store, other)[n % 2])) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(8):
        assert [(row.spec["n"], row.done) for row in store.jobs(f"desk {n}")] == [(k, k) for k in range(19, -1, -1)]
    other.close()


WRITES = """
import sys
from pathlib import Path
from studio.desk.rows import AdapterRow
from studio.desk.store import Store
store = Store(Path(sys.argv[1]))
for number in range(10**6):
    id = store.add_job("ann", "draw", {"n": number}, "x" * 500)
    store.put_adapter(AdapterRow(str(id), "x", "", {}, None))
    print(id, flush=True)  # only now is it promised
"""


def test_nothing_that_was_promised_is_lost_by_a_kill(tmp_path: Path) -> None:
    promised, path = list[int](), tmp_path / "studio.db"
    for kill_after in (1, 7, 60):
        child = subprocess.Popen([sys.executable, "-c", WRITES, str(path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout
        lines = [child.stdout.readline() for _ in range(kill_after)]
        os.kill(child.pid, signal.SIGKILL)
        lines += child.stdout.readlines()
        child.wait()
        child.stdout.close()
        now = [int(line) for line in lines if line.endswith("\n")]
        promised += now
        store = Store(path)
        found = [row.id for row in store.jobs("ann", limit=10**6)][::-1]
        assert found[: len(promised)] == promised
        assert len(found) <= len(promised) + 1  # one may be written and not yet promised
        assert {str(id) for id in now} <= {row.path for row in store.adapters()}
        assert store._db.rows("PRAGMA integrity_check")[0][0] == "ok"
        promised = found
        store.close()
