"""How to train: presets with their minutes, and every setting behind them by section; kept as drafts of the desk.

Try it: `stylora app`, then Train
"""

from __future__ import annotations

from functools import partial
from typing import Any

import streamlit as st

from studio.app import state
from studio.app.parts import notices
from studio.desk import presets
from studio.desk.presets import Field, Kind

USUAL = "balanced"
SWITCH = {None: "as it fits", True: "yes", False: "no"}


def values(kind: Kind) -> dict[str, Any]:
    """Every setting: the preset's, and what was changed by hand."""
    return presets.defaults(kind, preset(kind)) | changed(kind)


def preset(kind: Kind) -> str:
    return str(state.get(f"train.preset.{kind}", USUAL))


def changed(kind: Kind) -> dict[str, Any]:
    """The settings that a person has changed."""
    return dict(state.get(f"train.values.{kind}", {}))


def change(kind: Kind, key: str, value: Any) -> None:
    """Keep a changed setting; one that is the preset's again is forgotten."""
    kept = changed(kind)
    kept.pop(key, None)
    if value != presets.defaults(kind, preset(kind))[key]:
        kept[key] = value
    state.put(f"train.values.{kind}", kept or None)


def choose(kind: Kind, base: str) -> None:
    """The presets, each with what it is for and how long it takes."""
    rows = {row.name: row for row in presets.PRESETS[kind]}
    pace = state.engine().training.pace(base) or presets.PACE.get(base)
    told = [f"{row.sentence} {duration(presets.minutes(presets.defaults(kind, name), pace))}".strip()
            for name, row in rows.items()]  # fmt: skip
    st.radio("How thoroughly", list(rows), captions=told, format_func=str.capitalize,
             **state.bind(f"train.preset.{kind}", USUAL, rows))  # fmt: skip
    try:
        own = presets.minutes(values(kind), pace)
    except TypeError:  # a setting that isn't a number yet: its fault is told beside it
        return
    if changed(kind):
        st.caption(f"With your settings: {duration(own) or 'how long is not known yet'}")


def duration(minutes: float | None) -> str:
    """In words; "" where it isn't known."""
    if minutes is None:
        return ""
    if minutes < 1:
        return f"About {max(5, round(minutes * 12) * 5)} s here."
    return f"About {minutes:.0f} min here." if minutes < 90 else f"About {minutes / 60:.1f} h here."


def show(kind: Kind) -> dict[str, str]:
    """Every setting by section; gives what is wrong, by key."""
    faults = presets.faults(kind, values(kind))
    with st.expander("All settings", icon=":material/tune:", expanded=False):
        for section, title in presets.SECTIONS.items():
            here = [field for field in presets.fields(kind) if field.section == section and field.key != TRIGGER]
            if here:
                st.markdown(f"**{title}**")
                with st.grid(2, min_column_width=140, gap="small"):
                    for field in here:
                        one(kind, field, faults.get(field.key, ""))
        if changed(kind):
            st.button("Back to the preset", icon=":material/undo:", key="form.reset",
                      on_click=state.put, args=(f"train.values.{kind}", None))  # fmt: skip
    for key, fault in faults.items():
        st.error(notices.plain(f"{key}: {fault}" if key else fault), icon=":material/error:")
    return faults


TRIGGER = "dataset.trigger"  # asked for above the form


def one(kind: Kind, field: Field, fault: str) -> None:
    """One setting as the widget of its form."""
    value, keep = values(kind)[field.key], partial(change, kind, field.key)
    with st.container(gap="xsmall"):
        widget(field, f"form.{kind}.{field.key}", value, keep)
        if fault:
            st.caption(f":red[{notices.plain(fault)}]")


def widget(field: Field, key: str, value: Any, keep: Any) -> None:
    """Numbers with a point are typed: 1e-4 has no place on a slider."""
    if field.form == "choice":
        st.selectbox(field.label, field.choices, help=field.help, **state.bound(key, value, keep, field.choices))
    elif field.form == "bool" and field.default is not None:
        st.toggle(field.label, help=field.help, **state.bound(key, bool(value), keep))
    elif field.form == "bool":
        st.selectbox(field.label, list(SWITCH), format_func=SWITCH.__getitem__, help=field.help,
                     **state.bound(key, value, keep, SWITCH))  # fmt: skip
    elif field.form == "int":
        low, high = (int(limit) if limit is not None else None for limit in (field.low, field.high))
        empty = "as it fits" if field.optional or field.default is None else None
        st.number_input(field.label, low, high, step=field.multiple or 1, help=field.help, placeholder=empty,
                        **state.bound(key, value, keep))  # fmt: skip
    elif field.form == "list":
        st.text_area(field.label, height=68, help=f"{field.help} One a line.",
                     **state.bound(key, "\n".join(value), lambda text: keep(text.splitlines())))  # fmt: skip
    else:
        text = "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
        st.text_input(field.label, placeholder="as it fits" if field.optional else "", help=field.help,
                      **state.bound(key, text, lambda typed: keep(read(field, typed))))  # fmt: skip


def read(field: Field, typed: str) -> Any:
    """What was typed, as a number where it is one; what it must be is told by the settings themselves."""
    typed = typed.strip()
    if not typed and field.optional:
        return None
    try:
        return float(typed) if field.form == "number" else typed
    except ValueError:
        return typed
