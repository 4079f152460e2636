"""Every setting as a row: what flags, `--help`, TOML files and `--set` need to know of it. Imports no torch.

Try: python -c "from trainers.leaves import leaves; print(*leaves(), sep='\\n')"
"""

from __future__ import annotations

import typing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from pydantic.fields import FieldInfo

from trainers.settings import Section, Settings


@dataclass(frozen=True)
class Leaf:
    """One setting: what flags, `--help` and `--set` need to know of it."""

    key: str  # dotted: "optim.lr"; "data" at the top
    type_text: str  # "number > 0"
    default: Any
    description: str
    section: str  # "" at the top
    required: bool
    kinds: frozenset[type]
    only: str  # the one kind of base that has it, "pictures" or "text"; "" for all
    on_text: Any  # the default on language models

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]


def leaves() -> list[Leaf]:
    """All settings, the top level first, in the order of the models."""
    return list(by_key().values())


@cache
def by_key() -> dict[str, Leaf]:
    top = [("", name, field) for name, field in Settings.model_fields.items() if not _is_section(field)]
    below = [
        (section, name, field)
        for section, owner in Settings.model_fields.items()
        if _is_section(owner)
        for name, field in owner.annotation.model_fields.items()  # type: ignore[union-attr]
    ]
    found = [_leaf(*row) for row in top + below]
    return {leaf.key: leaf for leaf in found}


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, Section)


def _leaf(section: str, name: str, field: FieldInfo) -> Leaf:
    key = f"{section}.{name}" if section else name
    required = field.is_required()
    default = None if required else field.default
    text = field.description or ""
    more: Any = field.json_schema_extra or {}
    only, on_text = more.get("only", ""), more.get("text", default)
    return Leaf(key, _type_text(field), default, text, section, required, _kinds(field.annotation), only, on_text)


def _kinds(annotation: Any) -> frozenset[type]:
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return frozenset({str})
    if origin in (None, list):
        return frozenset({origin or annotation})
    return frozenset().union(*(_kinds(part) for part in typing.get_args(annotation)))


def _type_text(field: FieldInfo) -> str:
    """What a value must be, in a few words, from the type and the limits of a field."""
    words = {bool: "true|false", int: "int", float: "number", str: "text", Path: "path", list: "list"}
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "multiple_of": "multiple of"}
    kinds = _kinds(field.annotation)
    choices = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is Literal else ()
    text = "|".join(choices or [word for kind, word in words.items() if kind in kinds])
    text = "list of texts" if text == "list" else text
    limits = [
        f"{sign} {getattr(item, name)}".replace(str(2**63), "2^63")
        for item in field.metadata
        for name, sign in signs.items()
        if hasattr(item, name)
    ]
    return f"{text} {', '.join(limits)}".strip() + (" or none" if NoneType in kinds else "")
