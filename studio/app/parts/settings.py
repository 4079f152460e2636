"""What a picture is asked for with: prompt, seed, size and numbers as drafts of the desk, and the recipe they make.

Try it: `stylora app`
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import streamlit as st

from studio.app import state
from studio.app.parts import bases, rack

if TYPE_CHECKING:
    from studio.draw.recipe import Recipe

RACK = "generate.rack"
OWN = "as the base likes"  # its own size, its own sampler
SIZES = (OWN, "64x64", "64x96", "96x64", "128x128", "512x512", "512x768", "768x512", "768x768", "1024x1024")
SAMPLERS = (OWN, "ddim", "euler", "euler-a", "dpm++2m", "dpm++2m-karras", "unipc", "pndm")  # as the families know them
USUAL: dict[str, Any] = {
    "prompt": "", "negative": "", "seed": 7, "locked": False, "size": OWN, "steps": 25, "guidance": 7.5, "count": 1,
    "sampler": OWN,
}  # fmt: skip
LARGEST_SEED = 2**31 - 1


def draft(name: str) -> Any:
    """What the desk asks for at the moment."""
    return bases.usual() if name == "base" and not state.get("generate.base") else (
        state.get(f"generate.{name}", USUAL.get(name))
    )  # fmt: skip


def add_word(word: str) -> None:
    """Put a trigger word at the end of the prompt, once."""
    prompt = str(draft("prompt"))
    if word not in prompt:
        state.put("generate.prompt", f"{prompt.rstrip(' ,')}, {word}" if prompt.strip() else word)


def roll() -> None:
    """Another seed."""
    state.put("generate.seed", random.randrange(LARGEST_SEED))


# --- widgets ---------------------------------------------------------------------------------------------------------


def _bind(name: str) -> dict[str, Any]:
    return state.bind(f"generate.{name}", USUAL[name])


def prompts() -> None:
    st.text_area("Prompt", height=88, placeholder="a blue boat at night", **_bind("prompt"))


def numbers() -> None:
    """Seed with dice and lock, then the rest; as many beside each other as there is room for."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", wrap=False):
        st.number_input("Seed", 0, LARGEST_SEED, step=1, width="stretch", **_bind("seed"))
        st.button("", icon=":material/casino:", key="generate.dice", on_click=roll, help="Another seed")
        locked = bool(draft("locked"))
        st.button("", icon=":material/lock:" if locked else ":material/lock_open:", key="generate.lock",
                  help="Locked: the next picture has this seed again" if locked else "Open: each picture a new seed",
                  type="primary" if locked else "secondary",
                  on_click=state.put, args=("generate.locked", not locked))  # fmt: skip
    with st.grid(2, min_column_width=140, gap="small"):
        st.slider("Steps", 1, 100, **_bind("steps"))
        st.slider("Guidance", 0.0, 20.0, step=0.5, **_bind("guidance"))
        sizes = list(dict.fromkeys([*SIZES, str(draft("size"))]))
        st.selectbox("Size", sizes, accept_new_options=True, help="WIDTHxHEIGHT in pixels", **_bind("size"))
        st.number_input("Pictures", 1, 16, step=1, **_bind("count"))
        st.selectbox("Sampler", SAMPLERS, **_bind("sampler"))
        st.text_input("Negative prompt", placeholder="what it should not be", **_bind("negative"))


# --- recipes ---------------------------------------------------------------------------------------------------------


def recipe() -> Recipe:
    """What the drafts ask for. Raises StyloraError: a size or a list of blocks that can't be read."""
    from studio.draw.recipe import Recipe, parse_size  # torch

    size, sampler = draft("size"), draft("sampler")
    return Recipe(
        prompt=draft("prompt"), negative=draft("negative"), base=draft("base"), adapters=rack.uses(RACK),
        seed=int(draft("seed")), count=int(draft("count")), steps=int(draft("steps")),
        guidance=float(draft("guidance")), size=None if size in (OWN, None) else parse_size(size),
        sampler=None if sampler in (OWN, None) else sampler,
    )  # fmt: skip


def wish() -> str:
    """The drafts and the rack as one text, to see whether anything was moved."""
    return repr([draft(name) for name in (*USUAL, "base") if name != "locked"]) + repr(rack.sounding(RACK))


def use(recipe: Recipe) -> list[str]:
    """Take a recipe's settings over; gives the names of adapters that aren't in the library."""
    values = {name: getattr(recipe, name) for name in ("prompt", "negative", "seed", "steps", "guidance", "base")}
    values |= {"count": 1, "locked": True, "sampler": recipe.sampler or OWN}
    values["size"] = "{}x{}".format(*recipe.size) if recipe.size else OWN
    for name, value in values.items():
        state.put(f"generate.{name}", value)
    there = state.engine().library.cards()
    slots, missing = [], []
    for use in recipe.adapters:
        entry = next((one for one in there if one.id == use.digest or one.path == use.path), None)
        if entry is None:
            missing.append(use.title)
            continue
        slot: dict[str, Any] = {"id": entry.id, "weight": use.gain.weight, "te": use.gain.text_encoder}
        if use.gain.blocks:
            from trainers.lora.blocks import format_blocks

            slot["typed"] = format_blocks(use.gain.blocks)
        slots.append(slot)
    state.put(RACK, slots)
    return missing


def draw(recipe: Recipe, slot: str | None = None, grid: bool = False) -> int:
    """Give the engine a drawing to do; the page follows it. Gives the job's number."""
    from studio.desk.jobs import Draw, Grid

    job = state.engine().submit(state.desk(), Grid(recipe) if grid else Draw(recipe), slot=slot)
    before = [] if slot else state.get("generate.jobs", [])
    state.put("generate.jobs", [*before, job])
    bases.used(recipe.base)
    return job
