"""A training as the store keeps it, and as a page sees it. Imports no torch.

Try it: python -c "from studio.desk.runs import *; print(RunRow.__annotations__)"
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from studio.desk.following import Course
from trainers.errors import StyloraError

State = Literal["waiting", "running", "stopping", "stopped", "done", "failed"]


class Shelf(Protocol):
    """Where finished adapters go: `studio.desk.library.Library`."""

    def add_path(self, path: Path) -> Any:
        """Takes a copy; the entry has an `id`."""


@dataclass(frozen=True)
class RunRow:
    """One training as the store keeps it; times are seconds since 1970. `adapter` is its id in the library."""

    id: str
    desk: str
    title: str
    base: str
    data: str
    steps: int
    batch: int
    created: float
    queued: float  # those who wait go by this
    state: State = "waiting"
    pid: int = 0
    spoken: int = 0  # bytes of words.txt from before the child that runs now
    asked: float = 0.0  # when it was asked to stop
    error: dict[str, Any] | None = None
    adapter: str = ""


@dataclass(frozen=True, kw_only=True)
class RunStatus(Course):
    """A training now: its course, its row, its place among those who wait (1 is next; 0: it doesn't wait)."""

    run: RunRow
    state: State
    place: int
    error: StyloraError | None
    adapter: Path | None  # as the run left it; `run.adapter` is the library's
