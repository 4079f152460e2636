"""What a style is learned from: dropped, pasted, a sample or a folder; shown with captions to edit and its faults.

Try it: `stylora app`, then Train
"""

from __future__ import annotations

import hashlib
import html
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import streamlit as st

from studio.app import config, state
from studio.app.parts import notices
from studio.desk import dataset_view
from studio.desk.dataset_view import Picture, Text, View, Wishes
from studio.desk.datasets import KINDS, LARGEST, Added, Datasets

STYLE = "train.style"  # the draft: a name of `names` or `samples`, or a folder
PAGE = 24
TEXTS = 6
BREAKS = {"whole": "One text", "paragraph": "A text for each paragraph", "line": "A text for each line"}


def datasets() -> Datasets:
    """Those of this desk; the library's folders may be read as well."""
    home, *roots = state.engine().library.roots
    return Datasets(home, roots, state.desk())


def choose(place: str) -> None:
    """Open a dataset on the page; "" none."""
    state.put(STYLE, place or None)
    state.note("material.shown", PAGE)


def opened() -> Path | None:
    """The folder that is open, if it is still there."""
    place = str(state.get(STYLE, "") or "")
    if not place:
        return None
    with notices.told():
        return datasets().open(place)
    choose("")
    return None


def kind_of(folder: Path) -> str:
    """ "pictures", "text" or "empty"; without reading more than names."""
    from trainers import dataset, documents

    if documents.holds_texts(folder):
        return "text"
    return "pictures" if any(group.pictures for group in dataset.groups(folder)) else "empty"


# --- to begin with ---------------------------------------------------------------------------------------------------


def begin() -> None:
    """No dataset is open: drop, paste, or take a sample."""
    notices.empty(
        "What should it learn?",
        "Drop ten to forty pictures in one style (captions as .txt of the same name, if you have them), or texts in "
        "one voice. Or take a sample: it is there already.",
        ":material/school:",
    )
    uploader(None)
    paste(None)
    samples()
    own()


def uploader(folder: Path | None) -> None:
    """Drop files into a dataset, or into a new one."""
    files = st.file_uploader("Pictures, captions, texts", [*KINDS], accept_multiple_files=True,
                             key=state.upload_key("material.drop"),
                             max_upload_size=config.largest(state.options(), LARGEST["picture"] // 10**6))  # fmt: skip
    if not files:
        return
    with notices.told():
        try:
            place = folder or datasets().create(Path(files[0].name).stem.rstrip("_-0123456789 ") or "my style")
            tell(datasets().add(place, [(file.name, file.getvalue()) for file in files]))
        finally:
            state.forget_uploads("material.drop", files)
        choose(str(place))
        st.rerun()


def tell(added: Added) -> None:
    """What became of an upload."""
    if added.names:
        notices.toast(f"{len(added.names)} file{'s' * (len(added.names) != 1)} added")
    for refused in added.refused:
        notices.toast(f"Not taken: {refused}")


def paste(folder: Path | None) -> None:
    """Text typed or pasted, as a voice to learn."""
    with st.expander("Paste text", icon=":material/content_paste:"), st.form("material.paste", border=False):
        text = st.text_area("Text in one voice", height=160, placeholder="Ahoy there, matey …")
        each = st.segmented_control("Taken as", list(BREAKS), format_func=BREAKS.__getitem__, default="paragraph")
        if st.form_submit_button("Add this text"):
            with notices.told():
                place = folder or datasets().create("my voice")
                datasets().paste(place, text, each or "whole")
                choose(str(place))
                st.rerun()


def samples() -> None:
    """The styles that came with stylora, as tiles."""
    st.subheader("Samples", divider="gray")
    with st.grid("auto", min_column_width=120, gap="small"):
        for name, folder in datasets().samples().items():
            with st.container(key=f"tile_sample_{name}", gap="xsmall"):
                if cover := next(iter(sorted(folder.glob("*.png"))), None):
                    st.image(dataset_view.thumbnail(cover), width="stretch")
                else:
                    st.html(f'<div class="voice">{html.escape(_first_words(str(folder)))}</div>')
                st.button(f"Open {name}", key=f"sample.{name}", on_click=choose, args=(name,))
                st.markdown(f"**{notices.plain(name)}**")


@st.cache_data(show_spinner=False)
def _first_words(folder: str) -> str:
    texts = dataset_view.look(Path(folder), "").texts
    learned = next((run for text in texts for run, learned in text.runs if learned), "")
    return learned.removeprefix("assistant: ")[:130] + " …"


def own() -> None:
    """Datasets of before, and any folder under the allowed roots."""
    if names := datasets().names():
        st.subheader("Yours", divider="gray")
        with st.container(horizontal=True, gap="small"):
            for name in names:
                st.button(notices.plain(name), key=f"own.{name}", icon=":material/folder:",
                          on_click=choose, args=(str(datasets().own / name),))  # fmt: skip
    with st.form("material.folder", border=False), st.container(horizontal=True, vertical_alignment="bottom"):
        place = st.text_input("Or a folder on this machine", placeholder=str(state.engine().home / "my pictures"))
        if st.form_submit_button("Open") and place.strip():
            with notices.told():
                choose(str(datasets().open(place.strip())))
                st.rerun()


# --- what is open ----------------------------------------------------------------------------------------------------


def look(folder: Path, base: str, wishes: Wishes, supervise: str) -> View:
    """All that is shown of it; read anew where a file of it has changed. Raises BaseError."""
    return _look(str(folder), base, wishes, supervise, _stamp(folder))


@st.cache_data(max_entries=16, show_spinner="Looking at the data …", hash_funcs={Wishes: repr})
def _look(folder: str, base: str, wishes: Wishes, supervise: str, stamp: str) -> View:
    return dataset_view.look(Path(folder), base, wishes, supervise=supervise)


def _stamp(folder: Path) -> str:
    told = sorted(f"{path} {path.stat().st_mtime_ns}" for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def show(folder: Path, view: View | None, said: Sequence[str] = ()) -> None:
    """The open dataset: its name, what is wrong with it, its pictures or texts, and adding more.

    Notes that are `said` elsewhere on the page aren't said again.
    """
    editable = datasets().editable(folder)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.subheader(notices.plain(folder.name), width="stretch")
        st.button("Other data", icon=":material/arrow_back:", key="material.back", on_click=choose, args=("",))
        if not editable:
            st.button("Copy to edit", icon=":material/content_copy:", key="material.copy", on_click=copy,
                      args=(folder,))  # fmt: skip
    if view:
        for fault in view.faults:
            st.error(notices.plain(fault), icon=":material/error:")
        notices.aside(note for note in view.notes if note not in said)
        if view.kind == "pictures":
            pictures(folder, view, editable)
        elif view.kind == "text":
            texts(view)
    if editable:
        with st.expander("Add more", icon=":material/add:", expanded=bool(view and view.kind == "empty")):
            uploader(folder)
            paste(folder)
        taken_out(folder)


def trigger_of(folder: Path) -> tuple[str, str]:
    """The draft of a dataset's trigger word, and what it begins as."""
    sample = folder in datasets().samples().values()
    return f"train.trigger.{folder.name}", f"{folder.name} style" if sample else ""


@notices.safely
def copy(folder: Path) -> None:
    """Into a dataset of one's own; the trigger word comes along."""
    new = datasets().copy(folder, f"my {folder.name}")
    state.put(trigger_of(new)[0], state.get(*trigger_of(folder)))
    choose(str(new))


def pictures(folder: Path, view: View, editable: bool) -> None:
    """By bucket, the faulty ones first; caption and faults below each."""
    with st.container(horizontal=True, gap="xsmall"):
        for (width, height), count in view.buckets.items():
            st.badge(f"{width} x {height}: {count}", color="gray", icon=":material/crop:")
    order = [*view.buckets]
    ranked = sorted(view.pictures, key=lambda one: (not one.faults, order.index(one.bucket) if one.bucket else -1))
    shown = int(state.noted("material.shown", PAGE))
    with st.grid("auto", min_column_width=150, gap="small"):
        for picture in ranked[:shown]:
            card(folder, picture, editable)
    if len(ranked) > shown:
        st.button(f"Show more of {len(ranked)}", key="material.more", on_click=state.note,
                  args=("material.shown", shown + PAGE))  # fmt: skip


def card(folder: Path, picture: Picture, editable: bool) -> None:
    """One picture; its caption is written when it is changed."""
    key = hashlib.sha256(str(picture.path).encode()).hexdigest()[:12]
    with st.container(gap="xsmall", key=f"picture_{key}"):
        with notices.told():
            st.image(dataset_view.thumbnail(picture.path), width="stretch")
        if editable:
            bound = state.bound(f"caption.{key}", picture.caption, partial(edit, folder, picture.name))
            st.text_area(f"Caption of {picture.name}", height=68, label_visibility="collapsed",
                         placeholder="no caption", **bound)  # fmt: skip
        else:
            st.caption(notices.plain(picture.caption or "no caption"))
        for fault in picture.faults:
            st.markdown(f":red[:material/error: {notices.plain(fault)}]")
        for note in picture.notes:
            st.caption(f":orange[{notices.plain(note)}]")
        if editable:
            st.button("Take out", key=f"out.{key}", type="tertiary", icon=":material/close:",
                      on_click=take_out, args=(folder, picture.name), help=picture.name)  # fmt: skip


def edit(folder: Path, name: str, caption: str) -> None:
    datasets().edit_caption(folder, name, caption)


@notices.safely
def take_out(folder: Path, name: str) -> None:
    datasets().remove(folder, name)


def taken_out(folder: Path) -> None:
    """What was taken out, to be put back."""
    if not (names := datasets().removed(folder)):
        return
    with st.expander(f"Taken out ({len(names)})", icon=":material/delete:"), st.container(horizontal=True):
        for name in names:
            st.button(f"Put back {notices.plain(name)}", key=f"back.{name}", on_click=put_back, args=(folder, name))


@notices.safely
def put_back(folder: Path, name: str) -> None:
    datasets().restore(folder, name)


# --- texts -----------------------------------------------------------------------------------------------------------


def texts(view: View) -> None:
    """The first few, what is learned marked."""
    kept = sum(text.heldout for text in view.texts)
    st.caption(f"{len(view.texts)} texts, {kept} of them kept apart to measure on. What is marked is learned.")
    marked([(text.name, list(text.runs)) for text in _mixed(view.texts)])


def _mixed(found: tuple[Text, ...]) -> list[Text]:
    """A few from all over."""
    return list(found[:: max(1, len(found) // TEXTS)])[:TEXTS]


def marked(samples: list[tuple[str, list[tuple[str, bool]]]]) -> None:
    """Texts cut where learning begins and ends: learned parts are marked."""
    for name, runs in samples:
        parts = [f"<mark>{html.escape(run)}</mark>" if learned else html.escape(run) for run, learned in runs]
        st.html(f'<div class="receipt"><small>{html.escape(name)}</small><br>{" ".join(parts)}</div>')
