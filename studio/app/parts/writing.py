"""What a text is asked for with: prompt or chat, rack, sampling as drafts of the desk, and the job they make.

Try it: `stylora app`, then Text
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import streamlit as st

from studio.app import state
from studio.app.parts import bases, rack, seed
from studio.desk import recall

if TYPE_CHECKING:
    from studio.write.recipe import WritingRecipe

RACK, JOB, SAID = "text.rack", "text.job", "text.said"
USUAL: dict[str, Any] = {
    "prompt": "", "mode": "prompt", "system": "", **seed.USUAL, "count": 1, "max_tokens": 120,
    "temperature": 0.8, "top_p": 0.95, "top_k": 0, "repetition_penalty": 1.0, "compare": True,
}  # fmt: skip
MODES = {"prompt": "Prompt", "chat": "Chat"}
MUCH = 1.3  # of all weights together


def draft(name: str) -> Any:
    """What the desk asks for at the moment."""
    return state.get(f"text.{name}", bases.usual("text") if name == "base" else USUAL[name])


def _bind(name: str, **how: Any) -> dict[str, Any]:
    return state.bind(f"text.{name}", USUAL[name], **how)


# --- widgets ---------------------------------------------------------------------------------------------------------


def mode() -> str:
    return str(st.segmented_control("Write", list(MODES), format_func=MODES.__getitem__, required=True, width="stretch",
                                    label_visibility="collapsed", **_bind("mode", shown="default")))  # fmt: skip


def between() -> None:
    """With two styles in the rack: one slider from the one to the other."""
    hung = rack.slots(RACK)
    if sum(float(slot["weight"]) for slot in rack.sounding(RACK)) > MUCH:
        st.caption(":orange[:material/warning: Together they weigh more than one style does: the text may fall apart.]")
    if len(hung) != 2:
        return
    one, two = (state.engine().library.entry(slot["id"]).name for slot in hung)
    first, second = (float(slot["weight"]) for slot in hung)
    share = min(1.0, max(0.0, second / (first + second))) if first + second > 0 else 0.5
    st.slider(f"From {one} to {two}", 0.0, 1.0, step=0.05, help="Sets both weights, which add up to 1",
              **state.bound("text.between", round(share, 2), mix))  # fmt: skip


def mix(share: float) -> None:
    """Weights 1 - share and share."""
    for slot, weight in zip(rack.slots(RACK), (1 - share, share), strict=True):
        rack.hang(RACK, slot["id"], weight=round(weight, 2))


def numbers() -> None:
    """Seed with dice and lock, then sampling."""
    seed.show("text", "text")
    with st.grid(2, min_column_width=140, gap="small"):
        st.slider("Temperature", 0.0, 2.0, step=0.05, help="0: always the likeliest word", **_bind("temperature"))
        st.slider("Tokens at most", 10, 1000, step=10, **_bind("max_tokens"))
        st.slider("Top p", 0.05, 1.0, step=0.05, help="Only the likeliest words that make up this share",
                  **_bind("top_p"))  # fmt: skip
        st.number_input("Top k", 0, 1000, step=10, help="Only the k likeliest words; 0: all", **_bind("top_k"))
        st.slider("Repetition penalty", 1.0, 2.0, step=0.05, **_bind("repetition_penalty"))
        if draft("mode") == "prompt":
            st.number_input("Texts", 1, 8, step=1, **_bind("count"))
    if draft("mode") == "chat":
        st.text_input("Told first", placeholder="You are an old sailor.", **_bind("system"))


# --- jobs ------------------------------------------------------------------------------------------------------------


def recipe(prompt: str, chat: bool) -> WritingRecipe:
    """What the drafts ask for. Raises AdapterError: a list of blocks that can't be read."""
    from studio.write.recipe import WritingRecipe

    names = ("seed", "max_tokens", "temperature", "top_p", "top_k", "repetition_penalty")
    return WritingRecipe(
        prompt, chat, str(draft("system")) if chat else "", str(draft("base")), rack.uses(RACK),
        count=1 if chat else int(draft("count")), **{name: draft(name) for name in names},
    )  # fmt: skip


def write(prompt: str, chat: bool = False) -> None:
    """Ask for a text, or for the next answer; an older one that isn't ready is dropped."""
    from studio.desk.jobs import Write

    if not draft("locked") and state.get(JOB):
        seed.roll("text")
    said = tuple(state.get(SAID, [])) if chat else ()
    made = recipe(prompt, chat)
    job = Write(made, bool(draft("compare")) and bool(made.adapters), said)
    state.put(JOB, state.engine().submit(state.desk(), job, slot="write"))
    bases.used(made.base, "text")


def use(values: dict[str, Any], ids: dict[str, str]) -> list[str]:
    """Take over a text's settings, read from its recipe's table; gives the names of adapters that are gone.

    `ids` are those that its adapters' files had then.
    """
    for name in ("prompt", "base", "seed", "max_tokens", "temperature", "top_p", "top_k", "repetition_penalty"):
        if name in values:
            state.put(f"text.{name}", values[name])
    state.put("text.locked", True)
    library, slots, missing = state.engine().library, [], list[str]()
    there = {str(entry.path): entry for entry in library.cards()}
    for table in recall.updated(values.get("adapter", []), Path("/"), library, ids, missing):
        if entry := there.get(table["file"]):
            slots.append({"id": entry.id, "weight": float(table.get("weight", 1.0)), "typed": table.get("blocks", "")})
        else:
            missing.append(str(table.get("name") or table["file"]))
    state.put(RACK, slots)
    return missing
