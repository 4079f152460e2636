"""Stop a training so that no step is lost: asked by SIGINT or SIGTERM, it ends its step, saves it, says so, and ends.

The commands watch for these signals, the session looks after each step. A library's user has nothing changed for him.
Try: `stylora train --data pictures --out runs/ink`, press ctrl-C at a step, then `stylora resume runs/ink`
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NEWS = b"\nstopping once this step is saved; ctrl-C again stops at once\n"
_asked = threading.Event()


def asked() -> bool:
    """Was the command that runs here asked to stop?"""
    return _asked.is_set()


@contextmanager
def watched(events: Iterable[Any]) -> Iterator[Iterator[Any]]:
    """A run's events, during which the first signal only asks, from `Started` to `Finished`; before, it ends at once.

    After `Stopped`, and at the end of a run that was asked too late to save, KeyboardInterrupt is raised with what to
    say. A second signal does what it did before. Outside the main thread, which alone may watch, nothing is changed.
    """
    before: dict[signal.Signals, Any] = {}

    def give_back() -> None:
        while before:
            signal.signal(*before.popitem())

    def ask(number: int, frame: FrameType | None) -> None:
        give_back()
        _asked.set()
        with suppress(OSError):  # nobody may be listening any more
            os.write(2, NEWS)  # print isn't allowed to be interrupted by itself

    def watching() -> Iterator[Any]:
        for event in events:
            kind = type(event).__name__
            if kind == "Started" and threading.current_thread() is threading.main_thread():
                heard = [one for one in SIGNALS if signal.getsignal(one) not in (signal.SIG_IGN, None)]
                before.update({one: signal.signal(one, ask) for one in heard})
            elif kind == "Finished":
                give_back()
            yield event
            if kind == "Stopped":
                raise KeyboardInterrupt(f"stopped after step {event.step}, which is saved")
            if kind == "Finished" and asked():
                raise KeyboardInterrupt("stopped after the adapter was written")

    _asked.clear()
    try:
        yield watching()
    finally:
        give_back()
        _asked.clear()
