"""Trainings: begun as child processes, one at a time, followed, stopped, resumed, and found again by the next server.

`.studio/runs/<id>/` holds `settings.toml`, the child's `words.txt`, and the run's own folder `run/`. A thread minds the
queue while there is anything to mind; the children need no server.
Try: python -c "from studio.desk.training import *; help(Training)"
"""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from studio.desk import child, grounds
from studio.desk.following import Follower
from studio.desk.places import inside, sample_folders, written
from studio.desk.presets import as_toml
from studio.desk.runs import RunRow as RunRow
from studio.desk.runs import RunStatus as RunStatus
from studio.desk.runs import Shelf
from studio.desk.shelf import plain_name
from studio.desk.store import Store
from studio.desk.work import told
from trainers.config import TrainConfig
from trainers.errors import ConfigError, RunError, StyloraError

LIVING, RESUMABLE = ("running", "stopping"), ("stopped", "failed")
KEY = "run:"  # what the runs' rows are called in the store
PATIENCE = 300.0  # seconds that a child has to end its step, draw the preview that is due, and save
BEAT = 0.4  # seconds between two looks at the children
SAVE = "put it into the library first"
PATHS = ("data", "dataset.plain", "dataset.cache")  # settings that name a place on the server


class Training:
    """The trainings of a home folder. May be used from any thread, and by several servers on one home.

    `roots` are the folders besides the home and the sample styles that data may lie in, `bases` those that a base may
    lie in; None: anywhere.
    """

    def __init__(
        self, home: Path, store: Store, library: Shelf | None = None, roots: Sequence[Path] = (),
        bases: Sequence[Path] | None = None,
    ) -> None:  # fmt: skip
        self.folder = home.resolve() / ".studio" / "runs"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.store, self.library, self.roots = store, library, (home, *roots, *sample_folders().values())
        self.bases, self._followers = bases, dict[str, Follower]()
        self._closed, self._lock, self._thread = Event(), Lock(), Thread()
        if self._needed():
            self._mind()

    def close(self) -> None:
        """Mind the queue no more. What is being trained goes on; who waits waits for the next server."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    # --- what a page asks --------------------------------------------------------------------------------------------

    def runs(self, desk: str | None = None) -> list[RunRow]:
        """All runs, or those of a desk; the newest first."""
        rows = [RunRow(**facts) for facts in self.store.under(KEY).values()]
        return sorted((row for row in rows if desk in (None, row.desk)), key=lambda row: -row.created)

    def run(self, id: str) -> RunRow:
        """Raises RunError: there is none."""
        facts = self.store.get(KEY + id)
        if facts is None:
            raise RunError("there is no such training", next_step="reload the page")
        return RunRow(**facts)

    def status(self, id: str) -> RunStatus:
        """All there is to say of a run now. Raises RunError: there is none."""
        row = self.run(id)
        course = self._followers.setdefault(id, Follower(self._out(id) / "events.jsonl")).read()
        facts = vars(course) | {"steps": course.steps or row.steps}
        error = StyloraError(**row.error) if row.error else None
        return RunStatus(**facts, run=row, state=row.state, place=self._place(row), error=error, adapter=self._made(id))

    def pace(self, base: str) -> float | None:
        """Seconds a sample took in the newest finished run on this base; None where there was none."""
        for row in self.runs():
            if row.base == base and row.state == "done" and (report := self._report(row.id)):
                return float(report["seconds"]) / (int(report["steps"]) * row.batch)
        return None

    # --- what a page wants -------------------------------------------------------------------------------------------

    def start(self, desk: str, config: Mapping[str, Any], title: str) -> str:
        """Put a training into the queue; `config` by dotted key, without `out`. Returns its id.

        Raises ConfigError with every fault of the settings, and where data lies outside the allowed folders; BaseError
        where the base does; RunError: nothing can be written. Nothing is left then.
        """
        given = dict(config) | {"name": plain_name(title)}
        now = time.time()
        id = f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-{time.time_ns() % 10**6:06}"
        built = TrainConfig.build(values=given | {"out": str(self._out(id))})
        grounds.check(built.base, self.bases)
        places = self._places(built, given)
        given |= {key: built.get(key) for key in given} | places | {"out": str(self._out(id))}
        row = RunRow(id, desk, title, built.base, str(given["data"]), built.train.steps, built.train.batch, now, now)
        try:
            with written("the training's folder", RunError):
                self._folder(id).mkdir()
                (self._folder(id) / "settings.toml").write_text(as_toml(given), encoding="utf-8")
            self._put(row)
        except StyloraError:
            shutil.rmtree(self._folder(id), ignore_errors=True)
            raise
        self._mind()
        return id

    def stop(self, id: str) -> None:
        """Stop a run after its step, as ctrl-C does, or take it out of the queue; `resume` loses nothing."""
        with self._alone():
            row = self.run(id)
            if row.state == "waiting":
                self._put(replace(row, state="stopped"))
            elif row.state == "running":
                if child.lives(self._words(id)):
                    child.interrupt(row.pid)
                self._put(replace(row, state="stopping", asked=time.time()))

    def resume(self, id: str) -> None:
        """Put a stopped or failed run into the queue again. Raises RunError where it is neither."""
        with self._alone():
            row = self.run(id)
            if row.state not in RESUMABLE:
                raise RunError(f"{row.title} is {row.state}", next_step="only a stopped or failed training can go on")
            self._put(replace(row, state="waiting", queued=time.time(), asked=0.0, error=None))
        self._mind()

    def shelve(self, id: str) -> None:
        """Put the adapter of a finished run into the library, where that failed when the run ended.

        Raises the library's error, or RunError: there is none that isn't there.
        """
        with self._alone():
            row = self.run(id)
            if (made := self._unshelved(row)) is None:
                raise RunError(f"{row.title} has no adapter that isn't in the library", next_step="reload the page")
            landed = self._landed(row, made)
            self._put(landed)
        if landed.error:
            raise StyloraError(**landed.error)

    def remove(self, id: str, *, with_adapter: bool = False) -> None:
        """Delete a run and its folder; its adapter stays in the library.

        Raises RunError where it is being trained, and where its adapter isn't in the library, unless that goes, too.
        """
        with self._alone():
            row = self.run(id)
            if row.state in LIVING:
                raise RunError(f"{row.title} is being trained", next_step="stop it first")
            if self._unshelved(row) and not with_adapter:
                raise RunError(f"the adapter of {row.title} would be lost: it isn't in the library yet", next_step=SAVE)
            self.store.drop(KEY + id)
            self._followers.pop(id, None)
        shutil.rmtree(self._folder(id), ignore_errors=True)

    # --- the queue ---------------------------------------------------------------------------------------------------

    def tend(self) -> bool:
        """Look at the children once: who ended, who must end, who is next. True while there is anything to mind."""
        with self._alone():
            rows = sorted(self.runs(), key=lambda row: row.queued)
            for row in [row for row in rows if row.state in LIVING]:
                self._look_at(row)
            living = any(row.state in LIVING for row in self.runs())
            waiting = [row for row in rows if row.state == "waiting"]
            if waiting and not living:
                self._begin(waiting[0])
        return bool(living or waiting)

    def _mind(self) -> None:
        """See to it that a thread tends."""
        with self._lock:
            if not self._thread.is_alive() and not self._closed.is_set():
                self._thread = Thread(target=self._tend_while_there_is_need, name="trainings", daemon=True)
                self._thread.start()

    def _tend_while_there_is_need(self) -> None:
        while not self._closed.wait(BEAT):
            try:
                if self.tend():
                    continue
            except (StyloraError, OSError):  # a full disk, a busy database: the next look may do better
                continue
            with self._lock:  # whoever queues a run from now on finds no thread, and begins one
                if not self._needed():
                    self._thread = Thread()
                    return

    def _needed(self) -> bool:
        return any(row.state == "waiting" or row.state in LIVING for row in self.runs())

    def _begin(self, row: RunRow) -> None:
        words = self._words(row.id)
        begun = (self._out(row.id) / "config.toml").is_file()
        order = ("resume", str(self._out(row.id))) if begun else ("train", str(words.with_name("settings.toml")))
        spoken = words.stat().st_size if words.is_file() else 0
        row = replace(row, state="running", spoken=spoken, pid=0)
        self._put(row)  # before there is a child: one that no row tells of would be begun twice
        try:
            self._put(replace(row, pid=child.launch(order, words)))
        except RunError as error:
            self._put(replace(row, state="failed", error=told(error)))

    def _look_at(self, row: RunRow) -> None:
        """A child that ended has left an adapter, was stopped, or failed."""
        if child.lives(self._words(row.id)):
            if row.state == "stopping" and time.time() - row.asked > PATIENCE:
                child.interrupt(row.pid, signal.SIGTERM)
            return
        if made := self._made(row.id):
            self._put(self._landed(row, made))
        elif row.state == "stopping":
            self._put(replace(row, state="stopped"))
        elif not row.pid:  # the server ended before it could begin the child
            self._put(replace(row, state="waiting"))
        else:
            self._put(replace(row, state="failed", error=told(child.complaint(self._words(row.id), row.spoken))))

    def _landed(self, row: RunRow, made: Path) -> RunRow:
        """Its adapter is put into the library; where that fails, the run is done all the same and says why."""
        try:
            entry = self.library.add_path(made) if self.library else None
        except StyloraError as error:
            return replace(row, state="done", error=told(error))
        return replace(row, state="done", adapter=entry.id if entry else "", error=None)

    def _unshelved(self, row: RunRow) -> Path | None:
        """The adapter of a finished run that is nowhere else."""
        return self._made(row.id) if self.library and row.state == "done" and not row.adapter else None

    # --- places ------------------------------------------------------------------------------------------------------

    def _folder(self, id: str) -> Path:
        return self.folder / id

    def _out(self, id: str) -> Path:
        return self._folder(id) / "run"

    def _words(self, id: str) -> Path:
        return self._folder(id) / "words.txt"

    def _report(self, id: str) -> dict[str, Any]:
        """What a finished run says of itself, which is written last; empty while there is none."""
        try:
            return dict(json.loads((self._out(id) / "report.json").read_text()))
        except (OSError, ValueError, TypeError):
            return {}

    def _made(self, id: str) -> Path | None:
        path = self._out(id) / str(self._report(id).get("adapter") or "-")
        return path if path.exists() else None

    def _place(self, row: RunRow) -> int:
        waiting = [other for other in self.runs() if other.state == "waiting" and other.queued <= row.queued]
        return len(waiting) if row.state == "waiting" else 0

    def _places(self, config: TrainConfig, given: Mapping[str, Any]) -> dict[str, str]:
        """The settings that name a place, as whole paths. Raises ConfigError where one lies outside the roots."""
        paths = {key: Path(config.get(key)) for key in PATHS if given.get(key) is not None}
        if out := [f"{key}: {path}" for key, path in paths.items() if not inside(path, self.roots)]:
            raise ConfigError("that lies outside the folders that the studio may read", out, "upload the files instead")
        whole = {key: str(path.resolve()) for key, path in paths.items()}
        return whole | ({"base": str(Path(config.base).resolve())} if Path(config.base).is_dir() else {})

    def _put(self, row: RunRow) -> None:
        self.store.put(KEY + row.id, asdict(row))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One thread of one server at a time changes runs."""
        with written("the trainings' folder", RunError):
            stream = (self.folder / ".lock").open("wb")
        with stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield
