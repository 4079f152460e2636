"""The frame around the studio's pages: theme, the five pages, what went wrong. Streamlit runs it at every change.

Try it: `stylora app`
"""

from __future__ import annotations

import streamlit as st

from studio.app import state
from studio.app.parts import look, notices

PAGES = {
    "generate": ("Generate", ":material/brush:"),
    "library": ("Library", ":material/photo_library:"),
    "train": ("Train", ":material/school:"),
    "blend": ("Blend & merge", ":material/blender:"),
    "text": ("Text", ":material/ink_pen:"),
}


def main() -> None:
    """One run of the frame and of the page that is open."""
    st.set_page_config("Stylora", page_icon=look.icon(), layout="wide", initial_sidebar_state="collapsed")
    look.dress()
    pages = [
        st.Page(state.PAGES[name], title=title, icon=icon, url_path=name, default=name == "generate")
        for name, (title, icon) in PAGES.items()
    ]
    with notices.told():
        state.sit_down()
        opened = st.navigation(pages, position="top")
        notices.say_toasts()
        faults = st.container()
        opened.run()
        with faults:
            for error in state.faults():
                notices.show_error(error)


if __name__ == "__main__":
    main()
