"""One engine for a server: pages submit jobs and read snapshots; one worker's thread does all the models' work.

Desks take turns, a desk's jobs run in the order they came, and a newer wish in the same slot ends the older ones.

Try it: python -c "from pathlib import Path; from studio.desk.engine import *; from studio.draw.recipe import Recipe
e = Engine(Path('/tmp/home')); e.start(); print(e.wait(e.submit('me', Draw(Recipe('a red house'))))); e.close()"
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from studio.desk import grounds, jobs
from studio.desk.jobs import Blend as Blend
from studio.desk.jobs import Draw as Draw
from studio.desk.jobs import Export as Export
from studio.desk.jobs import Grid as Grid
from studio.desk.jobs import Job as Job
from studio.desk.jobs import Measure as Measure
from studio.desk.jobs import Merge as Merge
from studio.desk.jobs import Resize as Resize
from studio.desk.jobs import Write as Write
from studio.desk.library import Library
from studio.desk.residents import Residents
from studio.desk.rows import JobRow, Json, State
from studio.desk.store import Store
from studio.desk.training import Training
from studio.desk.turns import Turns
from studio.desk.work import Cancelled, Snapshot, Work, of_row, told
from trainers.errors import RunError, StyloraError

LOG = logging.getLogger("stylora.studio")
WRONG = "something went wrong"
AGAIN = "ask for it again; if it happens anew, tell us what is said here"
PATIENCE = 30.0  # seconds that `close` waits for the running job to end


class Engine:
    """Store, library, trainings and the models of one home folder. Any thread may call any method.

    `roots` are further folders that adapters and data may be taken from; bases are only read from these and the home
    folder where the studio is `shared`.
    """

    def __init__(
        self, home: Path, *, base: str = "tiny-sd", text_base: str = "tiny-lm", device: str = "auto",
        roots: Sequence[Path] = (), shared: bool = False,
    ) -> None:  # fmt: skip
        """Nothing runs and no model is loaded yet. Raises RunError: the folder can't be written."""
        self.home, self.base, self.text_base = Path(home).expanduser().absolute(), base, text_base
        self.store = Store(self.home / ".studio" / "studio.db")
        self.library = Library(self.home, self.store, roots)
        self.bases = (self.home, *roots, Path(base), Path(text_base)) if shared else None
        self.training = Training(self.home, self.store, self.library, roots, self.bases)
        self.residents = Residents(device)
        self._turns, self._works = Turns(), dict[int, Work]()  # those that wait or run
        self._running: Work | None = None
        self._changed = threading.Condition()  # guards these three, and is told when they change
        self._closing = False
        self._worker = threading.Thread(target=self._work, name="studio-worker", daemon=True)

    def start(self) -> None:
        """Make order after a killed server, look through the library, and begin to work."""
        for job in self.store.recover().jobs:
            self._adopt(job)
        self.library.refresh(wait=False)
        self._worker.start()

    def close(self) -> None:
        """End the running job, leave the waiting ones (they are lost), let the models go."""
        with self._changed:
            self._closing = True
            if self._running:
                self._running.cancel()
            self._changed.notify_all()
        if self._worker.is_alive():
            self._worker.join(PATIENCE)
        self.store.recover()
        self.store.close()

    # --- the pages' side ---------------------------------------------------------------------------------------------

    def submit(self, desk: str, job: Job, *, slot: str | None = None) -> int:
        """Have a job done; its number. Older ones of the same desk and slot are cancelled.

        Raises BaseError: its base may not be read.
        """
        self._check_open()
        if base := getattr(getattr(job, "recipe", job), "base", None):
            grounds.check(base, self.bases)
        spec = jobs.spec_of(job, self.library)
        with self._changed:
            self._check_open()
            id = self.store.add_job(desk, job.kind, spec, job.title)
            work = Work(id, desk, job, slot, self.home, self.store)
            work.library = self.library
            older = [w for w in self._works.values() if slot is not None and (w.desk, w.slot) == (desk, slot)]
            older = [w for w in older if not w.snapshot().over]
            waiting = [w.id for w in older if w is not self._running]
            self._turns.add(desk, id, waiting[0] if waiting else None)
            self._works[id] = work
            for one in older:
                self._cancel(one)
            self._changed.notify_all()
        return id

    def _check_open(self) -> None:
        if self._closing:
            raise RunError("the studio is closing", next_step="start it again with `stylora app`")

    def cancel(self, id: int, desk: str | None = None) -> None:
        """End a job; nothing happens to one that is over. With `desk`, RunError where it is another desk's."""
        with self._changed:
            if (work := self._works.get(id)) and not work.snapshot().over:
                if desk not in (None, work.desk):
                    raise RunError(f"there is no job {id} here", next_step="reload the page")
                self._cancel(work)

    def snapshot(self, id: int, desk: str | None = None) -> Snapshot:
        """A job as it is now, or as it ended. RunError: there is none of that number (with `desk`: of that desk)."""
        work = self._works.get(id)
        if work is None or desk not in (None, work.desk):
            return of_row(self.store.job(id, desk))
        return work.snapshot()

    def ahead(self, id: int) -> int:
        """How many jobs come before a waiting one, those of other desks and the running one among them."""
        with self._changed:
            order = self._turns.order()
            return order.index(id) + (self._running is not None) if id in order else 0

    def wait(self, id: int, seconds: float = 600.0) -> Snapshot:
        """A job's snapshot when it is over, or after so long."""
        until = time.monotonic() + seconds
        with self._changed:
            self._changed.wait_for(lambda: self.snapshot(id).over, until - time.monotonic())
        return self.snapshot(id)

    def asked(self, id: int, desk: str, missing: list[str] | None = None) -> Job:
        """What a job of the past was asked with, its adapters found as the library calls them now.

        Those that are gone are left out and named in `missing`; AdapterError where that is None.
        """
        return jobs.job_of(self.store.job(id, desk), self.library, missing)

    def again(self, id: int, desk: str, *, slot: str | None = None) -> int:
        """Submit a job of the past anew. Raises AdapterError where an adapter of it is gone."""
        return self.submit(desk, self.asked(id, desk), slot=slot)

    def file(self, id: int, desk: str, what: str = "path") -> Path:
        """What a job has made: its "path" (a file or folder) or "figure". RunError: there is none."""
        row = self.store.job(id, desk)
        name = (row.result or {}).get(what)
        root = self.home if what == "path" and row.kind in ("blend", "resize") else self.home / ".studio"
        if not name or not (root / name).exists():
            raise RunError(f"job {id} has left no file", next_step="ask for it again")
        return Path(root / name)

    def _adopt(self, job: JobRow) -> None:
        """A kill may have come after a picture was written and before the store was told of it."""
        if any((self.store.path.parent / "pictures").glob(f"{job.id:06}-*.png")):
            from studio.desk.drawing import adopt  # torch

            adopt(self.store, job)

    # --- the worker's side -------------------------------------------------------------------------------------------

    def _cancel(self, work: Work) -> None:
        """The lock is held. A waiting job ends at once, the running one before its next step."""
        work.cancel()
        if work is not self._running:
            self._turns.drop(work.id)
            self._end(work, "cancelled")

    def _work(self) -> None:
        """The worker's life: one job after another."""
        while work := self._next():
            try:
                self._do(work)
                self.residents.rest()
            except Exception as error:  # whatever a job raises, the desks that wait must get their turn
                LOG.exception("job %s", work.id)
                fault = f"{type(error).__name__}: {error}"
                if self._running is work:
                    self._end(work, "failed", error={"what": WRONG, "faults": [fault], "next_step": AGAIN})
                self._begin_anew()
        self.residents.close()

    def _begin_anew(self) -> None:
        """Let the models go: who knows in which state a job left them. Even that may fail, and nobody keeps them."""
        old, self.residents = self.residents, Residents(self.residents.device)
        try:
            old.close()
        except Exception:
            LOG.exception("the models can't be let go")

    def _next(self) -> Work | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closing or bool(self._turns.order()))
            id = None if self._closing else self._turns.take()
            self._running = self._works[id] if id is not None else None
            return self._running

    def _do(self, work: Work) -> None:
        try:
            work.residents = self.residents
            self.store.set_job(work.id, state="running")
            work.change(state="running")
            work.check()
            result = jobs.runner(work.job.kind)(work, work.job)
            self._end(work, "done", result=result)
        except Cancelled:
            self._end(work, "cancelled")
        except StyloraError as error:
            self._end(work, "failed", error=told(error))

    def _end(self, work: Work, state: State, *, result: Json | None = None, error: Json | None = None) -> None:
        """The store first: once it knows, its row is what the pages see. What can't be stored is kept in memory."""
        now = work.snapshot()
        facts = {"state": state, "result": result or now.result, "error": error}
        stored = False
        try:
            self.store.set_job(work.id, done=now.done, total=now.total, **facts)
            stored = True
        except StyloraError as fault:  # the disk is full, say
            LOG.exception("job %s can't be stored", work.id)
            work.change(**facts | {"state": "failed", "error": told(fault)})
        with self._changed:
            if stored:
                self._works.pop(work.id, None)
            if self._running is work:
                self._running = None
            self._changed.notify_all()
