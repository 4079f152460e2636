"""The page where a style is learned: the trainings that go on, the data with its faults, how thoroughly, Start.

Try it: `stylora app`, then Train
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from studio.app import state
from studio.app.parts import bases, form, material, notices, runs
from studio.desk import grounds, presets
from studio.desk.dataset_view import View, Wishes
from studio.desk.places import typed_name
from studio.desk.presets import Kind

WISHES = ("trigger", "instance_prompt", "require_captions", "repeats", "resolution")  # settings that change the view
TRIGGER = (
    "It calls the style up in a prompt. It is put before every caption that doesn't have it; pictures without a "
    "caption are learned with it alone."
)


def page() -> None:
    """Trainings first: they are what a person comes back for."""
    with notices.told():
        runs.show()
    with notices.told():
        folder = material.opened()
        if folder:
            prepare(folder)
        else:
            material.begin()


def prepare(folder: Path) -> None:
    """The open data beside what can be set. The panel is run first: the data is shown as it says."""
    kind: Kind = "text" if material.kind_of(folder) == "text" else "pictures"
    left, right = st.columns([7, 5], gap="medium")
    with right:
        base, faults = panel(kind, folder)
        place = st.container()
    with left:
        view = seen(kind, folder, base)
        material.show(folder, view, runs.said_of(folder))
    with place:
        start(kind, folder, base, view, faults)


def panel(kind: Kind, folder: Path) -> tuple[str, dict[str, str]]:
    """Name, trigger word, base, presets, settings; gives the base and what is wrong with the settings."""
    st.text_input("Name of the adapter", **state.bind(name_of(folder), folder.name))
    if kind == "pictures":
        st.text_input("Trigger word", placeholder="mystyle", help=TRIGGER, **state.bind(*material.trigger_of(folder)))
    base = bases.pick(f"train.base.{kind}", kind)
    form.choose(kind, base)
    return base, form.show(kind)


def name_of(folder: Path) -> str:
    """The draft of the adapter's name."""
    return f"train.name.{folder.name}"


def settings(kind: Kind, folder: Path) -> dict[str, Any]:
    """Every setting, the trigger word among them."""
    own = {form.TRIGGER: str(state.get(*material.trigger_of(folder))).strip()} if kind == "pictures" else {}
    return form.values(kind) | own


def seen(kind: Kind, folder: Path, base: str) -> View | None:
    """The data as the settings would have it read; None where that can't be said."""
    values = settings(kind, folder)
    wished = {name: values[key] for name in WISHES if (key := f"dataset.{name}") in values}
    with notices.told():
        grounds.check(base, state.engine().bases)
        return material.look(folder, base, Wishes(**wished), values.get("dataset.supervise", "auto"))
    return None


def start(kind: Kind, folder: Path, base: str, view: View | None, faults: dict[str, str]) -> None:
    """The button, and why it can't be pressed."""
    sound = view is not None and view.sound
    asked = st.button("Start training", type="primary", icon=":material/play_arrow:", width="stretch",
                      key="train.start", disabled=bool(faults) or not sound)  # fmt: skip
    if view is not None and not sound:
        bad = sum(bool(one.faults) for one in view.pictures)
        st.caption(f":red[{bad} picture{'s' * (bad != 1)} can't be learned from as they are: see beside them.]" if bad
                   else ":red[The data can't be learned from as it is.]")  # fmt: skip
    if asked:
        with notices.told():
            begin(kind, folder, base)
            st.rerun()


def begin(kind: Kind, folder: Path, base: str) -> None:
    """Put it into the queue. Raises ConfigError."""
    title = typed_name(str(state.get(name_of(folder), folder.name))) or folder.name
    config = presets.config(kind, settings(kind, folder)) | {"data": str(folder), "base": base}
    runs.open(state.engine().training.start(state.desk(), config, title))
    bases.used(base, kind)
    notices.toast(f"{title} is in the queue")


if __name__ == "__main__":
    page()
