"""An X/Y grid: any two settings varied, drawn as one sheet.

Try it: `stylora app`, then Generate, then "X/Y grid"
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import streamlit as st

from studio.app import state
from studio.app.parts import rack

if TYPE_CHECKING:
    from studio.draw.axes import Axes

NONE = "nothing"
VALUES = {  # axis -> values to begin with
    "seed": "1..4", "prompt": "a boat|a house", "negative": "|dark", "guidance": "2, 5, 7.5, 12", "steps": "5, 10, 25",
    "sampler": "ddim, euler, dpm++2m", "adapter": "0..1.5/4", "te": "0..1/3", "block": "0..1.5/4",
}  # fmt: skip
WORDS = {
    "seed": "seed", "prompt": "prompt", "negative": "negative prompt", "guidance": "guidance", "steps": "steps",
    "sampler": "sampler", "adapter": "weight of {}", "te": "{} in the text encoder", "block": "blocks {}",
}  # fmt: skip
BLOCKS = ("IN", "MID", "OUT")


def choices() -> dict[str, str]:
    """{axis as it is written: in words}, for the rack as it is."""
    found = {NONE: NONE} | {name: WORDS[name] for name in VALUES if name not in ("adapter", "te", "block")}
    hung = rack.sounding(rack.PICTURES)
    for k, slot in enumerate(hung[:26]):
        name = state.engine().library.entry(slot["id"]).name
        for kind in ("adapter", "te"):
            found[f"{kind}:{chr(ord('A') + k)}"] = WORDS[kind].format(name)
    return found | {f"block:{block}": WORDS["block"].format(block) for block in BLOCKS if hung}


def show() -> bool:
    """The form; True: the sheet is wanted."""
    words = choices()
    for side, usual in (("x", "seed"), ("y", NONE)):
        kept = state.get(f"generate.{side}", usual)
        if kept not in words:  # an adapter that was taken off
            state.put(f"generate.{side}", usual)
        with st.grid(2, min_column_width=130, gap="small", vertical_alignment="bottom"):
            axis = st.selectbox("Across" if side == "x" else "Down", list(words), format_func=words.__getitem__,
                                **state.bind(f"generate.{side}", usual, words))  # fmt: skip
            if axis != NONE:
                kind = axis.partition(":")[0]
                st.text_input("Values", help="0..1/5: five from 0 to 1; 1, 2, 3; for prompts a boat|a house",
                              **state.bind(f"generate.{side}.{kind}", VALUES[kind]))  # fmt: skip
    return st.button("Draw the sheet", icon=":material/grid_on:", key="generate.sheet", width="stretch")


def use(axes: Axes, letters: bool = True) -> None:
    """Take over the axes of a recipe's sheet; without `letters` none that names an adapter by its place in the rack."""
    for side, written in (("x", axes.x), ("y", axes.y)):
        axis, _, values = written.partition("=")
        kind, _, place = axis.partition(":")
        if not axis or (place and kind != "block" and not letters):
            state.put(f"generate.{side}", NONE)
        else:
            state.put(f"generate.{side}", axis)
            state.put(f"generate.{side}.{kind}", values)


def axes() -> Axes:
    """As recipes take it."""
    from studio.draw.axes import Axes

    return Axes(x=_written("x", "seed"), y=_written("y", NONE))


def _written(side: str, usual: str) -> str:
    axis = str(state.get(f"generate.{side}", usual))
    kind = axis.partition(":")[0]
    return "" if axis == NONE else f"{axis}={state.get(f'generate.{side}.{kind}', VALUES[kind])}"
