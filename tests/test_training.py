"""The studio's trainings: real child processes on the miniature base, and the queue by itself with children made up."""

from __future__ import annotations

import errno
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from training import SHORT, config_for, pictures, told, train

from studio.desk import child
from studio.desk import training as desk_training
from studio.desk.library import Library
from studio.desk.places import sample_folders
from studio.desk.store import Store
from studio.desk.training import RunStatus, Training
from trainers import run
from trainers.config import TrainConfig
from trainers.errors import AdapterError, ConfigError, RunError, StyloraError
from trainers.events import Step
from trainers.lora.adapter import digest

PATIENCE = 300  # seconds that a child may take on a busy machine
QUICK = {key: value for key, value in SHORT.items() if key != "name"}


class Shelf:
    """A library that only remembers what it was given."""

    def __init__(self) -> None:
        self.taken: list[Path] = []
        self.error: AdapterError | None = None

    def add_path(self, path: Path) -> Any:
        if self.error:
            raise self.error
        self.taken.append(path)
        return SimpleNamespace(id=f"entry-{len(self.taken)}")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    pictures(tmp_path / "home" / "ink")
    return tmp_path / "home"


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def server(home: Path, shelf: Shelf) -> Iterator[Callable[[], Training]]:
    """Begins a server on the home folder; the one before is closed, its children live on."""
    open_ones: list[tuple[Training, Store]] = []

    def close() -> None:
        for training, store in open_ones:
            training.close()
            store.close()
        open_ones.clear()

    def begin() -> Training:
        close()
        store = Store(home / ".studio" / "studio.db")
        open_ones.append((Training(home, store, shelf), store))
        return open_ones[0][0]

    yield begin
    close()


def settings(base: Path, home: Path) -> dict[str, Any]:
    return {**QUICK, "base": str(base), "data": str(home / "ink")}


def until(training: Training, id: str, wanted: Callable[[RunStatus], bool]) -> RunStatus:
    deadline = time.monotonic() + PATIENCE
    while not wanted(status := training.status(id)):
        assert status.state in ("waiting", "running", "stopping"), f"{status.state}: {status.error}"
        assert time.monotonic() < deadline, status
        time.sleep(0.02)
    return status


# --- real children ----------------------------------------------------------------------------------------------------


def test_two_runs_take_turns_and_the_next_server_finds_them(
    tiny_base: Path, home: Path, shelf: Shelf, server: Callable[[], Training]
) -> None:
    bad = pictures(home / "bad", 2)
    (bad / "00.png").write_bytes(b"no picture")
    (bad / "01.txt").write_text("")
    training = server()
    more = {"train.preview_every": 2, "train.save_every": 2}
    first = training.start("me", settings(tiny_base, home) | more, "Old ink!")
    second = training.start("you", settings(tiny_base, home) | {"data": str(bad)}, "bad")
    pid = until(training, first, lambda status: status.state == "running" and status.run.pid > 0).run.pid
    assert training.status(second).place == 1
    training = server()  # the one that began the child is gone
    found = training.status(first)
    assert (found.state, found.run.pid) == ("running", pid)
    status = until(training, first, lambda status: status.state == "done")
    assert (status.step, status.steps, status.saved, status.seconds_left) == (3, 3, 2, 0)
    assert [step for step, _ in status.losses] == [1, 2, 3]
    assert [step for step, _ in status.previews] == [2, 3]
    assert all(path.is_file() for _, path in status.previews)
    assert status.adapter is not None
    assert status.adapter.name == "Old ink!.safetensors"
    assert status.finished is not None
    assert status.finished.sha256 == digest(status.adapter)
    assert (shelf.taken, status.run.adapter) == ([status.adapter], "entry-1")
    failed = until(training, second, lambda status: status.state == "failed")
    assert failed.error is not None
    assert failed.error.what == f"{bad} can't be trained on"
    assert [fault.split(":")[0] for fault in failed.error.faults] == ["00.png", "01.txt"]
    assert "put these right" in failed.error.next_step


def test_stopped_in_the_middle_and_resumed_it_ends_with_the_same_bytes(
    tiny_base: Path, home: Path, tmp_path: Path, server: Callable[[], Training]
) -> None:
    training = server()
    length = {"train.steps": 30, "train.save_every": 50}
    id = training.start("me", settings(tiny_base, home) | length, "ink")
    until(training, id, lambda status: status.step > 0)
    training.stop(id)
    stopped = until(training, id, lambda status: status.state == "stopped")
    assert 1 <= stopped.step < 30, "it ended before it could be stopped"
    assert stopped.saved == stopped.step
    assert stopped.error is None
    assert stopped.adapter is None
    words = training.folder / id / "words.txt"
    assert f"Error: stopped after step {stopped.step}, " in words.read_text()  # by ctrl-C's way, not by force
    training.resume(id)
    done = until(training, id, lambda status: status.state == "done")
    assert done.started is not None
    assert done.started.first_step == stopped.step
    assert [step for step, _ in done.losses] == [*range(1, 31)]
    config = TrainConfig.build(file=training.folder / id / "settings.toml")
    assert [event.step for event in told(config) if isinstance(event, Step)] == [*range(1, 31)]  # none twice
    never = config_for(tiny_base, home / "ink", tmp_path / "never", length | {"name": "ink"})
    train(never)
    assert done.adapter is not None
    assert digest(done.adapter) == digest(run.adapter_path(never))
    with pytest.raises(RunError, match="is done"):
        training.resume(id)
    library = Library(home, training.store)
    entry = library.add_path(done.adapter)  # which the tests' shelf only notes
    assert entry.name == "ink"
    assert library.thumbnail(entry.id) is not None


# --- the queue by itself ----------------------------------------------------------------------------------------------


class Children:
    """Children made up: each lives until it is said to have ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.alive: set[Path] = set()
        self.orders: list[tuple[str, ...]] = []
        self.signals: list[int] = []
        monkeypatch.setattr(desk_training.child, "launch", self.launch)
        monkeypatch.setattr(desk_training.child, "lives", lambda words: words in self.alive)
        monkeypatch.setattr(desk_training.child, "interrupt", lambda pid, sign=signal.SIGINT: self.signals.append(sign))
        monkeypatch.setattr(Training, "_mind", lambda self: None)

    def launch(self, order: tuple[str, ...], words: Path) -> int:
        self.alive.add(words)
        self.orders.append(order)
        return 4711

    def end(self, training: Training, id: str, words: str = "", adapter: bool = False) -> None:
        folder = training.folder / id
        self.alive.discard(folder / "words.txt")
        (folder / "words.txt").write_text(words)
        if adapter:
            (folder / "run").mkdir()
            (folder / "run" / "a.safetensors").touch()
            report = {"adapter": "a.safetensors", "seconds": 60, "steps": 10}
            (folder / "run" / "report.json").write_text(json.dumps(report))


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Children:
    return Children(monkeypatch)


def states(training: Training, *ids: str) -> list[str]:
    training.tend()
    return [training.status(id).state for id in ids]


def test_the_queue(home: Path, children: Children, server: Callable[[], Training]) -> None:
    training = server()
    data = {"data": str(home / "ink")}
    one, two, three = (training.start("me", data, name) for name in ("one", "two", "three"))
    assert states(training, one, two, three) == ["running", "waiting", "waiting"]
    assert [training.status(id).place for id in (one, two, three)] == [0, 1, 2]
    training.stop(two)
    assert states(training, one, two, three) == ["running", "stopped", "waiting"]
    training.resume(two)  # behind the third now
    assert [training.status(id).place for id in (one, two, three)] == [0, 2, 1]
    with pytest.raises(RunError, match="is being trained"):
        training.remove(one)
    children.end(training, one, "Error: no base\nNext: name one\n")
    assert states(training, one, two, three) == ["failed", "waiting", "running"]
    assert str(training.status(one).error) == "no base\nNext: name one"
    children.end(training, three, adapter=True)
    assert states(training, two, three) == ["running", "done"]
    assert [row.id for row in training.runs()] == [three, two, one]
    assert [order[0] for order in children.orders] == ["train"] * 3
    (training.folder / one / "run").mkdir()
    (training.folder / one / "run" / "config.toml").touch()
    training.resume(one)
    children.end(training, two, adapter=True)
    assert states(training, one) == ["running"]
    assert training.status(one).error is None
    assert children.orders[-1] == ("resume", str(training.folder / one / "run"))


def test_a_child_that_does_not_stop_is_made_to(
    home: Path, children: Children, server: Callable[[], Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = server()
    id = training.start("me", {"data": str(home / "ink")}, "ink")
    training.tend()
    training.stop(id)
    training.stop(id)  # once is enough
    assert states(training, id) == ["stopping"]
    assert children.signals == [signal.SIGINT]
    monkeypatch.setattr(desk_training, "PATIENCE", -1.0)
    training.tend()
    assert children.signals == [signal.SIGINT, signal.SIGTERM]
    children.end(training, id)
    assert states(training, id) == ["stopped"]


def test_a_server_that_ended_between_the_row_and_the_child(
    home: Path, children: Children, server: Callable[[], Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = server()
    id = training.start("me", {"data": str(home / "ink")}, "ink")

    def killed(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(child, "launch", killed)
        with pytest.raises(KeyboardInterrupt):
            training.tend()
    assert training.run(id).state == "running"
    assert states(server(), id) == ["waiting"]


def test_an_adapter_that_the_library_refuses_is_still_there(
    home: Path, children: Children, shelf: Shelf, server: Callable[[], Training]
) -> None:
    training = server()
    id = training.start("me", {"data": str(home / "ink")}, "ink")
    training.tend()
    shelf.error = AdapterError("the library is full", ["no space"], "make room")
    children.end(training, id, adapter=True)
    assert states(training, id) == ["done"]
    status = training.status(id)
    assert (str(status.error), status.run.adapter) == (str(shelf.error), "")
    assert status.adapter == training.folder / id / "run" / "a.safetensors"
    assert training.pace("tiny-sd") == 60 / (10 * 8)  # seconds a sample
    assert training.pace("sd15") is None
    assert [len(training.runs(desk)) for desk in ("me", "you", None)] == [1, 0, 1]
    with pytest.raises(RunError, match="would be lost"):
        training.remove(id)
    with pytest.raises(StyloraError, match="no space"):
        training.shelve(id)
    assert status.adapter.is_file()
    shelf.error = None
    training.shelve(id)
    status = training.status(id)
    assert (status.run.adapter, status.error, shelf.taken) == ("entry-1", None, [status.adapter])
    with pytest.raises(RunError, match="no adapter that isn't in the library"):
        training.shelve(id)
    training.remove(id)
    assert training.runs() == []
    assert [path.name for path in training.folder.iterdir()] == [".lock"]


def test_an_adapter_that_nobody_wants_can_be_deleted(
    home: Path, children: Children, shelf: Shelf, server: Callable[[], Training]
) -> None:
    training = server()
    id = training.start("me", {"data": str(home / "ink")}, "ink")
    training.tend()
    shelf.error = AdapterError("too large")
    children.end(training, id, adapter=True)
    training.tend()
    training.remove(id, with_adapter=True)
    assert training.runs() == []


def test_a_full_disk_leaves_nothing_of_a_training(
    home: Path, children: Children, server: Callable[[], Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    training = server()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for kind, name in ((Path, "write_text"), (Path, "mkdir")):
        with monkeypatch.context() as patch:
            patch.setattr(kind, name, full)
            with pytest.raises(RunError, match="No space left"):
                training.start("me", {"data": str(home / "ink")}, "ink")
        assert training.runs() == []
        assert [path.name for path in training.folder.iterdir() if path.name != ".lock"] == []


def test_what_cannot_be_started_is_told_at_once_and_leaves_nothing(
    home: Path, children: Children, server: Callable[[], Training], tmp_path: Path
) -> None:
    training = server()
    with pytest.raises(ConfigError) as caught:
        training.start("me", {"data": str(home / "ink"), "lora.rank": 0, "train.stepz": 3}, "ink")
    assert len(caught.value.faults) == 2
    (home / "link").symlink_to(tmp_path)
    for place in (tmp_path / "elsewhere", home / ".." / "elsewhere", home / "link"):
        with pytest.raises(ConfigError, match="outside the folders"):
            training.start("me", {"data": str(place)}, "ink")
    with pytest.raises(ConfigError, match="outside the folders"):
        training.start("me", {"data": str(home / "ink"), "dataset.cache": "/tmp"}, "ink")
    assert training.runs() == []
    assert sorted(path.name for path in training.folder.iterdir()) in ([], [".lock"])
    training.start("me", {"data": str(next(iter(sample_folders().values())))}, "a sample may be learned from")
    with pytest.raises(RunError, match="no such training"):
        training.status("../../etc")


def test_the_settings_are_those_that_were_given(home: Path, children: Children, server: Callable[[], Training]) -> None:
    training = server()
    given = {"optim.lr": "1e-3", "dataset.instance_prompt": None, "objective.min_snr_gamma": None}
    id = training.start("me", given | {"data": str(home / "ink")}, "../my ink")
    config = TrainConfig.build(file=training.folder / id / "settings.toml")
    assert (config.optim.lr, config.name, config.objective.min_snr_gamma) == (1e-3, "my ink", None)
    assert config.out == training.folder / id / "run"
    assert "steps" not in config.train.model_fields_set  # the base's kind may have another default
