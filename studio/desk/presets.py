"""How to begin a training: three presets for each kind of base, and every setting behind them as a form's field.

A preset is a row of settings that differ from the defaults. The fields are made from the settings' own table, so the
form, the flags and the TOML file have the same names, limits and words.
Try: python -c "from studio.desk.presets import *; print(*fields('pictures'), sep='\\n')"
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trainers import given
from trainers.config import TrainConfig
from trainers.errors import ConfigError
from trainers.leaves import Leaf, by_key, leaves

Kind = Literal["pictures", "text"]
Form = Literal["int", "number", "bool", "choice", "text", "list"]

ELSEWHERE = ("base", "data", "out", "name", "dataset.cache", "dataset.plain")  # asked for by the page, or not at all
SECTIONS = {
    "train": "How long and how much at once",
    "lora": "The adapter's size and place",
    "optim": "The optimizer",
    "dataset": "The data",
    "objective": "The loss",
    "prior": "Keep what the base knows (DreamBooth)",
    "adapter": "The file",
    "": "Chance",
}
PACE = {"tiny-sd": 0.025, "tiny-lm": 0.046}  # seconds a sample on two CPU cores, till this machine has a run to go by


@dataclass(frozen=True)
class Preset:
    """A name, a sentence for people, and the settings that differ from the defaults."""

    name: str
    sentence: str
    values: Mapping[str, Any]


def _preset(name: str, sentence: str, rank: int, steps: int, every: int, patience: int = 0) -> Preset:
    values = {"lora.rank": rank, "train.steps": steps, "train.save_every": every, "train.preview_every": every}
    return Preset(name, sentence, values | ({"train.patience": patience} if patience else {}))


PRESETS: dict[Kind, tuple[Preset, ...]] = {
    "pictures": (
        _preset("quick", "A first look: is it the right data, does the style begin to show?", 8, 100, 25),
        _preset("balanced", "What fits most styles; the place to begin.", 16, 300, 50),
        _preset("thorough", "For many pictures or fine detail; it may learn the pictures by heart.", 32, 900, 100),
    ),
    "text": (
        _preset("quick", "A first look: is it the right data, does the tone begin to show?", 8, 150, 50),
        _preset("balanced", "What fits most voices; the best step is kept.", 16, 600, 100),
        _preset("thorough", "For a rich voice, many texts; ends early where nothing is gained.", 32, 1500, 100, 6),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Field:
    """One setting as a form asks for it. `low` and `high` are the least and the largest allowed value.

    `optional` fields may be left empty (None); those of the form "list" hold texts.
    """

    key: str
    label: str
    form: Form
    default: Any
    help: str
    section: str
    low: float | None = None
    high: float | None = None
    multiple: int | None = None
    choices: tuple[str, ...] = ()
    optional: bool = False


def fields(kind: Kind) -> list[Field]:
    """All settings that a base of this kind has and a person may choose, by section in the order of SECTIONS."""
    found = [_field(leaf, kind) for leaf in leaves() if leaf.only in ("", kind) and leaf.key not in ELSEWHERE]
    return sorted(found, key=lambda field: [*SECTIONS].index(field.section))


def defaults(kind: Kind, preset: str = "") -> dict[str, Any]:
    """The value of every field, as a preset has it. Raises KeyError: no such preset."""
    values = {field.key: field.default for field in fields(kind)}
    rows = {one.name: one for one in PRESETS[kind]}
    return values | dict(rows[preset].values if preset else {})


def config(kind: Kind, values: Mapping[str, Any]) -> dict[str, Any]:
    """Form values as settings: texts read as flags are, those that are defaults left out, so that a file stays short.

    An empty text stands for None where there may be none. Settings of the other kind and unknown keys are left out.
    """
    read = {field.key: _read(field, values[field.key]) for field in fields(kind) if field.key in values}
    return {key: value for key, value in read.items() if value != _default(by_key()[key], kind)}


def faults(kind: Kind, values: Mapping[str, Any]) -> dict[str, str]:
    """{key: what is wrong with a form's value}; empty where all can be used."""
    try:
        TrainConfig.build(values=config(kind, values) | {"data": "data", "out": "out"})
    except ConfigError as error:
        return by_setting(error)
    return {}


def by_setting(error: ConfigError) -> dict[str, str]:
    """The faults of an error by the setting they speak of; those that speak of none are under ""."""
    found: dict[str, str] = {}
    for fault in error.faults:
        key, _, said = fault.partition(": ")
        place = key if key in by_key() else ""
        found[place] = re.sub(r" \(from [^)]*\)", "", said) if place else fault
    return found


def minutes(values: Mapping[str, Any], pace: float | None) -> float | None:
    """How long a training with all these settings takes at `pace` seconds a sample; None where that isn't known yet."""
    steps, batch = values["train.steps"], values["train.batch"]
    return None if pace is None else steps * batch * pace / 60


def as_toml(settings: Mapping[str, Any]) -> str:
    """Settings by dotted key as a TOML file that holds these and no others; those unset by default are left out."""
    sections: dict[str, list[str]] = {"": []}
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        if value is not None or by_key()[key].default is not None:
            sections.setdefault(section, []).append(f"{name} = {given.toml(value)}\n")
    heads = {section: f"\n[{section}]\n" if section else "" for section in sections}
    return "".join(heads[section] + "".join(lines) for section, lines in sections.items())


def _default(leaf: Leaf, kind: Kind) -> Any:
    return leaf.on_text if kind == "text" else leaf.default


def _field(leaf: Leaf, kind: Kind) -> Field:
    limits = dict(re.findall(r"(>=|<=|>|<|multiple of) ([\d.^]+)", leaf.type_text))
    choices = tuple(leaf.type_text.split("|")) if leaf.kinds == {str} and "|" in leaf.type_text else ()
    low, high = limits.get(">=", limits.get(">")), limits.get("<=", limits.get("<"))
    if leaf.key == "adapter.format" and kind == "text":
        choices = ("peft",)  # the others have no names for text
    return Field(
        key=leaf.key,
        label=leaf.name.replace("_", " "),
        form=_form(leaf, choices),
        default=_default(leaf, kind),
        help=f"{leaf.description} [{leaf.key}: {leaf.type_text}]",
        section=leaf.section,
        low=float(low) if low else None,
        high=float(high) if high and "^" not in high else None,
        multiple=int(limits["multiple of"]) if "multiple of" in limits else None,
        choices=choices,
        optional=type(None) in leaf.kinds,
    )


def _form(leaf: Leaf, choices: tuple[str, ...]) -> Form:
    if choices:
        return "choice"
    forms: dict[type, Form] = {bool: "bool", float: "number", int: "int"}
    return next(
        (form for kind, form in forms.items() if kind in leaf.kinds), "list" if leaf.kinds == {list} else "text"
    )


def _read(field: Field, value: Any) -> Any:
    if isinstance(value, str):
        value = value.strip()
        return None if not value and field.optional else given.parse(field.key, value)
    if field.form == "int" and isinstance(value, float) and value.is_integer():
        return int(value)
    return value
