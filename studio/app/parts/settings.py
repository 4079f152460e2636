"""What a picture is asked for with: prompt, seed, size and numbers as drafts of the desk, and the recipe they make.

Try it: `stylora app`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import streamlit as st

from studio.app import state
from studio.app.parts import bases, rack, seed

if TYPE_CHECKING:
    from studio.draw.recipe import Recipe

RACK = rack.PICTURES
JOBS, FRESH = "generate.jobs", "generate.fresh"  # what the page waits for: a draft, and what isn't in it yet
OWN = "as the base likes"  # its own size, its own sampler
SIZES = (OWN, "64x64", "64x96", "96x64", "128x128", "512x512", "512x768", "768x512", "768x768", "1024x1024")
SAMPLERS = (OWN, "ddim", "euler", "euler-a", "dpm++2m", "dpm++2m-karras", "unipc", "pndm")  # as the families know them
USUAL: dict[str, Any] = {
    "prompt": "", "negative": "", **seed.USUAL, "size": OWN, "steps": 25, "guidance": 7.5, "count": 1, "sampler": OWN,
}  # fmt: skip


def draft(name: str) -> Any:
    """What the desk asks for at the moment."""
    return bases.usual() if name == "base" and not state.get("generate.base") else (
        state.get(f"generate.{name}", USUAL.get(name))
    )  # fmt: skip


# --- widgets ---------------------------------------------------------------------------------------------------------


def _bind(name: str, **how: Any) -> dict[str, Any]:
    return state.bind(f"generate.{name}", USUAL[name], **how)


def prompts() -> None:
    st.text_area("Prompt", height=88, placeholder="a blue boat at night", **_bind("prompt"))


def numbers() -> None:
    """Seed with dice and lock, then the rest; as many beside each other as there is room for."""
    seed.show("generate", "picture")
    with st.grid(2, min_column_width=140, gap="small"):
        st.slider("Steps", 1, max(100, int(draft("steps"))), **_bind("steps"))
        st.slider("Guidance", *rack.reach(float(draft("guidance")), 0.0, 20.0), step=0.5, **_bind("guidance"))
        sizes = list(dict.fromkeys([*SIZES, str(draft("size"))]))
        st.selectbox("Size", sizes, accept_new_options=True, help="WIDTHxHEIGHT in pixels",
                     **_bind("size", among=sizes))  # fmt: skip
        st.number_input("Pictures", 1, 16, step=1, **_bind("count"))
        st.selectbox("Sampler", SAMPLERS, **_bind("sampler", among=SAMPLERS))
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
    there = {entry.path: entry.id for entry in state.engine().library.cards()}
    slots = []
    for use in recipe.adapters:
        slot: dict[str, Any] = {"id": there.get(use.path), "weight": use.gain.weight, "te": use.gain.text_encoder}
        if use.gain.blocks:
            from trainers.lora.blocks import format_blocks

            slot["typed"] = format_blocks(use.gain.blocks)
        slots.append(slot)
    state.put(RACK, [slot for slot in slots if slot["id"]])
    return [use.title for use in recipe.adapters if use.path not in there]


def going() -> list[int]:
    """The jobs that the page waits for, the one to be shown first."""
    return [*dict.fromkeys([*state.get(JOBS, []), *state.noted(FRESH, [])])]


def wait_for(jobs: list[int]) -> None:
    """Keep these as the jobs that the page waits for."""
    state.put(JOBS, jobs)
    state.note(FRESH, [])


def draw(recipe: Recipe, newest: bool = False, grid: bool = False) -> None:
    """Give the engine a drawing to do; the page follows it. The `newest` wish ends those of before."""
    from studio.desk.jobs import Draw, Grid

    engine, desk, before, fresh = state.engine(), state.desk(), going(), [*state.noted(FRESH, [])]
    state.note(FRESH, fresh)
    job = engine.submit(desk, Grid(recipe) if grid else Draw(recipe))
    fresh.append(job)  # at once: for a newer one Streamlit ends this run where it next looks into the session
    for older in before if newest else ():
        engine.cancel(older, desk)
    wait_for([job] if newest else [*before, job])
