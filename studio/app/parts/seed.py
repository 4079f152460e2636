"""The seed of a page's next picture or text, with dice and lock: drafts of the desk.

Try it: `stylora app`
"""

from __future__ import annotations

import random
from typing import Any

import streamlit as st

from studio.app import state
from studio.app.parts import notices

USUAL: dict[str, Any] = {"seed": 7, "locked": False}
LARGEST = 2**31 - 1


def roll(page: str) -> None:
    """Another seed."""
    state.put(f"{page}.seed", random.randrange(LARGEST))


def show(page: str, what: str) -> None:
    """The controls; `what` it is the seed of: a picture, a text."""
    locked = bool(state.get(f"{page}.locked", USUAL["locked"]))
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", wrap=False):
        seed = state.bind(f"{page}.seed", USUAL["seed"])
        st.number_input("Seed", 0, LARGEST, step=1, width="stretch", **seed)
        st.button("", icon=":material/casino:", key=f"{page}.dice", on_click=notices.safely(roll),
                  args=(page,), help="Another seed")  # fmt: skip
        st.button("", icon=":material/lock:" if locked else ":material/lock_open:", key=f"{page}.lock",
                  help=f"Locked: the next {what} has this seed again" if locked else f"Open: each {what} a new seed",
                  type="primary" if locked else "secondary",
                  on_click=notices.safely(state.put), args=(f"{page}.locked", not locked))  # fmt: skip
