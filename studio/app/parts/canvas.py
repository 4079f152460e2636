"""The canvas: the picture that is being drawn, or that was drawn or chosen last, and what can be done with it.

Try it: `stylora app`, then Generate
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from studio.app import state
from studio.app.parts import gallery, notices, progress, settings
from trainers.errors import StyloraError

if TYPE_CHECKING:
    from studio.desk.rows import PictureRow
    from studio.desk.work import Snapshot
    from studio.draw.recipe import Recipe

JOBS = "generate.jobs"
LEAST, MOST = 512, 1024  # pixels on the screen: small pictures are enlarged


def settle() -> None:
    """Take finished jobs off the list; the pictures of the last one are shown."""
    going: list[int] = []
    for job in state.get(JOBS, []):
        try:
            snapshot = progress.look(job)
        except StyloraError:
            continue  # of another library
        if not snapshot.over:
            going.append(job)
        elif snapshot.state == "done":
            state.put(gallery.SHOWN, list((snapshot.result or {}).get("pictures", [])))
            state.note("outcome", None)
        elif snapshot.state != "cancelled" or not going:
            state.note("outcome", job)
    state.put(JOBS, going)


def show() -> bool:
    """The canvas. False: there is nothing to show yet."""
    if jobs := state.get(JOBS, []):
        progress.follow(jobs[0], live)
        if len(jobs) > 1:
            st.caption(f"{len(jobs) - 1} more to come")
        return True
    if outcome := state.noted("outcome"):
        snapshot = progress.look(outcome)
        progress.outcome(snapshot)
        if snapshot.state == "lost":
            st.button("Draw it now", icon=":material/replay:", key="lost.again", on_click=redo, args=(outcome,))
    pictures = shown()
    if len(pictures) == 1:
        one(pictures[0])
    elif pictures:
        several(pictures)
    return bool(pictures) or bool(outcome)


def shown() -> list[PictureRow]:
    """The pictures that were chosen or drawn last; those that were deleted are left out."""
    store, found = state.engine().store, []
    for number in state.get(gallery.SHOWN, []):
        try:
            found.append(store.picture(number, state.desk()))
        except StyloraError:
            continue
    return found or store.pictures(state.desk(), 1)


def redo(job: int) -> None:
    """Ask anew for what a closed studio didn't finish."""
    with notices.told():
        state.put(JOBS, [state.engine().again(job, state.desk())])
        state.note("outcome", None)


def live(snapshot: Snapshot) -> None:
    """What a drawing looks like so far; until there is something, what was there before."""
    if snapshot.previews:
        state.note("previews", snapshot.previews)
    previews = snapshot.previews or state.noted("previews") or [gallery.small(str(path)) for path in _paths()]
    with st.container(key=f"canvas_{'live' if snapshot.previews else 'before'}", horizontal_alignment="center"):
        if len(previews) > 1:
            with gallery.square(len(previews)):
                for preview in previews:
                    st.image(preview, width="stretch")
        elif previews:
            st.image(previews[0], width=LEAST)


def _paths() -> list[Path]:
    return [state.engine().store.picture_path(picture) for picture in shown()[:1]]


def several(pictures: list[PictureRow]) -> None:
    """A batch: each can be opened."""
    with st.container(key="canvas_several"), gallery.square(len(pictures)):
        for picture in pictures:
            gallery.tile(picture, 512, "canvas")


# --- one picture -----------------------------------------------------------------------------------------------------


def one(picture: PictureRow) -> None:
    """A picture and what can be done with it."""
    path = state.engine().store.picture_path(picture)
    with st.container(key="canvas_one", horizontal_alignment="center"):
        st.image(str(path), width=max(LEAST, min(MOST, picture.width)))
    with st.container(horizontal=True, gap="small"):
        asked = [
            st.button("Again", icon=":material/replay:", key="one.again", help="Draw it once more, with the same seed"),
            st.button("New seed", icon=":material/casino:", key="one.seed", help="The same with another seed"),
            st.button("Use these settings", icon=":material/tune:", key="one.use"),
        ]
        st.download_button("Download", path.read_bytes(), f"stylora-{picture.id}.png", "image/png",
                           icon=":material/download:", key="one.download", on_click="ignore")  # fmt: skip
        with st.popover("More", icon=":material/more_horiz:"):
            more(picture)
    with notices.told():
        if any(asked):
            act(recall(picture), asked)
    st.caption(f"{picture.width} x {picture.height} · picture {picture.id}")
    with st.expander("Recipe", icon=":material/receipt_long:"):
        st.code(picture.recipe, language="toml", wrap_lines=True)


def recall(picture: PictureRow) -> Recipe:
    """The recipe of a picture. Raises StyloraError: an adapter of it is gone."""
    from studio.desk.drawing import recipe_of  # torch

    return recipe_of(picture, state.engine().store.path.parent)


def act(recipe: Recipe, asked: list[bool]) -> None:
    """Again, with another seed, or its settings taken over."""
    _, seed, use = asked
    if use:
        for name in settings.use(recipe):
            notices.toast(f"{name} is not in the library; the rest is set")
    else:
        if seed:
            settings.roll()
            recipe = replace(recipe, seed=settings.draft("seed"))
        settings.draw(replace(recipe, made=None), grid=recipe.grid is not None)
    st.rerun()


def more(picture: PictureRow) -> None:
    """Keep it as an adapter's thumbnail, or delete it."""
    entries = {entry.id: entry for entry in state.engine().library.cards()}
    if entries:
        chosen = st.selectbox("Thumbnail of", list(entries), key="one.entry", format_func=lambda one: entries[one].name)
        st.button("Keep as its thumbnail", key="one.thumbnail", on_click=keep, args=(picture, chosen))
    st.button("Delete this picture", icon=":material/delete:", key="one.delete", on_click=delete, args=(picture,))


def keep(picture: PictureRow, adapter: str) -> None:
    library = state.engine().library
    path = state.engine().store.picture_path(picture)
    library.set_thumbnail(adapter, path.read_bytes())
    notices.toast(f"{library.entry(adapter).name} has this picture now")


def delete(picture: PictureRow) -> None:
    """The row first: a file without a row does no harm."""
    store = state.engine().store
    path = store.picture_path(picture)
    store.delete_picture(picture.id)
    path.unlink(missing_ok=True)
    notices.toast("Deleted")
