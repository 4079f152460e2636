"""The canvas: the picture that is being drawn, or that was drawn or chosen last, and what can be done with it.

Try it: `stylora app`, then Generate
"""

from __future__ import annotations

import tomllib
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import streamlit as st

from studio.app import state
from studio.app.parts import bases, gallery, history, notices, progress, seed, settings, sheet
from trainers.errors import StyloraError

if TYPE_CHECKING:
    from studio.desk.rows import JobRow, PictureRow
    from studio.desk.work import Snapshot
    from studio.draw.recipe import Recipe

LOST = "generate.lost"  # what a closed studio left undone
LEAST, MOST = 512, 1024  # pixels on the screen: small pictures are enlarged


def settle() -> None:
    """Take finished jobs off the list; the pictures of the last one are shown, and what became of the others."""
    going = settings.going()
    over = {job: now for job in sorted(going) if (now := _look(job)) is None or now.over}
    ended = {job: now for job, now in over.items() if now}
    if lost := [job for job, now in ended.items() if now.state == "lost"]:
        state.put(LOST, [*dict.fromkeys([*state.get(LOST, []), *lost])])
    for job, now in ended.items():
        if now.state == "done":
            state.put(gallery.SHOWN, list((now.result or {}).get("pictures", [])))
            bases.used(tomllib.loads(state.engine().store.job(job).spec["recipe"])["base"])
    if ended:  # that a wish was dropped for a newer one need not be told
        failed, last = [job for job, now in ended.items() if now.state == "failed"], max(ended)
        state.note("outcomes", [*failed, last] if ended[last].state == "cancelled" else failed)
    settings.wait_for([job for job in going if job not in over])  # last: the run may be ended at any of these


def _look(job: int) -> Snapshot | None:
    """The job as it is now; None: it was forgotten, or is another library's."""
    with suppress(StyloraError):
        return progress.look(job)
    return None


def _row(job: int) -> JobRow | None:
    with suppress(StyloraError):
        return state.engine().store.job(job, state.desk())
    return None


def show() -> bool:
    """The canvas. False: there is nothing to show yet."""
    if jobs := settings.going():
        progress.await_preview(jobs[0])
        progress.follow(jobs[0], live)
        if len(jobs) > 1:
            st.caption(f"{len(jobs) - 1} more to come")
        return True
    left, outcomes = unfinished(), [now for job in state.noted("outcomes", []) if (now := _look(job))]
    for outcome in outcomes:
        progress.outcome(outcome)
    pictures = shown()
    if len(pictures) == 1:
        one(pictures[0])
    elif pictures:
        several(pictures)
    if pictures and pictures[0].job and (now := _look(pictures[0].job)):
        notices.notes(now.result)
    return bool(pictures or outcomes or left)


def shown() -> list[PictureRow]:
    """The pictures that were chosen or drawn last; those that were deleted are left out."""
    store, found = state.engine().store, []
    for number in state.get(gallery.SHOWN, []):
        with suppress(StyloraError):
            found.append(store.picture(number, state.desk()))
    return gallery.there(found, tell=True) or gallery.there(store.pictures(state.desk(), history.STRIP))[:1]


def unfinished() -> bool:
    """What a closed studio left undone, to be had now or let go; whether there is any."""
    lost = [(job, row) for job in state.get(LOST, []) if (row := _row(job))]
    if not lost:
        return False
    several = len(lost) > 1
    st.info("\n".join([f"The studio was closed while {'these' if several else 'this'} waited or ran:", "",
                       *(f"- {notices.plain(row.title[:80]) or '(no prompt)'}" for _, row in lost)]),
            icon=":material/power_off:")  # fmt: skip
    with st.container(horizontal=True):
        st.button(f"Draw all {len(lost)} again" if several else "Draw it now", icon=":material/replay:",
                  key="lost.again", on_click=redo)  # fmt: skip
        st.button("Let them go" if several else "Let it go", key="lost.forget", on_click=notices.safely(state.put),
                  args=(LOST, None))  # fmt: skip
    return True


def redo() -> None:
    """Ask anew for all that a closed studio didn't finish; what can't be asked for any more stays on the list."""
    state.note("outcomes", [])
    for job in state.get(LOST, []):
        with notices.told():
            again = state.engine().again(job, state.desk())
            settings.wait_for([*settings.going(), again])
            state.put(LOST, [one for one in state.get(LOST) if one != job])


def live(snapshot: Snapshot) -> None:
    """What a drawing looks like so far; until there is something, what was there before."""
    if snapshot.previews:
        state.note("previews", snapshot.previews)
    made = snapshot.previews or state.noted("previews") or _before()
    previews = [gallery.within(jpeg) for jpeg in made]
    with st.container(key=f"canvas_{'live' if snapshot.previews else 'before'}", horizontal_alignment="center"):
        if len(previews) > 1:
            with gallery.square(len(previews)):
                for preview in previews:
                    st.image(preview, width="stretch")
        elif previews:
            st.image(previews[0], width=LEAST)


def _before() -> list[bytes]:
    with suppress(StyloraError):  # a broken file
        return [gallery.small(str(gallery.file_of(picture))) for picture in shown()[:1]]
    return []


def several(pictures: list[PictureRow]) -> None:
    """A batch: each can be opened."""
    with st.container(key="canvas_several"), gallery.square(len(pictures)):
        for picture in pictures:
            gallery.tile(picture, 512, "canvas")


# --- one picture -----------------------------------------------------------------------------------------------------


def one(picture: PictureRow) -> None:
    """A picture and what can be done with it."""
    path = gallery.file_of(picture)
    with st.container(key="canvas_one", horizontal_alignment="center"), notices.told():
        gallery.small(str(path))  # which says where a file is broken
        st.image(str(path), width=max(LEAST, min(MOST, picture.width)), output_format="PNG")
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
            act(picture, *asked)
    st.caption(f"{picture.width} x {picture.height} · picture {picture.id}")
    with st.expander("Recipe", icon=":material/receipt_long:"):
        st.code(picture.recipe, language="toml", wrap_lines=True)


def recall(picture: PictureRow, missing: list[str] | None = None) -> Recipe:
    """The recipe of a picture. Adapters of it that are gone are left out and named in `missing`.

    Raises AdapterError: one is gone, and `missing` is None.
    """
    from studio.desk.drawing import recipe_of  # torch

    engine = state.engine()
    return recipe_of(picture, engine.store.path.parent, engine.library, missing)


def act(picture: PictureRow, again: bool, other: bool, use: bool) -> None:
    """Again, with another seed, or its settings taken over."""
    if use:
        take(picture)
    else:
        recipe = recall(picture)
        if other:
            seed.roll("generate")
            recipe = replace(recipe, seed=settings.draft("seed"))
        settings.draw(replace(recipe, made=None), grid=recipe.grid is not None)
    st.rerun()


def take(picture: PictureRow) -> None:
    """Set what it was drawn with, a sheet's axes too; what is gone is told, the rest is set."""
    gone: list[str] = []
    recipe = recall(picture, gone)
    gone += settings.use(recipe)
    if recipe.grid:
        sheet.use(recipe.grid, letters=not gone)
    for name in gone:
        notices.toast(f"{name} is not in the library; the rest is set")


def more(picture: PictureRow) -> None:
    """Keep it as an adapter's thumbnail, or delete it."""
    cards = sorted(state.engine().library.cards(), key=lambda entry: f"/{entry.path.name}" not in picture.recipe)
    entries = {entry.id: entry for entry in cards}  # those it was drawn with come first
    if entries:
        chosen = st.selectbox("Thumbnail of", list(entries), key=f"one.entry.{picture.id}",
                              format_func=lambda one: entries[one].name)  # fmt: skip
        st.button("Keep as its thumbnail", key="one.thumbnail", on_click=keep, args=(picture, chosen))
    st.button("Delete this picture", icon=":material/delete:", key="one.delete", on_click=delete, args=(picture,))


@notices.safely
def keep(picture: PictureRow, adapter: str) -> None:
    library = state.engine().library
    library.set_thumbnail(adapter, gallery.file_of(picture).read_bytes())
    notices.toast(f"{library.entry(adapter).name} has this picture now")


@notices.safely
def delete(picture: PictureRow) -> None:
    """The row first: a file without a row does no harm."""
    store = state.engine().store
    path = store.picture_path(picture)
    store.delete_picture(picture.id)
    path.unlink(missing_ok=True)
    notices.toast("Deleted")
