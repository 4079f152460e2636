"""Texts on the page: as they are written, the bare base beside them, the conversation, and what was written before.

Try it: `stylora app`, then Text
"""

from __future__ import annotations

import html
import tomllib
from typing import TYPE_CHECKING, Any

import streamlit as st

from studio.app import state
from studio.app.parts import notices, progress, writing
from trainers.errors import StyloraError

if TYPE_CHECKING:
    from studio.desk.rows import JobRow
    from studio.desk.work import Snapshot

BARE, TAKEN = "text.bare", "text.taken"  # what the bare base answered; the last job that a chat has taken
PAGE = 10
HEADS = {"adapters": "With the rack", "base": "The bare base"}


def spec_of(job: int) -> dict[str, Any]:
    """What was asked for, its recipe as a table."""
    spec = state.engine().store.job(job, state.desk()).spec
    return dict(spec) | {"recipe": tomllib.loads(spec["recipe"])}


def current() -> int | None:
    """The job that was asked for last; None where it is gone."""
    job = state.get(writing.JOB)
    if job is None:
        return None
    try:
        progress.look(job)
    except StyloraError:  # of another library
        state.put(writing.JOB, None)
        return None
    return int(job)


# --- plain texts -----------------------------------------------------------------------------------------------------


def show(job: int) -> None:
    """A text as it is written, then with all that can be done with it."""
    spec = spec_of(job)
    if progress.going(job):
        progress.follow(job, lambda snapshot: sheets(spec, snapshot))
        return
    snapshot = progress.look(job)
    progress.outcome(snapshot)
    sheets(spec, snapshot)
    if snapshot.texts:
        actions(job, spec, snapshot)
    notices.notes(snapshot.result)


def sheets(spec: dict[str, Any], snapshot: Snapshot) -> None:
    """Each text on a sheet; with the bare base's beside it where that was asked for."""
    texts = list(snapshot.texts) or [""]
    wide = 2 if spec["compare"] else 1
    for start in range(0, len(texts), wide):
        row = zip(st.columns(wide, gap="small"), texts[start : start + wide], HEADS.values(), strict=False)
        for column, text, head in row:
            with column:
                if wide == 2:
                    st.markdown(f"**{head}**")
                sheet(str(spec["recipe"]["prompt"]), text)


def sheet(prompt: str, text: str) -> None:
    """The prompt faintly, what was written after it."""
    st.html(f'<div class="written"><span>{html.escape(prompt)}</span>{html.escape(text)}</div>')


def actions(job: int, spec: dict[str, Any], snapshot: Snapshot) -> None:
    """Again, its settings, download, its recipe."""
    with st.container(horizontal=True, gap="small"):
        st.button("Again", icon=":material/replay:", key="text.again", on_click=again, args=(job,),
                  help="Once more, with the same seed")  # fmt: skip
        st.button("Use these settings", icon=":material/tune:", key="text.use", on_click=use, args=(spec,))
        whole = "\n\n* * *\n\n".join(str(spec["recipe"]["prompt"]) + text for text in snapshot.texts)
        st.download_button("Download", whole, f"stylora-text-{job}.txt", "text/plain", icon=":material/download:",
                           key="text.download", on_click="ignore")  # fmt: skip
    with st.expander("Recipe", icon=":material/receipt_long:"):
        st.code(state.engine().store.job(job, state.desk()).spec["recipe"], language="toml", wrap_lines=True)


@notices.safely
def again(job: int) -> None:
    state.put(writing.JOB, state.engine().again(job, state.desk(), slot="write"))


@notices.safely
def use(spec: dict[str, Any]) -> None:
    for name in writing.use(spec["recipe"], spec.get("ids", {})):
        notices.toast(f"{name} is not in the library; the rest is set")


# --- a conversation --------------------------------------------------------------------------------------------------


def talk(job: int | None) -> None:
    """The conversation, the answer that is being written, and the field for the next question."""
    spec = spec_of(job) if job is not None else {}
    mine = bool(spec) and bool(spec["recipe"].get("chat"))
    if job is not None and mine and not progress.going(job):
        take(job, spec)
    turns()
    if job is not None and mine and progress.going(job):
        question(str(spec["recipe"]["prompt"]))
        progress.follow(job, lambda snapshot: answer(list(snapshot.texts) or [""]))
    elif mine and job is not None:
        progress.outcome(progress.look(job))
        if state.get(writing.SAID):
            notices.notes(progress.look(job).result)
    asked = st.chat_input("Say something …", key="text.say")
    if asked:
        with notices.told():
            writing.write(asked, chat=True)
            st.rerun()


def take(job: int, spec: dict[str, Any]) -> None:
    """Put a finished answer into the conversation, once; also one that was stopped midway."""
    snapshot = progress.look(job)
    if state.get(TAKEN) == job or not any(snapshot.texts) or snapshot.state not in ("done", "cancelled"):
        return
    said = list(spec["said"])
    state.put(writing.SAID, [*said, str(spec["recipe"]["prompt"]), snapshot.texts[0]])
    bare = list(state.get(BARE, []))[: len(said) // 2]
    state.put(BARE, [*bare, snapshot.texts[1] if len(snapshot.texts) > 1 else None])
    state.put(TAKEN, job)


def turns() -> None:
    """What was said so far."""
    said, bare = state.get(writing.SAID, []), [*state.get(BARE, [])]
    if not said:
        notices.empty("A conversation", "Say something below. The base answers in the voices of the rack.",
                      ":material/forum:")  # fmt: skip
        return
    for k in range(0, len(said) - 1, 2):
        question(said[k])
        other = bare[k // 2] if k // 2 < len(bare) else None
        answer([said[k + 1]] + ([other] if other is not None else []))
    st.button("Begin anew", icon=":material/restart_alt:", key="text.anew", type="tertiary", on_click=forget)


def forget() -> None:
    state.put(TAKEN, state.get(writing.JOB))
    state.put(writing.SAID, None)
    state.put(BARE, None)


def question(text: str) -> None:
    with st.chat_message("user"):
        st.text(text)


def answer(texts: list[str]) -> None:
    """What the rack says, and beside it the bare base."""
    with st.chat_message("assistant", avatar=":material/ink_pen:"):
        for column, text, head in zip(st.columns(len(texts)), texts, HEADS.values(), strict=False):
            with column:
                if len(texts) > 1:
                    st.caption(head)
                st.text(text or "…")


# --- what was written before -----------------------------------------------------------------------------------------


def history() -> None:
    """Texts of before, the newest first; each can be opened."""
    shown = int(state.noted("texts.shown", PAGE))
    rows = written(shown + 1)
    if not rows:
        return
    st.subheader("History", divider="gray")
    with st.grid("auto", min_column_width=230, gap="small", border=True):
        for row in rows[:shown]:
            past(row)
    if len(rows) > shown:
        st.button("Show older ones", key="texts.more", on_click=state.note, args=("texts.shown", shown + PAGE))


def written(most: int) -> list[JobRow]:
    """The desk's newest jobs that gave a text, however many gave none in between."""
    limit = most
    while True:
        rows = state.engine().store.jobs(state.desk(), limit, ["write"])
        found = [row for row in rows if (row.result or {}).get("texts")]
        if len(rows) < limit or len(found) >= most:
            return found[:most]
        limit *= 4


def past(row: JobRow) -> None:
    """One text of before."""
    recipe, text = tomllib.loads(row.spec["recipe"]), str((row.result or {})["texts"][0])
    names = ", ".join(f"{table.get('name', table['file'])} {table.get('weight', 1.0):g}"
                      for table in recipe.get("adapter", []))  # fmt: skip
    with st.container(gap="xsmall", key=f"past_{row.id}"):
        st.caption(notices.plain(names or "bare base"))
        st.html(f'<div class="written small"><span>{html.escape(row.title[:120])}</span>'
                f"{' — ' if recipe.get('chat') else ''}{html.escape(text[:220])}</div>")  # fmt: skip
        st.button("Open", key=f"past.open.{row.id}", type="tertiary", on_click=open, args=(row.id,))


@notices.safely
def open(job: int) -> None:
    """Show a text of before; a chat goes on from there."""
    chat = bool(spec_of(job)["recipe"].get("chat"))
    state.put(writing.JOB, job)
    state.put("text.mode", "chat" if chat else "prompt")
    state.put(TAKEN, None)
