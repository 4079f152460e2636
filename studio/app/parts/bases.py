"""Which base: the embedded ones, a few by name, those used before, or any folder or hub id typed in.

Try it: `stylora app`
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from studio.app import state

PICTURES, TEXTS = ("tiny-sd", "sd15"), ("tiny-lm",)
MOST = 8  # of those used before
HELP = {
    "pictures": "tiny-sd comes with stylora (64 pixels, seconds on any machine). sd15 is loaded from the hub once. "
    "Or type a folder of diffusers, a .safetensors file, or a hub id (owner/name).",
    "text": "tiny-lm comes with stylora. Or type a folder of transformers, or a hub id (owner/name).",
}


def usual(kind: str = "pictures") -> str:
    """The base the studio was started with."""
    asked = state.options()
    return asked.base if kind == "pictures" else asked.text_base


def pick(name: str, kind: str = "pictures", label: str = "Base") -> str:
    """A picker of a base, kept in the draft `name`; gives what is chosen."""
    embedded = PICTURES if kind == "pictures" else TEXTS
    found = dict.fromkeys([*embedded, usual(kind), *recent(kind), str(state.get(name, usual(kind)))])
    chosen = st.selectbox(label, list(found), accept_new_options=True, help=HELP[kind], format_func=called,
                          **state.bind(name, usual(kind), found))  # fmt: skip
    return str(chosen or usual(kind)).strip()


def called(base: str) -> str:
    """A base in the list: one that was merged here by its name."""
    path = Path(base)
    return f"{path.name} (merged here)" if state.engine().home / ".studio" in path.parents else base


def recent(kind: str = "pictures") -> list[str]:
    """Bases that were used, the newest first, by anyone."""
    kept = state.engine().store.get(f"bases/{kind}")
    return [str(base) for base in kept] if isinstance(kept, list) else []


def used(base: str, kind: str = "pictures") -> None:
    """Remember that a base was used."""
    before = recent(kind)
    if before[:1] != [base]:
        state.engine().store.put(f"bases/{kind}", [base, *(one for one in before if one != base)][:MOST])
