"""A rack of adapters as cards: weight, trigger word, text encoder, blocks, mute and solo; kept as a draft of the desk.

A rack is a list of tables in the draft `place` ("generate.rack"); `uses` makes of it what recipes take.
Try it: `stylora app`, then Library, then "Use".
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import streamlit as st

from studio.app import state
from studio.app.parts import gallery, notices

if TYPE_CHECKING:
    from studio.desk.library import Entry
    from studio.draw.use import Use

Slot = dict[str, Any]
EQUAL_FEEL = "stylora.equal_feel"  # the header's entry that `stylora strength --write` makes
PICTURES = "generate.rack"  # the rack of the Generate page
LEAST, MOST, STEP = -1.0, 2.0, 0.05
GROUPS = {"pictures": {"IN": "on the way in", "MID": "middle", "OUT": "on the way out"}, "text": {"L": "all layers"}}


def slots(place: str) -> list[Slot]:
    """The rack's adapters that are still in the library."""
    there = {entry.id for entry in state.engine().library.cards()}
    return [slot for slot in state.get(place, []) if slot.get("id") in there]


def hang(place: str, adapter: str, **values: Any) -> None:
    """Put an adapter into the rack, or change it where it hangs."""
    rack = slots(place)
    found = next((slot for slot in rack if slot["id"] == adapter), None)
    if found is None:
        found = {"id": adapter, "weight": 1.0}
        rack.append(found)
    found.update(values)
    state.put(place, rack)


def take_off(place: str, adapter: str) -> None:
    state.put(place, [slot for slot in slots(place) if slot["id"] != adapter])


def sounding(place: str) -> list[Slot]:
    """The adapters that act: not muted, and if any is solo, only those."""
    rack = slots(place)
    solo = [slot for slot in rack if slot.get("solo")]
    return [slot for slot in solo or rack if not slot.get("mute")]


def uses(place: str) -> tuple[Use, ...]:
    """What acts, as recipes take it. Raises AdapterError: a list of blocks can't be read."""
    return uses_of(sounding(place))


def uses_of(slots: list[Slot]) -> tuple[Use, ...]:
    """Adapters of the library as recipes take them. Raises AdapterError: one is gone, or its list of blocks is odd."""
    from studio.draw.use import Use  # torch
    from trainers.lora.blocks import parse_blocks
    from trainers.lora.gains import Gain

    library, found = state.engine().library, []
    for slot in slots:
        entry = library.entry(slot["id"])
        typed = parse_blocks(slot["typed"]) if slot.get("typed") else {}
        blocks = {**parse_blocks(",".join(f"{k}={v}" for k, v in slot.get("blocks", {}).items())), **typed}
        gain = Gain(float(slot["weight"]), slot.get("te"), blocks)
        found.append(Use(entry.path, gain, name=entry.name))
    return tuple(found)


# --- cards -----------------------------------------------------------------------------------------------------------


def show(place: str, kind: str = "pictures", prompt: str = "") -> None:
    """The cards, and a picker that adds one from the library; `prompt` is the draft that trigger words are put into."""
    library = state.engine().library
    for slot in slots(place):
        with st.container(border=True, key=f"card_{place.replace('.', '_')}_{slot['id'][:12]}", gap="xsmall"):
            card(place, slot, library.entry(slot["id"]), kind, prompt)
    add(place, kind)


def card(place: str, slot: Slot, entry: Entry, kind: str, prompt: str) -> None:
    """One adapter in the rack."""
    key, keep = f"{place}.{entry.id}", partial(_keep, place, entry.id)
    feel = equal_feel(entry)
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", wrap=False):
        st.image(gallery.thumbnail(entry), width=44)
        with st.container(key=f"title_{key.replace('.', '_')}", gap=None):
            title(place, entry, prompt)
        if feel is not None:
            st.button("", icon=":material/balance:", key=f"{key}.feel", type="tertiary",
                      help=f"Equal feel, {feel:.2f}: the weight at which measured adapters act equally strongly",
                      on_click=notices.safely(hang), args=(place, entry.id),
                      kwargs={"weight": round(feel / STEP) * STEP})  # fmt: skip
        toggle(key, slot, place, "mute", ":material/volume_off:", "Mute: as if it were not in the rack")
        toggle(key, slot, place, "solo", ":material/headphones:", "Solo: only this one (and others that are solo)")
        more = st.popover("", icon=":material/tune:", type="tertiary", key=f"{key}.more", help="Text encoder, blocks",
                          on_change="rerun")  # fmt: skip
        if more.open:  # sliders that are drawn unseen would take their least value when they are seen
            with more:
                details(key, slot, kind, keep)
        st.button("", icon=":material/close:", key=f"{key}.off", help="Take it off the rack", type="tertiary",
                  on_click=notices.safely(take_off), args=(place, entry.id))  # fmt: skip
    weight = float(slot["weight"])
    low, high = reach(weight, LEAST, MOST)
    st.slider(f"Weight of {entry.name}", low, high, step=STEP, label_visibility="collapsed",
              **state.bound(f"{key}.weight", weight, partial(keep, "weight")))  # fmt: skip
    if feel is not None:
        share = (feel - low) / (high - low)
        st.html(f'<div class="feel"><i style="left: {share:.1%}">equal feel {feel:.2f}</i></div>')


def reach(value: float, low: float, high: float) -> tuple[float, float]:
    """A slider's ends, farther apart where a recipe made elsewhere has a value beyond them."""
    return min(low, value), max(high, value)


def title(place: str, entry: Entry, prompt: str) -> None:
    """Its name, struck through where it does not act, and its trigger word for the prompt."""
    quiet = entry.id not in {one["id"] for one in sounding(place)}
    name = notices.plain(entry.name)
    st.markdown(f":gray[~~{name}~~]" if quiet else f"**{name}**")
    if entry.trigger and prompt:
        there = entry.trigger in str(state.get(prompt, ""))
        st.button(notices.plain(entry.trigger), key=f"{place}.{entry.id}.word", type="tertiary", disabled=there,
                  icon=":material/check:" if there else ":material/add:",
                  on_click=notices.safely(add_word), args=(prompt, entry.trigger),
                  help="In the prompt" if there else "Put its trigger word into the prompt")  # fmt: skip


def add_word(prompt: str, word: str) -> None:
    """Put a trigger word at the end of the draft of a prompt, once."""
    text = str(state.get(prompt, ""))
    if word not in text:
        state.put(prompt, f"{text.rstrip(' ,')}, {word}" if text.strip() else word)


def toggle(key: str, slot: Slot, place: str, word: str, icon: str, help: str) -> None:
    on = bool(slot.get(word))
    st.button("", icon=icon, key=f"{key}.{word}", help=help, type="primary" if on else "tertiary",
              on_click=notices.safely(hang), args=(place, slot["id"]), kwargs={word: not on})  # fmt: skip


def details(key: str, slot: Slot, kind: str, keep: Callable[[str, Any], None]) -> None:
    """The text encoder's own weight, and factors for blocks."""
    if kind == "pictures":
        own = slot.get("te") is not None
        st.toggle("Own weight in the text encoder",
                  **state.bound(f"{key}.own", own, lambda on: keep("te", slot["weight"] if on else None)))  # fmt: skip
        if own:
            st.slider("In the text encoder", *reach(float(slot["te"]), LEAST, MOST), step=STEP,
                      **state.bound(f"{key}.te", float(slot["te"]), partial(keep, "te")))  # fmt: skip
    blocks: dict[str, float] = slot.get("blocks", {})
    for group, words in GROUPS[kind].items():
        st.slider(f"Blocks {words}", 0.0, 2.0, step=STEP,
                  **state.bound(f"{key}.{group}", float(blocks.get(group, 1.0)),
                                partial(_keep_block, keep, blocks, group)))  # fmt: skip
    example = "IN04=0.5, OUT03-OUT05=1.2" if kind == "pictures" else "L00-L03=0.5"
    st.text_input("Single blocks", placeholder=example, help="These win over the sliders above.",
                  **state.bound(f"{key}.typed", str(slot.get("typed", "")), partial(keep, "typed")))  # fmt: skip


def _keep_block(keep: Callable[[str, Any], None], blocks: Mapping[str, float], group: str, value: float) -> None:
    """A factor of 1 is none."""
    keep("blocks", {name: factor for name, factor in {**blocks, group: value}.items() if factor != 1.0})


@notices.safely
def _keep(place: str, adapter: str, name: str, value: Any) -> None:
    hang(place, adapter, **{name: value})


def equal_feel(entry: Entry) -> float | None:
    """The equal-feel weight from the adapter's header, or as measured here, if it lies on the slider."""
    try:
        weight = float(json.loads((entry.facts or {})["metadata"][EQUAL_FEEL])["weight"])
    except (KeyError, TypeError, ValueError):
        weight = float(state.engine().store.get(f"feel/{entry.id}", math.nan))
    return weight if LEAST <= weight <= MOST else None


def felt(adapter: str, weight: float | None) -> None:
    """Keep an equal-feel weight that was measured; the file stays as it is."""
    if weight is not None:
        state.engine().store.put(f"feel/{adapter}", weight)


def add(place: str, kind: str) -> None:
    """A picker of the library's adapters that aren't in the rack."""
    hung = {slot["id"] for slot in slots(place)}
    free = {entry.id: entry for entry in state.engine().library.cards() if entry.id not in hung and entry.kind == kind}
    if not free:
        return
    key = f"w.{place}.add"

    @notices.safely
    def added() -> None:
        if chosen := st.session_state[key]:
            hang(place, chosen)
            st.session_state[key] = None

    st.selectbox("Add an adapter", list(free), index=None, key=key, on_change=added, label_visibility="collapsed",
                 placeholder="Add an adapter from the library …",
                 format_func=lambda one: gallery.line(free[one]))  # fmt: skip
