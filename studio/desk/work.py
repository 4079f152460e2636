"""A job while it runs: what it may use and tell, and what the pages see of it. No model is touched here.

Try it: python -c "from studio.desk.work import *; print(Snapshot('waiting'))"
"""

from __future__ import annotations

import io
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.desk.places import written
from studio.desk.rows import JobRow, Json, State
from studio.desk.wording import in_page_words
from trainers.errors import RunError, StyloraError

if TYPE_CHECKING:
    from PIL import Image

    from studio.desk.library import Library
    from studio.desk.residents import Residents
    from studio.desk.store import Store


class Cancelled(Exception):  # no StyloraError: nothing went wrong
    """Raised through the models to end a job between two steps."""


@dataclass(frozen=True)
class Snapshot:
    """A job at one moment: `done` of `total` steps; `previews` are JPEGs of what is being drawn; `texts` so far.

    `error` has what, faults and next_step; `result` is what there is of it, also while it runs.
    """

    state: State
    done: int = 0
    total: int = 0
    note: str = ""
    previews: tuple[bytes, ...] = ()
    shown: int = 0  # how often there were new previews
    texts: tuple[str, ...] = ()
    result: Json | None = None
    error: Json | None = None

    @property
    def text(self) -> str:
        """The first text."""
        return self.texts[0] if self.texts else ""

    @property
    def over(self) -> bool:
        """Nothing will change any more."""
        return self.state not in ("waiting", "running")


def of_row(row: JobRow) -> Snapshot:
    """A job as the store remembers it."""
    texts = tuple((row.result or {}).get("texts", ()))
    return Snapshot(row.state, row.done, row.total, texts=texts, result=row.result, error=row.error)


def told(error: StyloraError) -> Json:
    """An error as the store and the pages have it: without the command line's flags."""
    faults = [in_page_words(fault) for fault in error.faults]
    return {"what": in_page_words(error.what), "faults": faults, "next_step": in_page_words(error.next_step)}


class Work:
    """A job that waits or runs: the worker's side tells, the pages' side reads snapshots and cancels."""

    def __init__(self, id: int, desk: str, job: Any, slot: str | None, home: Path, store: Store) -> None:
        self.id, self.desk, self.job, self.slot, self.home, self.store = id, desk, job, slot, home, store
        self.residents: Residents
        self.library: Library
        self._lock = threading.Lock()
        self._cancelled = False
        self._now = Snapshot("waiting")

    @property
    def folder(self) -> Path:
        """The studio's own things."""
        return self.home / ".studio"

    # --- the pages' side ---------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        with self._lock:
            return self._now

    def cancel(self) -> None:
        """It ends before its next step."""
        self._cancelled = True

    # --- the worker's side -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises Cancelled where that was asked for."""
        if self._cancelled:
            raise Cancelled

    def step(self, done: int, total: int) -> None:
        """So many steps are over. Raises Cancelled."""
        self.change(done=done, total=total)
        self.check()

    def say(self, note: str) -> None:
        """What it is doing, in words. Raises Cancelled."""
        self.change(note=note)
        self.check()

    def show(self, previews: Sequence[bytes]) -> None:
        self.change(previews=tuple(previews), shown=self._now.shown + 1)

    def write(self, row: int, piece: str) -> None:
        """A piece more of one of the texts. Raises Cancelled."""
        texts = [*self._now.texts, *[""] * (row + 1 - len(self._now.texts))]
        texts[row] += piece
        self.change(texts=tuple(texts))
        self.check()

    def change(self, **changes: Any) -> None:
        with self._lock:
            self._now = replace(self._now, **changes)

    def add_file(self, kind: str, ending: str, write: Callable[[Path], object]) -> str:
        """Have a new file written in the studio's folder of that kind; its name seen from the studio's folder.

        The name tells nothing and is never given twice. Raises RunError: there is no room, or no right to write.
        """
        name = f"{kind}/{self.id:06}-{secrets.token_hex(4)}{ending}"
        with written(f"the studio's {kind}", RunError):
            (self.folder / kind).mkdir(parents=True, exist_ok=True)
            write(self.folder / name)
        return name

    def add_figure(self, figure: Image.Image) -> str:
        """A chart as PNG; its name as `add_file` gives it."""
        from studio.outputs import write_whole

        stream = io.BytesIO()
        figure.save(stream, format="PNG")
        return self.add_file("figures", ".png", lambda path: write_whole(path, stream.getvalue()))
