"""Settings as people give them, in TOML files, flags and `--set` texts: read as values by dotted key, and written.

Try: python -c "from trainers.given import parse; print(parse('train.steps', '1e3'))"
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from trainers.leaves import by_key

BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Given:
    value: Any
    source: str


def parse(key: str, value: Any) -> Any:
    """The value a text from the command line stands for; another text stays one, and is refused later."""
    leaf = by_key().get(key)
    if leaf is None or not isinstance(value, str):
        return value
    if NoneType in leaf.kinds and value.lower() == "none":
        return None
    if list in leaf.kinds:
        return _list(value, single=str in leaf.kinds)
    if bool in leaf.kinds:
        return BOOLEANS.get(value.lower(), value)
    if leaf.kinds & {int, float}:
        return _number(value, whole=int in leaf.kinds)
    return value


def _list(value: str, single: bool) -> Any:
    if value.startswith("["):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            pass  # a regular expression may start so too
    parts = [part.strip() for part in re.split(r",(?![^{]*})", value) if part.strip()]  # not in "a{1,2}"
    return value if single and len(parts) < 2 else parts


def _number(value: str, whole: bool) -> Any:
    try:
        return int(value)
    except ValueError:
        pass
    try:
        number = float(value)
    except ValueError:
        return value
    return int(number) if whole and number.is_integer() else number  # "1e3" steps


def from_file(file: Path | None, faults: list[str]) -> tuple[dict[str, Given], bool]:
    """The settings of a TOML file by dotted key, and whether it could be read."""
    if file is None:
        return {}, True
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        faults.append(f"{file}: can't be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}")
        return {}, False
    except tomllib.TOMLDecodeError as error:
        faults.append(f"{file}: not TOML: {error}")
        return {}, False
    return {key: Given(_unset(key, value), str(file)) for key, value in _flat(tables)}, True


def _flat(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tables.items():
        if isinstance(value, dict) and prefix + name not in by_key():
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _unset(key: str, value: Any) -> Any:
    """TOML has no null: "none" stands for it wherever no text could be meant."""
    leaf = by_key().get(key)
    unset = leaf is not None and value == "none" and NoneType in leaf.kinds and str not in leaf.kinds
    return None if unset else value


def from_sets(sets: Sequence[str], faults: list[str]) -> dict[str, Given]:
    given = {}
    for text in sets:
        key, sign, value = (part.strip() for part in text.partition("="))
        if sign and key:
            given[key] = Given(parse(key, value), "--set")
        else:
            faults.append(f"--set {text}: got no key and value, wanted KEY=VALUE such as optim.lr=1e-4")
    return given


def toml(value: Any) -> str:
    match value:
        case None:
            return '"none"'  # see _unset
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case list():
            return f"[{', '.join(map(toml, value))}]"
        case _:  # JSON's escapes are TOML's, but for DEL
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
