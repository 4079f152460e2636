"""What a desk has drawn, the newest first, page by page.

Try it: `stylora app`, then Generate
"""

from __future__ import annotations

import streamlit as st

from studio.app import state
from studio.app.parts import gallery

PAGE = 24
STRIP = 8


def strip() -> None:
    """The last few in one row, below the canvas."""
    pictures = gallery.there(state.engine().store.pictures(state.desk(), STRIP))
    if len(pictures) > 1:
        with st.grid(STRIP, min_column_width=36, wrap=False, gap="xsmall"):
            for picture in pictures:
                gallery.tile(picture, 128, "strip")


def show() -> None:
    """The gallery; nothing where nothing was drawn."""
    pages = int(state.noted("history.pages", 1))
    pictures = state.engine().store.pictures(state.desk(), pages * PAGE + 1)
    if not pictures:
        return
    st.subheader("History", divider="gray")
    found = gallery.there(pictures[: pages * PAGE], tell=True)
    with st.grid("auto", min_column_width=120, gap="small"):
        for picture in found:
            gallery.tile(picture)
    if len(pictures) > pages * PAGE:
        st.button("Show older ones", key="history.more", on_click=state.note, args=("history.pages", pages + 1))
