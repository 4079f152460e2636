"""A job as it happens: its pictures or text so far, a bar, cancel; the page is drawn anew when the job is done.

Try it: `stylora app`, then Generate
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import streamlit as st

from studio.app import state
from studio.app.parts import notices

if TYPE_CHECKING:
    from studio.desk.work import Snapshot

EVERY = 0.25  # seconds between looks at a job that runs
SOON, TICK = 0.5, 0.02  # seconds to wait for a first preview, and between looks at it

Show = Callable[["Snapshot"], None]


def going(job: int | None) -> bool:
    """Whether a job waits or runs."""
    return job is not None and not look(job).over


def look(job: int) -> Snapshot:
    """The desk's job as it is now. Raises RunError: it is another desk's, or none."""
    return state.engine().snapshot(job, state.desk())


def follow(job: int, show: Show, every: float = EVERY, cancel: bool = True) -> None:
    """Show a job that waits or runs by `show`, again and again, then run the whole page once."""

    @st.fragment(run_every=every)
    def live() -> None:
        snapshot = look(job)
        if snapshot.over:
            st.rerun()
        show(snapshot)
        bar(job, snapshot, cancel)

    live()


def await_preview(job: int) -> None:
    """Give a job a moment to show something: this run shows it then, sooner than the next look would."""
    place, until = st.empty(), time.monotonic() + SOON
    while not (snapshot := look(job)).shown and not snapshot.over and time.monotonic() < until:
        time.sleep(TICK)
        place.empty()  # where Streamlit lets go of this run if a slider was moved again


def bar(job: int, snapshot: Snapshot, cancel: bool = True) -> None:
    """How far it is, and a button that ends it."""
    with st.container(horizontal=True, vertical_alignment="center"):
        if snapshot.state == "waiting":
            st.progress(0.0, text=in_line(job))
        else:
            share = min(1.0, snapshot.done / snapshot.total) if snapshot.total else 0.0
            steps = f"step {snapshot.done} of {snapshot.total}" if snapshot.total else "getting ready"
            st.progress(share, text=notices.plain(snapshot.note or steps))
        if cancel:
            st.button("Cancel", key=f"cancel.{job}", icon=":material/stop_circle:", on_click=notices.safely(stop),
                      args=(job,))  # fmt: skip


def in_line(job: int) -> str:
    """Where a waiting job stands."""
    ahead = state.engine().ahead(job)
    return f"waiting: {ahead} before it" if ahead else "about to start"


def stop(job: int) -> None:
    state.engine().cancel(job, state.desk())


def outcome(snapshot: Snapshot) -> None:
    """What became of a job that gave nothing: an error, a cancel, a server that stopped."""
    if snapshot.state == "failed":
        notices.show_error(snapshot.error or {"what": "It did not work"})
    elif snapshot.state == "cancelled":
        st.caption("Cancelled.")
    elif snapshot.state == "lost":
        st.info("The studio was closed while this ran. Ask for it again to have it.", icon=":material/power_off:")
