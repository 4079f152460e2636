"""The page where a language model writes in the styles of a rack: a prompt or a chat, the bare base beside it.

Try it: `stylora app`, then Text
"""

from __future__ import annotations

import streamlit as st

from studio.app import state
from studio.app.parts import bases, notices, rack, texts, writing

FIRST = "One morning Agnes"
KIND = "text"


def page() -> None:
    """The panel is run first, so that the text that was asked for in this very run is shown."""
    left, right = st.columns([7, 5], gap="medium")
    with right, notices.told():
        mode = panel()
    with left, notices.told():
        job = texts.current()
        if mode == "chat":
            texts.talk(job)
        elif job is None:
            begin()
        else:
            texts.show(job)
    with notices.told():
        texts.history()


def panel() -> str:
    """Everything that can be set."""
    mode = writing.mode()
    asked = False
    if mode == "prompt":
        bound = state.bind("text.prompt", "")
        st.text_area("Prompt", height=110, placeholder=f"{FIRST} …", help="The base goes on where it ends.", **bound)
        asked = st.button("Write", type="primary", icon=":material/ink_pen:", key="text.go", shortcut="Ctrl+Enter")
    bases.pick("text.base", KIND)
    rack.show(writing.RACK, KIND, prompt="text.prompt")
    writing.between()
    if rack.slots(writing.RACK):
        st.toggle("Beside it, what the bare base writes", **state.bind("text.compare", True))
    styles()
    with st.expander("Seed, length, sampling …", icon=":material/tune:", expanded=True):
        writing.numbers()
    if asked:
        writing.write(str(writing.draft("prompt")))
    return mode


def styles() -> None:
    """How to come by a style."""
    there = any(entry.kind == KIND for entry in state.engine().library.cards())
    if not there:
        st.caption("No text styles in the library yet. A voice is learned from some pages of text.")
    if st.button("Train a style from your text", icon=":material/school:", key="text.train",
                 type="tertiary" if there else "secondary"):  # fmt: skip
        state.go("train", style=None)


def begin() -> None:
    """The empty state: one click gives a text."""
    notices.empty(
        "Write a first text",
        "Write how it begins and press **Write**, or take one of these. `tiny-lm` comes with stylora: it tells small "
        "stories, at once, on any machine.",
        ":material/ink_pen:",
    )
    with st.container(horizontal=True):
        st.button(f"Go on from “{FIRST}”", type="primary", icon=":material/ink_pen:", key="begin.write", on_click=first)
        if st.button("Teach it the sample voice “pirate”", icon=":material/school:", key="begin.voice"):
            state.go("train", style="pirate")


@notices.safely
def first() -> None:
    state.put("text.prompt", FIRST)
    writing.write(FIRST)


if __name__ == "__main__":
    page()
