"""The live blend beside the blended file, on the same seeds: pictures, or texts.

Try it: `stylora app`, then Blend, then "Compare"
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import streamlit as st

from studio.app import state
from studio.app.parts import bases, gallery, notices, progress
from trainers.errors import StyloraError

if TYPE_CHECKING:
    from studio.desk.library import Entry
    from studio.desk.work import Snapshot
    from studio.draw.use import Use

DRAFT = "blend.beside"
SIDES = ("Live, by the rack", "The blended file")
PROMPTS = {"pictures": "a blue boat at night", "text": "One morning Agnes"}


def show(entry: Entry, live: tuple[Use, ...]) -> None:
    """The form, and what came of it; `live` is what the file was made of."""
    kind = entry.kind
    with st.grid(2, min_column_width=140, gap="small"):
        base = base_of(kind)
        st.number_input("First seed", 0, step=1, **state.bind("blend.first", 7))
    words = " ".join(dict.fromkeys(use.title for use in live))
    st.text_input("Prompt", help=f"Of {words}", **state.bind(f"blend.prompt.{kind}", PROMPTS[kind]))
    if st.button("Compare on the same seeds", icon=":material/compare:", key="blend.compare", width="stretch"):
        ask(kind, base, entry, live)
        st.rerun()
    kept = state.get(DRAFT, {})
    if kept.get("of") == entry.id:
        outcome(kept["jobs"])


def base_of(kind: str) -> str:
    """A picker of its own; it begins with what was picked for the file."""
    own, picked = f"blend.beside.{kind}", state.get(f"blend.base.{kind}")
    if picked and state.get(own) is None:
        state.put(own, picked)
    return bases.pick(own, kind)


def ask(kind: str, base: str, entry: Entry, live: tuple[Use, ...]) -> None:
    """Two jobs that differ in their adapters alone."""
    from studio.draw.use import Use

    both = (live, (Use(entry.path, name=entry.name),))
    jobs = [
        state.engine().submit(state.desk(), job(kind, base, uses), slot=f"beside{k}") for k, uses in enumerate(both)
    ]
    state.put(DRAFT, {"of": entry.id, "jobs": jobs})
    bases.used(base, kind)


def job(kind: str, base: str, uses: tuple[Use, ...]) -> Any:
    """Four pictures, or one text."""
    from studio.desk.jobs import Draw, Write
    from studio.draw.recipe import Recipe
    from studio.write.recipe import WritingRecipe

    prompt, seed = str(state.get(f"blend.prompt.{kind}", PROMPTS[kind])), int(state.get("blend.first", 7))
    if kind == "text":
        return Write(WritingRecipe(prompt, base=base, adapters=uses, seed=seed, max_tokens=80))
    return Draw(Recipe(prompt, base=base, adapters=uses, seed=seed, count=4))


def outcome(jobs: list[int]) -> None:
    """Both beside each other, as they come."""

    @st.fragment(run_every=0.5 if any(progress.going(job) for job in jobs) else None)
    def live() -> None:
        snapshots = [progress.look(job) for job in jobs]
        for column, side, number, snapshot in zip(st.columns(2, gap="small"), SIDES, jobs, snapshots, strict=True):
            with column, notices.told():
                st.markdown(f"**{side}**")
                one(snapshot)
                if not snapshot.over:
                    progress.bar(number, snapshot)
        if going and all(snapshot.over for snapshot in snapshots):
            st.rerun()

    going = any(progress.going(job) for job in jobs)
    live()


def one(snapshot: Snapshot) -> None:
    """Texts, pictures or their previews, or why there are none."""
    progress.outcome(snapshot)
    for text in snapshot.texts:
        st.text(text)
    pictures: list[Any] = list(snapshot.previews)
    for number in (snapshot.result or {}).get("pictures", ()):
        try:
            store = state.engine().store
            pictures.append(gallery.small(str(store.picture_path(store.picture(number, state.desk())))))
        except StyloraError:
            st.caption("This picture was deleted.")
    if pictures:
        with st.grid(2, min_column_width=60, gap="small"):
            for picture in pictures:
                st.image(picture, width="stretch")
    notices.notes(snapshot.result)
