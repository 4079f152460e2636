"""What the tests of jobs share: a job run here and now, without an engine's thread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from studio.desk import jobs
from studio.desk.jobs import Job
from studio.desk.library import Library
from studio.desk.residents import Residents
from studio.desk.store import Store
from studio.desk.work import Work

HELD = Residents("cpu")


def work_for(home: Path, job: Job) -> Work:
    """A job that runs, its store and library in `home`."""
    store = Store(home / ".studio" / "studio.db")
    work = Work(store.add_job("me", job.kind, {}, job.title), "me", job, None, home, store)
    work.residents, work.library = HELD, Library(home, store)
    return work


def run(home: Path, job: Job) -> tuple[Work, dict[str, Any]]:
    """The job's work and its result."""
    work = work_for(home, job)
    return work, jobs.runner(job.kind)(work, job)
