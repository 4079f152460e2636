"""The page of all adapters: a gallery to search, what one adapter is and does, adding, renaming and the bin.

Try it: `stylora app`
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from studio.app import config, state
from studio.app.parts import adapter, gallery, notices
from trainers.errors import StyloraError

if TYPE_CHECKING:
    from streamlit.runtime.uploaded_file_manager import UploadedFile

    from studio.desk.library import Entry

PAGE = 48
ANY = "any"
KINDS = ["safetensors", "zip"]


def page() -> None:
    """One adapter where one is open, else the gallery."""
    with notices.told():
        state.engine().library.refresh(wait=False)
        entries = {entry.id: entry for entry in state.engine().library.cards()}
        opened = entries.get(state.get("library.open", ""))
        if opened:
            adapter.show(opened)
        else:
            shelf(bool(entries))


def shelf(any_there: bool) -> None:
    """Filters, the gallery, adding, the bin."""
    for text in state.noted("refused", []):
        st.error(text, icon=":material/error:")
    if not any_there:
        notices.empty(
            "No adapters yet",
            "An adapter is a small file that teaches a base model a style. Drop files you have below, "
            "or train one from pictures: the sample style takes a minute or two.",
            ":material/photo_library:",
        )
        if st.button("Train the sample style", type="primary", icon=":material/school:", key="library.train"):
            state.go("train", style="ink")
        add()
    else:
        found = filtered()
        st.caption(f"{len(found)} adapter{'s' * (len(found) != 1)}" if found else "No adapter is like that.")
        with st.grid("auto", min_column_width=150, gap="small", border=True):
            for entry in found[: shown()]:
                card(entry)
        if len(found) > shown():
            st.button("Show more", key="library.more", on_click=state.note, args=("library.shown", shown() + PAGE))
        with st.expander("Add adapters", icon=":material/add:", key="library.add"):
            add()
    bin()


def shown() -> int:
    return int(state.noted("library.shown", PAGE))


def filtered() -> list[Entry]:
    """What the filters leave."""
    library = state.engine().library
    everything = library.cards()
    families = [ANY, *sorted({entry.family for entry in everything})]
    tags = sorted({tag for entry in everything for tag in entry.tags})
    with st.grid(4, min_column_width=150, gap="small"):
        query = st.text_input("Search", placeholder="name, trigger word, tag …", **state.bind("library.query", ""))
        state.put("library.tags", [tag for tag in state.get("library.tags", []) if tag in tags])
        chosen = st.multiselect("Tags", tags, placeholder="any", **state.bind("library.tags", [], shown="default"))
        family = st.selectbox("Family", families, format_func=lambda one: gallery.FAMILIES.get(one, one),
                              **state.bind("library.family", ANY, families))  # fmt: skip
        names = [ANY, *sorted({entry.base_name for entry in everything if entry.base_name})]
        base = st.selectbox("Base", names, **state.bind("library.base", ANY, names))
    found = library.cards(query, tuple(chosen), "" if family == ANY else family, "" if base == ANY else base)
    return sorted(found, key=lambda entry: entry.error is not None)  # broken files last


def card(entry: Entry) -> None:
    """One adapter in the gallery; its picture opens it."""
    with st.container(gap="xsmall", key=f"entry_{entry.id[:16]}"):
        with st.container(key=f"tile_entry_{entry.id[:16]}"):
            st.image(gallery.thumbnail(entry), width="stretch")
            st.button(f"Open {entry.name}", key=f"entry.open.{entry.id}", on_click=adapter.open, args=(entry.id,))
        st.markdown(f"**{notices.plain(entry.name)}**")
        st.caption(notices.plain(gallery.facts(entry)))
        with st.container(horizontal=True, gap="xsmall"):
            for tag in (*((entry.trigger,) if entry.trigger else ()), *entry.tags[:3]):
                st.badge(notices.plain(tag), color="gray")
        adapter.use_button(entry, "entry")


def add() -> None:
    """By upload, or by a path below the allowed folders."""
    library = state.engine().library
    files = st.file_uploader("Adapter files, or PEFT folders as .zip", KINDS, accept_multiple_files=True,
                             key=state.upload_key("library.upload"),
                             max_upload_size=config.largest(state.options()))  # fmt: skip
    if files:
        try:
            take(files)
        finally:
            state.forget_uploads("library.upload", files)
        st.rerun()
    with st.form("library.path", border=False), st.container(horizontal=True, vertical_alignment="bottom"):
        path = st.text_input("Or a file or folder on this machine", placeholder="runs/ink", width="stretch")
        if st.form_submit_button("Add") and path.strip():
            with notices.told():
                notices.toast(f"{library.add_path(Path(path.strip())).name} is in the library")
                st.rerun()


def take(files: Sequence[UploadedFile]) -> None:
    """Each for itself: a broken one is told and keeps no other out."""
    refused = []
    for file in files:
        try:
            notices.toast(f"{state.engine().library.add_file(file.name, file.getvalue()).name} is in the library")
        except StyloraError as error:
            refused.append(notices.in_words(error))
    state.note("refused", refused)


def bin() -> None:
    """What was removed, to be had again."""
    removed = state.engine().library.removed()
    if not removed:
        return
    with st.expander(f"Bin ({len(removed)})", icon=":material/delete:"):
        for entry in removed:
            with st.container(horizontal=True, vertical_alignment="center"):
                st.markdown(notices.plain(entry.name), width="stretch")
                place = entry.path.relative_to(state.engine().library.home)  # what is removed twice lies there twice
                st.button("Restore", key=f"bin.{place}", on_click=restore, args=(entry.id, entry.path))
        with st.popover("Empty the bin", icon=":material/delete_forever:"):
            these = "adapter" if len(removed) == 1 else f"{len(removed)} adapters"
            st.markdown(f"Deletes the {these} above for good, for everyone.")
            st.button("Delete for good", key="bin.empty", type="primary", on_click=empty)


@notices.safely
def restore(adapter_id: str, path: Path) -> None:
    back = state.engine().library.restore(adapter_id, path)
    name = path.stem
    same = f"; it holds the same numbers as {back.name}, and shares its card" if back.name != name else ""
    notices.toast(f"{name} is in the library again{same}")


@notices.safely
def empty() -> None:
    gone = state.engine().library.empty_bin()
    notices.toast(f"{gone} deleted")


if __name__ == "__main__":
    page()
