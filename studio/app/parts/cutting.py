"""How adapters become one: the methods in words, rank or energy, and what the certificate tells of it, as a chart.

Try it: `stylora app`, then Blend
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from studio.app import state

METHODS = {  # as studio.blend.methods has them, which imports torch: what each is, and what it takes
    "concat": ("the exact sum; ranks add up", ()),
    "svd": ("the sum, cut to the best adapter of its rank", ("rank", "energy")),
    "ties": ("where adapters pull opposite ways, only the stronger side counts", ("rank", "energy", "density")),
    "dare": ("entries dropped at random, the others rescaled", ("rank", "energy", "density", "seed")),
    "magnitude-prune": ("the sum of each adapter's largest entries", ("rank", "energy", "density")),
    "orthogonal": ("directions that adapters share are pulled apart", ("rank", "energy")),
}
CUTS = {"all": "Keep everything", "rank": "To a rank", "energy": "To a share of the energy"}


def show() -> None:
    """Method, and where it is cut."""
    method = st.selectbox("Method", list(METHODS), format_func=lambda name: f"{name}: {METHODS[name][0]}",
                          **state.bind("blend.method", "svd", METHODS))  # fmt: skip
    takes = METHODS[method][1]
    if "rank" in takes:
        cut = st.segmented_control("Cut", list(CUTS), format_func=CUTS.__getitem__,
                                   **state.bind("blend.cut", "energy", shown="default"))  # fmt: skip
        if cut == "rank":
            st.slider("Rank", 1, 128, **state.bind("blend.rank", 8))
        elif cut == "energy":
            st.slider("Energy kept", 50.0, 99.9, step=0.1, format="%.1f %%", **state.bind("blend.energy", 99.0))
    if "density" in takes:
        st.slider("Density", 0.05, 1.0, step=0.05, help="The share of each adapter's entries that stays",
                  **state.bind("blend.density", 0.5))  # fmt: skip
    if "seed" in takes:
        st.number_input("Seed of the chance", 0, step=1, **state.bind("blend.seed", 0))


def chosen() -> dict[str, Any]:
    """As a Blend job takes it."""
    method = str(state.get("blend.method", "svd"))
    takes, cut = METHODS[method][1], state.get("blend.cut", "energy")
    values: dict[str, Any] = {"method": method}
    if "rank" in takes and cut == "rank":
        values["rank"] = int(state.get("blend.rank", 8))
    if "energy" in takes and cut == "energy":
        values["energy"] = round(float(state.get("blend.energy", 99.0)) / 100, 4)
    if "density" in takes:
        values["density"] = float(state.get("blend.density", 0.5))
    if "seed" in takes:
        values["seed"] = int(state.get("blend.seed", 0))
    return values


def kept(certificate: Mapping[str, Any]) -> dict[str, Any]:
    """The energy that each layer kept, in the order in which they come, as Vega-Lite has it."""
    from trainers.lora.blocks import block_of, order

    paths = sorted(certificate["layers"], key=lambda path: (order(block_of(path)), path))
    rows = [
        {"layer": number + 1, "path": path, "block": block_of(path), "rank": rank, "kept": 100 * share(energy, lost)}
        for number, path in enumerate(paths)
        for rank, energy, lost, _ in [certificate["layers"][path]]
    ]
    return {
        "data": {"values": rows},
        "mark": {"type": "point", "filled": True, "size": 36, "opacity": 0.85},
        "encoding": {
            "x": {"field": "layer", "type": "quantitative", "title": "layer, from first to last"},
            "y": {"field": "kept", "type": "quantitative", "title": "energy kept, %", "scale": {"zero": False}},
            "color": {"field": "rank", "type": "quantitative", "title": "rank"},
            "tooltip": [{"field": "path"}, {"field": "block"}, {"field": "rank"}, {"field": "kept", "format": ".3f"}],
        },
    }


def share(energy: float, lost: float) -> float:
    """Of what was asked for."""
    return energy / (energy + lost) if energy + lost else 1.0
