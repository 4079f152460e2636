"""The page where adapters are made into one, merged into a base, or written for other tools.

Try it: `stylora app`, then Blend
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from studio.app import state
from studio.app.parts import adapter, bases, beside, cutting, gallery, notices, progress, rack
from studio.desk import downloads
from studio.desk.places import typed_name
from trainers.errors import StyloraError

if TYPE_CHECKING:
    from studio.desk.work import Snapshot

RACK = "blend.rack"
WHAT = {"blend": "One adapter", "merge": "Into a base", "export": "For other tools"}
ABOUT = {
    "blend": "Several adapters become one file, which acts as they do together at these weights.",
    "merge": "The base's own weights are changed, so that it needs no adapter any more. What was written is proved.",
    "export": "One adapter in the format that another tool reads.",
}
FORMATS = {
    "kohya": "what A1111, Forge, ComfyUI, InvokeAI and Civitai read", "diffusers": "pytorch_lora_weights.safetensors",
    "peft": "a folder for PeftModel", "gguf": "llama.cpp and Ollama (text)",
}  # fmt: skip
DTYPES = ("fp16", "bf16", "fp32")
KINDS = {"pictures": "Pictures", "text": "Text"}


def page() -> None:
    """What was made beside what can be set."""
    with notices.told():
        entries = [entry for entry in state.engine().library.cards() if not entry.error]
        if not entries:
            nothing()
            return
        left, right = st.columns([7, 5], gap="medium")
        with right, notices.told():
            what = panel({entry.kind for entry in entries})
        with left, notices.told():
            stage(what)


def nothing() -> None:
    notices.empty(
        "Nothing to blend yet",
        "Here two styles become one: choose adapters, give each a weight, and keep the result as a file. "
        "Train two samples first, or add adapters that you have to the library.",
        ":material/blender:",
    )
    with st.container(horizontal=True):
        if st.button("Train a sample", type="primary", icon=":material/school:", key="blend.train"):
            state.go("train", style="ink")
        if st.button("Add adapters", icon=":material/add:", key="blend.library"):
            state.go("library")


# --- what can be set -------------------------------------------------------------------------------------------------


def panel(kinds: set[str]) -> str:
    """What to make, of which adapters, how; gives what."""
    bound = state.bind("blend.what", "blend", shown="default")
    what = st.segmented_control("Make", list(WHAT), format_func=WHAT.__getitem__, label_visibility="collapsed",
                                required=True, width="stretch", **bound)  # fmt: skip
    st.caption(ABOUT[what])
    kind = kind_of(kinds)
    rack.show(RACK, kind)
    if not rack.slots(RACK):
        elsewhere(kind)
    {"blend": blending, "merge": merging, "export": exporting}[what](kind)
    return str(what)


def kind_of(kinds: set[str]) -> str:
    """Pictures or text: asked only where there are both and none is chosen yet."""
    if hung := rack.slots(RACK):
        return state.engine().library.entry(hung[0]["id"]).kind
    if len(kinds) == 1:
        return next(iter(kinds))
    return str(st.segmented_control("Of adapters for", list(KINDS), format_func=KINDS.__getitem__, required=True,
                                    **state.bind("blend.kind", "pictures", shown="default")))  # fmt: skip


def elsewhere(kind: str) -> None:
    """Take over what hangs in another page's rack."""
    place = adapter.PLACES[kind][1]
    if hung := rack.sounding(place):
        st.button(f"Take the {len(hung)} from the {'Text' if kind == 'text' else 'Generate'} page", key="blend.take",
                  icon=":material/input:", on_click=state.put, args=(RACK, hung))  # fmt: skip


def blending(kind: str) -> None:
    cutting.show()
    with st.grid(2, min_column_width=140, gap="small"):
        name = st.text_input("Name", placeholder=usual_name(), **state.bind("blend.name", ""))
        dtype = st.selectbox("Numbers", DTYPES, **state.bind("blend.dtype", "fp16", DTYPES))
    base = needed_base(kind)
    replace = st.checkbox("Replace a file of that name", **state.bind("blend.overwrite", False))
    if st.button("Blend", type="primary", icon=":material/blender:", key="blend.go", width="stretch",
                 disabled=len(rack.sounding(RACK)) < 1):  # fmt: skip
        from studio.desk.jobs import Blend

        values = cutting.chosen() | {"dtype": dtype, "overwrite": replace, "base": base}
        ask("blend", Blend(rack.uses(RACK), typed_name(name) or usual_name(), **values))


def usual_name() -> str:
    """ "ink and neon"."""
    library = state.engine().library
    return " and ".join(library.entry(slot["id"]).name for slot in rack.sounding(RACK)) or "my blend"


def merging(kind: str) -> None:
    base = bases.pick(f"blend.base.{kind}", kind)
    name = st.text_input("Name", placeholder=f"{Path(base).stem} with {usual_name()}",
                         **state.bind("blend.merged", ""))  # fmt: skip
    if st.button("Merge", type="primary", icon=":material/merge:", key="blend.merge", width="stretch",
                 disabled=not rack.sounding(RACK)):  # fmt: skip
        from studio.desk.jobs import Merge

        ask("merge", Merge(rack.uses(RACK), typed_name(name) or f"{Path(base).stem} with {usual_name()}", base))


def needed_base(kind: str, anyway: bool = False) -> str | None:
    """A picker of a base where an adapter that sounds is a DoRA, which can't be read without; else None."""
    library = state.engine().library
    dora = adapter.needs_base(library.entry(slot["id"]) for slot in rack.sounding(RACK))
    if dora:
        st.caption("One of these is a DoRA: what it changes depends on the base it was trained on.")
    return bases.pick(f"blend.base.{kind}", kind) if dora or anyway else None


def exporting(kind: str) -> None:
    formats = ("peft", "gguf") if kind == "text" else ("kohya", "diffusers", "peft")
    to = st.selectbox("Format", formats, format_func=lambda one: f"{one}: {FORMATS[one]}",
                      **state.bind(f"blend.to.{kind}", formats[0], formats))  # fmt: skip
    base = needed_base(kind, to == "gguf")
    many = len(rack.sounding(RACK))
    if many > 1:
        st.caption("The first of them is written; to have all in one file, blend them first.")
    if st.button("Export", type="primary", icon=":material/output:", key="blend.export", width="stretch",
                 disabled=not many):  # fmt: skip
        from studio.desk.jobs import Export

        ask("export", Export(rack.uses(RACK)[:1], to, base=base))


def ask(what: str, job: Any) -> None:
    """Give it to the engine; the stage follows it."""
    hung = rack.sounding(RACK)
    state.put(f"blend.job.{what}", {"job": state.engine().submit(state.desk(), job), "rack": hung})
    st.rerun()


# --- what was made ---------------------------------------------------------------------------------------------------


def stage(what: str) -> None:
    """The last job of this kind: as it goes on, or what came of it."""
    kept = state.get(f"blend.job.{what}")
    if not kept:
        icon = {"blend": ":material/blender:", "merge": ":material/merge:", "export": ":material/output:"}[what]
        notices.empty(WHAT[what], "Choose adapters and their weights, then press the button below them.", icon)
        return
    job = int(kept["job"])
    if progress.going(job):
        progress.follow(job, lambda snapshot: None, cancel=what != "merge")
        return
    snapshot = progress.look(job)
    progress.outcome(snapshot)
    if snapshot.state == "done" and snapshot.result:
        {"blend": blended, "merge": merged, "export": exported}[what](job, snapshot, kept["rack"])
        notices.notes(snapshot.result)


def blended(job: int, snapshot: Snapshot, hung: list[rack.Slot]) -> None:
    """The new adapter, what it kept, and a comparison."""
    facts = snapshot.result or {}
    try:
        entry = state.engine().library.entry(facts["id"])
    except StyloraError:
        st.info("This blend is no longer in the library.", icon=":material/info:")
        return
    st.subheader(notices.plain(entry.name))
    total = facts["total"]
    st.caption(f"{notices.plain(gallery.facts(entry))} · in the library")
    with st.grid(3, min_column_width=110, gap="small"):
        st.metric("Energy kept", f"{total['share']:.2%}")
        st.metric("In the file", f"{total['in_file']:.2%}", help="After rounding to the file's numbers")
        st.metric("Ranks", total["ranks"])
    with st.container(horizontal=True, gap="small"):
        with st.container(width=130):
            adapter.use_button(entry, "blend")
        adapter.download(entry, "blend.download")
        for what, label in (("merge", "Merge into a base"), ("export", "Export")):
            st.button(label, key=f"blend.then.{what}", on_click=then, args=(what, entry.id))
    st.markdown("**Energy kept, layer by layer**")
    st.vega_lite_chart(cutting.kept(facts["certificate"]), height=230, width="stretch")
    st.markdown("**Live blend beside the file**")
    with notices.told():
        beside.show(entry, rack.uses_of(hung))


def then(what: str, adapter_id: str) -> None:
    """Go on with the blended adapter alone."""
    state.put(RACK, [{"id": adapter_id, "weight": 1.0}])
    state.put("blend.what", what)


def merged(job: int, snapshot: Snapshot, hung: list[rack.Slot]) -> None:
    """The receipt."""
    facts = snapshot.result or {}
    path = state.engine().file(job, state.desk())
    st.subheader(notices.plain(path.name))
    st.success(f"**Proved.** {notices.plain(facts['proved'])}", icon=":material/verified:")
    st.caption(f"{facts['modules']} of the base's modules were changed.")
    if facts["answers"]:
        st.markdown("**The same question to the merged base and to the base with its adapters**")
        told = "off by {} at most ({} of its size, {} of what the adapters do); {} would be allowed"
        notices.table({str(what): told.format(*shares) for what, *shares in facts["answers"]})
    for base in (str(state.engine().store.job(job, state.desk()).spec["base"]), str(path)):
        if base not in bases.recent(kind := kind_in(hung)):
            bases.used(base, kind)
    st.markdown("It is among the bases now: choose it where a page asks for one.")
    download(path)


def kind_in(hung: list[rack.Slot]) -> str:
    """What its adapters are for; pictures where they are gone."""
    try:
        return state.engine().library.entry(hung[0]["id"]).kind
    except (StyloraError, IndexError):
        return "pictures"


def exported(job: int, snapshot: Snapshot, hung: list[rack.Slot]) -> None:
    facts = snapshot.result or {}
    path = state.engine().file(job, state.desk())
    st.subheader(notices.plain(path.name))
    st.caption(f"{facts['modules']} modules as {facts['dtype']}")
    download(path)


def download(path: Path) -> None:
    """A file as it is, a folder as .zip; made when it is asked for."""
    made = partial(downloads.opened, path, state.engine().home / ".studio")
    st.download_button("Download", made, downloads.name_of(path), icon=":material/download:", type="primary",
                       key="blend.get", on_click="ignore")  # fmt: skip


if __name__ == "__main__":
    page()
