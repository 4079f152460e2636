"""One adapter looked at closely: facts, anatomy, strength, conflicts with the rack, which bases it fits; rename, tags.

Try it: `stylora app`, then Library, then a picture
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import streamlit as st

from studio.app import state
from studio.app.parts import bases, gallery, notices, progress, rack
from studio.desk import downloads
from studio.desk.places import typed_name

if TYPE_CHECKING:
    from studio.desk.library import Entry

PLACES = {"pictures": ("generate", "generate.rack"), "text": ("text", "text.rack")}
DORA = "DoRA"  # stands in the reasons why a file can't be read without its base
SECTIONS = {
    "Facts": "What its file says of it.",
    "Anatomy": "How much it changes each block of the model, and which rank each block needs.",
    "Strength": "How strongly it acts by weight, measured on the base; equal feel is where adapters act alike.",
    "Conflict": "Whether it disturbs the adapters in the rack: measured on the base, two by two.",
    "Fits": "Which bases it fits, and why not.",
}


def open(adapter: str | None) -> None:
    """Show this adapter on the library page; None: the gallery."""
    state.put("library.open", adapter)


def use_button(entry: Entry, key: str) -> None:
    """Put it into the rack of the page that draws, or writes; a broken file can't be."""
    if entry.error:
        st.caption(f":red[:material/broken_image: {notices.plain(entry.error['what'])}]")
        return
    page, place = PLACES[entry.kind]
    hung = any(slot["id"] == entry.id for slot in state.get(place, []))
    label = "In the rack" if hung else "Use"
    if st.button(label, key=f"{key}.use.{entry.id}", icon=":material/check:" if hung else ":material/add:",
                 type="tertiary" if hung else "secondary", width="stretch"):  # fmt: skip
        rack.hang(place, entry.id)
        state.go(page)


def needs_base(entries: Iterable[Entry]) -> bool:
    """Whether one of them is a DoRA, whose change depends on the base: without one its numbers can't be read."""
    return any(DORA in reason for entry in entries for reason in (entry.facts or {}).get("refused", ()))


def download(entry: Entry, key: str, width: Literal["content", "stretch"] = "content") -> None:
    """Its file, a PEFT folder as .zip; read when it is asked for."""
    name = downloads.name_of(entry.path)
    st.download_button("Download", partial(_file_of, entry.id), name, icon=":material/download:", key=key,
                       on_click="ignore", width=width)  # fmt: skip


def _file_of(adapter_id: str) -> BinaryIO:
    return state.engine().library.download(adapter_id)[1]


def show(entry: Entry) -> None:
    """The page of one adapter."""
    st.button("All adapters", icon=":material/arrow_back:", type="tertiary", on_click=open, args=(None,), key="back")
    left, right = st.columns([2, 5], gap="large")
    with left:
        st.image(gallery.thumbnail(entry), width="stretch")
        use_button(entry, "one")
        download(entry, "one.download", "stretch")
        keep(entry)
    with right:
        st.title(notices.plain(entry.name))
        st.caption(notices.plain(gallery.facts(entry)))
        chosen = "Facts" if entry.error else section()
        with notices.told():
            {"Facts": facts, "Fits": fits}.get(chosen, lambda one: measured(one, chosen.lower()))(entry)


def section() -> str:
    """What of it is shown."""
    chosen = st.segmented_control("Show", list(SECTIONS), label_visibility="collapsed",
                                  **state.bind("library.section", "Facts", shown="default")) or "Facts"  # fmt: skip
    st.caption(SECTIONS[chosen])
    return chosen


def keep(entry: Entry) -> None:
    """Name, tags, removal."""
    library = state.engine().library
    with st.form(f"keep_{entry.id[:16]}", border=False):
        name = st.text_input("Name", entry.name)
        tags = st.text_input("Tags", ", ".join(entry.tags), help="with commas between")
        if st.form_submit_button("Save", width="stretch"):
            with notices.told():
                library.set_tags(entry.id, [tag.strip() for tag in tags.split(",") if tag.strip()])
                if (wanted := typed_name(name)) not in ("", entry.name):
                    new = library.rename(entry.id, wanted)
                    notices.toast(f"It is called {new.name} now")
                st.rerun()
    st.button("Remove to the bin", icon=":material/delete:", key="one.remove", type="tertiary",
              on_click=remove, args=(entry,))  # fmt: skip


@notices.safely
def remove(entry: Entry) -> None:
    state.engine().library.remove(entry.id)
    open(None)
    notices.toast(f"{entry.name} is in the bin; it can be restored below the gallery")


# --- sections --------------------------------------------------------------------------------------------------------


def facts(entry: Entry) -> None:
    """What the file says of itself."""
    if entry.error:
        notices.show_error(entry.error)
        return
    told = entry.facts or {}
    rows = {
        "Trigger word": entry.trigger, "Base": entry.base_name,
        "Family": gallery.FAMILIES.get(entry.family, entry.family),
        "Format": told.get("format", ""), "Rank": _many(told.get("ranks")), "Alpha": _many(told.get("alphas")),
        "Numbers": f"{told.get('parameters', 0):,} as {_many(told.get('dtypes'))}",
        "Size of its change": ", ".join(f"{part} {norm:.2f}" for part, norm in told.get("norms", {}).items()),
        "Learned from": ", ".join(entry.header_tags), "Other files of the same numbers": ", ".join(entry.copies),
        "Converted": "; ".join(told.get("converted", [])), "Not understood": "; ".join(told.get("refused", [])[:5]),
        "File": entry.path.name, "Digest": entry.id[:16],
    }  # fmt: skip
    notices.table({name: str(value) for name, value in rows.items() if value})
    with st.expander("Everything in its header", icon=":material/data_object:"):
        notices.table({key: str(value)[:300] for key, value in told.get("metadata", {}).items()})


def _many(counts: dict[str, int] | None) -> str:
    """ "8", or "8 and 2 others" where modules differ."""
    first, others = next(iter(counts or {}), ""), len(counts or {}) - 1
    return f"{first} and {others} other{'s' * (others > 1)}" if others > 0 else first


def fits(entry: Entry) -> None:
    """Every base that was used, and why it doesn't fit."""
    library = state.engine().library
    for kind in ("pictures", "text"):
        for base in dict.fromkeys([bases.usual(kind), *bases.recent(kind)]):
            with notices.told():
                fit = library.fits(entry.id, base)
                sign = ":green[:material/check_circle:]" if fit.whole else ":orange[:material/cancel:]"
                st.markdown(f"{sign} **{notices.plain(base)}** {notices.plain(fit.why)}")
                for fault in getattr(fit, "faults", ()):
                    st.caption(notices.plain(fault))


def measured(entry: Entry, what: str) -> None:
    """A measurement: asked for once, then its figure, kept with the desk."""
    name = f"library.{what}.{entry.id[:16]}"
    job = state.get(name)
    if job and progress.going(job):
        progress.follow(job, lambda snapshot: None)
        return
    if job:
        outcome(entry, what, job)
    base = ""
    if what != "anatomy" or needs_base([entry]):
        base = bases.pick(f"library.base_of.{entry.kind}", entry.kind, "Measured on")
    others = [one for one in rack.slots(PLACES[entry.kind][1]) if one["id"] != entry.id]
    if what == "conflict" and not others:
        st.info("Put another adapter into the rack first: conflicts are between two.", icon=":material/info:")
        return
    if st.button("Measure again" if job else "Measure", icon=":material/straighten:", key="one.measure"):
        measure(entry, what, base, [one["id"] for one in others], name)
        st.rerun()


def measure(entry: Entry, what: str, base: str, others: list[str], name: str) -> None:
    """Ask the engine for it."""
    from studio.desk.jobs import Measure
    from studio.draw.use import Use  # torch

    library = state.engine().library
    entries = [entry, *(library.entry(one) for one in others if what == "conflict")]
    uses = tuple(Use(one.path, name=one.name) for one in entries)
    kind: Any = what
    state.put(name, state.engine().submit(state.desk(), Measure(kind, uses, base or None)))


def outcome(entry: Entry, what: str, job: int) -> None:
    """The figure and the numbers behind it."""
    snapshot = progress.look(job)
    progress.outcome(snapshot)
    if snapshot.state != "done" or not snapshot.result:
        return
    st.image(str(state.engine().file(job, state.desk(), "figure")), width="stretch")
    found = snapshot.result["facts"]
    if what == "strength":
        rack.felt(entry.id, feel_of(found, entry.name))
    with st.expander("The numbers", icon=":material/data_object:"):
        st.json(found)


def feel_of(found: Any, name: str) -> float | None:
    """The equal-feel weight among a measurement's facts."""
    weight = found["adapters"].get(name, {}).get("equal_feel")
    return float(weight) if weight is not None else None
