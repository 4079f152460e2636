"""The page where pictures are drawn: the canvas, beside it base, rack and numbers, below it what was drawn before.

Try it: `stylora app`
"""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from studio.app import state
from studio.app.parts import bases, canvas, history, notices, rack, seed, settings, sheet
from trainers.errors import StyloraError

FIRST = "a blue boat at night"
SAMPLE_STYLE = "ink"


def page() -> None:
    """The page. The panel is run first, so that the canvas shows what was asked for in this very run."""
    left, right = st.columns([7, 5], gap="medium")
    with right, notices.told():
        panel()
    with left, st.container(key="stage"), notices.told():
        canvas.settle()
        if not canvas.show():
            begin()
        history.strip()
    history.show()


def panel() -> None:
    """Everything that can be set."""
    settings.prompts()
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        asked = st.button("Generate", type="primary", icon=":material/brush:", key="generate.go",
                          shortcut="Ctrl+Enter")  # fmt: skip
        auto = st.toggle("Draw as I move sliders", **state.bind("generate.auto", False))
    with notices.told():  # before the rest is made: the models can begin
        if asked:
            generate()
        elif auto and state.noted("wish") not in (None, settings.wish()):
            settings.draw(settings.recipe(), newest=True)
        state.note("wish", settings.wish())
    bases.pick("generate.base")
    rack.show(settings.RACK, prompt="generate.prompt")
    with st.expander("Seed, size, steps …", expanded=True, icon=":material/tune:", key="generate.numbers"):
        settings.numbers()
    with st.expander("X/Y grid", icon=":material/grid_on:", key="generate.grid"):
        grid = sheet.show()
    if grid:
        settings.draw(replace(settings.recipe(), count=1, grid=sheet.axes()), grid=True)


def generate() -> None:
    """A drawing of what is set; with an open lock the seed is a new one from the second picture on.

    Raises StyloraError: what is set can't be drawn; the seed stays.
    """
    before = settings.draft("seed")
    if not settings.draft("locked") and state.get("generate.drawn"):
        seed.roll("generate")
    try:
        settings.draw(settings.recipe())
    except StyloraError:
        state.put("generate.seed", before)
        raise
    state.put("generate.drawn", True)


def begin() -> None:
    """The empty state: one click gives a picture."""
    notices.empty(
        "Draw a first picture",
        "Write what you want to see and press **Generate**, or begin with one of these. "
        "`tiny-sd` comes with stylora: small pictures, in seconds, on any machine.",
    )
    with st.container(horizontal=True):
        st.button(f"Draw “{FIRST}”", type="primary", icon=":material/brush:", key="begin.draw",
                  on_click=notices.safely(first))  # fmt: skip
        if st.button(f"Teach it the sample style “{SAMPLE_STYLE}”", icon=":material/school:", key="begin.train"):
            state.go("train", style=SAMPLE_STYLE)


def first() -> None:
    state.put("generate.prompt", FIRST)
    generate()


if __name__ == "__main__":
    page()
