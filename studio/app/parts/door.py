"""Who may come in when the studio is shared: one password, and after wrong ones a pause that grows.

Try it: `STYLORA_PASSWORD='a long secret' stylora app --share`
"""

from __future__ import annotations

import hmac
import os
import threading
import time

import streamlit as st

from studio.app import state
from studio.app.config import PASSWORD

LONGEST_PAUSE = 60.0  # seconds
FREE = 3  # wrong ones without a pause


class Lock:
    """Compares passwords; counts wrong ones over all browsers, since a new browser costs an attacker nothing."""

    def __init__(self, password: str) -> None:
        self._password, self._wrong, self._open_at = password.encode(), 0, 0.0
        self._turn = threading.Lock()

    def pause(self) -> float:
        """Seconds until the next try is looked at."""
        return max(0.0, self._open_at - time.monotonic())

    def opens(self, typed: str) -> bool:
        """Whether it is the password; False without a look during a pause."""
        with self._turn:
            if self.pause() or not self._password:
                return False
            if hmac.compare_digest(typed.encode(), self._password):
                self._wrong, self._open_at = 0, 0.0
                return True
            self._wrong += 1
            if self._wrong > FREE:
                self._open_at = time.monotonic() + min(LONGEST_PAUSE, 2.0 ** (self._wrong - FREE))
            return False


@st.cache_resource(show_spinner=False)
def lock() -> Lock:
    return Lock(os.environ.get(PASSWORD, ""))


def ask() -> None:
    """The page before the pages."""
    with st.container(horizontal_alignment="center"), st.container(key="door", width=420):
        st.title("Stylora")
        with st.form("door_form", border=False):
            typed = st.text_input("Password", type="password", autocomplete="current-password")
            asked = st.form_submit_button("Come in", type="primary", width="stretch")
    if not asked:
        return
    if lock().opens(typed):
        state.admit()
        st.rerun()
    wait = lock().pause()
    st.error(f"That is not it, or it came too soon. Try again in {wait:.0f} s." if wait >= 1 else "That is not it.")
