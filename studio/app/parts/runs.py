"""Trainings as a person follows them: queue, bar, losses, previews, what is learned, stop, resume, the adapter.

They are children of the server that need neither it nor the page: what is shown is read from what they tell.
Try it: `stylora app`, then Train, then a sample, then Start
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from studio.app import state
from studio.app.parts import adapter, gallery, material, notices
from trainers.errors import StyloraError

if TYPE_CHECKING:
    from studio.desk.training import RunRow, RunStatus

EVERY = 1.0  # seconds between looks
OPEN = "train.run"
SHOWN = 6  # previews, and trainings in the list
POINTS = 250  # of a curve
STOP = "It ends the step it is in and saves it; Resume goes on from there to the same adapter"
LIVE = ("waiting", "running", "stopping")
WORDS = {
    "waiting": ":material/hourglass_empty: waiting", "running": ":material/play_arrow: training",
    "stopping": ":material/pause: stopping", "stopped": ":material/pause_circle: stopped",
    "done": ":material/check_circle: done", "failed": ":material/error: failed",
}  # fmt: skip


def show() -> None:
    """The desk's trainings as a row of choices, and the one that is open; nothing where there is none."""
    rows = {row.id: row for row in state.engine().training.runs(state.desk())}
    if not rows:
        return
    chosen = str(state.get(OPEN, "") or "")
    with st.container(border=True, key="trainings"):
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.markdown("**Trainings**")
            shown = int(state.noted("runs.shown", SHOWN))
            for row in [*rows.values()][:shown]:
                st.button(f"{notices.plain(row.title)} · {WORDS[row.state]}", key=f"run.{row.id}",
                          type="primary" if row.id == chosen else "secondary",
                          on_click=open, args=("" if row.id == chosen else row.id,))  # fmt: skip
            if len(rows) > shown:
                st.button("Older", key="runs.more", type="tertiary", on_click=state.note,
                          args=("runs.shown", shown + SHOWN))  # fmt: skip
        follow(rows.get(chosen), {row.id: row.state for row in rows.values()})


def open(run: str) -> None:
    """Show this training; "" none."""
    state.put(OPEN, run or None)


def said_of(data: Path) -> tuple[str, ...]:
    """What the open training's card says of this folder already."""
    rows = {row.id: row for row in state.engine().training.runs(state.desk())}
    row = rows.get(str(state.get(OPEN, "") or ""))
    return state.engine().training.status(row.id).notes if row and row.data == str(data) else ()


def follow(row: RunRow | None, states: dict[str, str]) -> None:
    """The open training, looked at again and again while any goes on; the page is drawn anew when one changes."""
    going, faults = any(one in LIVE for one in states.values()), state.noted("faults")

    @st.fragment(run_every=EVERY if going else None)
    def live() -> None:
        now = {one.id: one.state for one in state.engine().training.runs(state.desk())}
        new = state.noted("faults")
        if now != states or (new and new is not faults):  # a button of this part alone: faults stand above the page
            st.rerun()
        if row:
            with notices.told():
                one(state.engine().training.status(row.id))

    live()


# --- one training ----------------------------------------------------------------------------------------------------


def one(status: RunStatus) -> None:
    """Everything there is to see of it."""
    top(status)
    if status.error:
        notices.show_error(status.error)
    if status.state == "done":
        made(status)
    left, right = st.columns(2, gap="medium")
    with left:
        if status.losses:
            st.vega_lite_chart(curves(status), height=290, width="stretch")
        notices.aside(status.notes)
    with right:
        previews(status)
    if status.supervised:
        told = status.supervised
        with st.expander(f"What is learned: {told.supervised:,} of {told.tokens:,} tokens", icon=":material/receipt:"):
            st.caption(f"{told.documents} texts in {told.pieces} pieces; what is marked is learned.")
            material.marked(told.samples)


def top(status: RunStatus) -> None:
    """The bar and what can be done."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        if status.state != "done":
            st.progress(status.step / status.steps if status.steps else 0.0, text=notices.plain(progress(status)))
        id, training = status.run.id, state.engine().training
        if status.state in ("waiting", "running"):
            act("Stop", ":material/stop_circle:", id, training.stop, tip=STOP)
        elif status.state in ("stopped", "failed"):
            act("Resume", ":material/play_arrow:", id, training.resume)
        if status.state in ("stopped", "failed", "done", "waiting"):
            act("Remove from the list", ":material/delete:", id, training.remove, "tertiary")


def act(label: str, icon: str, id: str, do: Callable[[str], object], kind: Any = "secondary", tip: str = "") -> None:
    """A button that does this to the training."""
    st.button(label, icon=icon, key=f"run.{label.split()[0].lower()}", type=kind, help=tip or None,
              on_click=notices.safely(do), args=(id,))  # fmt: skip


def progress(status: RunStatus) -> str:
    """In words: where it is, how fast, how long yet."""
    if status.state == "waiting":
        return f"waiting: number {status.place} in the queue" if status.place > 1 else "about to start"
    if status.busy and status.state == "running":
        done = f" {status.busy.done} of {status.busy.total}" if status.busy.total else ""
        return f"{status.busy.what}{done}"
    if not status.step and status.state == "running":
        return "getting ready: loading the base"
    parts = [f"step {status.step} of {status.steps}"]
    if status.state == "running" and status.speed and status.started:
        parts.append(f"{status.speed:,.0f} {status.started.unit} a second")
    if status.state == "running" and status.seconds_left is not None:
        parts.append(f"{clock(status.seconds_left)} left")
    if status.state == "stopping":
        parts.append("stopping once this step is saved" if status.started else "stopping")
    if status.state in ("stopped", "failed") and status.step:
        again = status.step - status.saved  # none, unless it broke off
        parts.append(f"resume goes on from step {status.saved}" if again else "resume goes on exactly from here")
    return " · ".join(parts)


def clock(seconds: float) -> str:
    """ "45 s", "3 min", "1 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def made(status: RunStatus) -> None:
    """The adapter that a finished training has put into the library."""
    try:
        entry = state.engine().library.entry(status.run.adapter)
    except StyloraError:
        missing(status)
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        st.image(gallery.thumbnail(entry), width=112)
        with st.container(gap="xsmall", width="stretch"):
            word = f" Its trigger word: **{notices.plain(entry.trigger)}**." if entry.trigger else ""
            st.markdown(f"**{notices.plain(entry.name)}** is in the library.{word}")
            took = clock(status.finished.seconds) if status.finished else ""
            best = ", the best one kept" if status.run.steps != status.step else ""
            st.caption(f"{status.step} steps in {took}{best} · {notices.plain(gallery.facts(entry))}")
            with st.container(horizontal=True, width=260):
                adapter.use_button(entry, "run")


def missing(status: RunStatus) -> None:
    """Its adapter isn't in the library: it couldn't be put there, or was taken away since."""
    st.caption("Its adapter isn't in the library.")
    made, training, library = status.adapter, state.engine().training, state.engine().library
    if made is None:
        return
    with st.container(horizontal=True, gap="small"):
        again = bool(status.run.adapter)  # it was there once
        put = (lambda _: library.add_path(made)) if again else training.shelve
        act("Put into the library", ":material/add_photo_alternate:", status.run.id, put)
        if not again:
            act("Delete it for good", ":material/delete_forever:", status.run.id,
                partial(training.remove, with_adapter=True), "tertiary", "The training and its adapter")  # fmt: skip


# --- curves and previews ---------------------------------------------------------------------------------------------


def curves(status: RunStatus) -> dict[str, Any]:
    """Losses by step as Vega-Lite has it: each batch faintly, their mean over about 10, what is kept apart."""
    each = thinned(status.losses)
    values = [{"step": step, "loss": loss, "of": "batch"} for step, loss in each]
    values += [{"step": step, "loss": loss, "of": "mean"} for step, loss in thinned(smoothed(status.losses))]
    values += [{"step": step, "loss": loss, "of": "held out"} for step, loss in status.validations]
    domain = ["mean", *(["held out"] if status.validations else []), "batch"]
    axes = {
        "x": {"field": "step", "type": "quantitative", "scale": {"domain": [0, status.steps or 1]}, "title": "step",
              "axis": {"tickMinStep": 1}},
        "y": {"field": "loss", "type": "quantitative", "scale": {"zero": False}, "title": "loss"},
        "color": {"field": "of", "type": "nominal", "title": None, "legend": {"orient": "top", "symbolOpacity": 1},
                  "scale": {"domain": domain}},
        "tooltip": [{"field": "step"}, {"field": "loss", "format": ".4f"}, {"field": "of"}],
    }  # fmt: skip
    only = "datum.of == '{}'"
    return {
        "data": {"values": values},
        "encoding": axes,
        "layer": [
            {"transform": [{"filter": only.format("batch")}], "mark": {"type": "point", "size": 8, "opacity": 0.35}},
            {"transform": [{"filter": only.format("mean")}], "mark": {"type": "line", "strokeWidth": 2.5}},
            {"transform": [{"filter": only.format("held out")}], "mark": {"type": "line", "point": True}},
        ],
    }


def smoothed(losses: tuple[tuple[int, float], ...], keep: float = 0.9) -> list[tuple[int, float]]:
    """The running mean, its start not drawn to zero."""
    total, weight, found = 0.0, 0.0, []
    for step, loss in losses:
        total, weight = keep * total + loss, keep * weight + 1
        found.append((step, total / weight))
    return found


def thinned(points: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    """Every so many, so that the page stays light; the last always."""
    each = list(points)
    every = max(1, -(-len(each) // POINTS))
    return each[(len(each) - 1) % every :: every]


def previews(status: RunStatus) -> None:
    """The newest, and folded away those before it, so that one sees it learn."""
    there = [(step, path) for step, path in reversed(status.previews) if path.is_file()][:SHOWN]
    if not there:
        if status.state in LIVE:
            st.caption("Previews come here while it learns.")
        return
    preview(*there[0])
    if there[1:]:
        with st.expander("Earlier previews", icon=":material/history:"):
            for step, path in there[1:]:
                preview(step, path)


def preview(step: int, path: Path) -> None:
    """A sheet of pictures, or texts."""
    if path.suffix == ".txt":
        st.caption(f"Written at step {step}")
        st.text(path.read_text(encoding="utf-8", errors="replace")[:2000])
    else:
        st.image(gallery.small(str(path), 1024), caption=f"step {step}", width="stretch")
