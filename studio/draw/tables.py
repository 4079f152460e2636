"""TOML tables that people write by hand: checked against the keys and kinds they may have, and written back.

Try it: python -c "from studio.draw.tables import *; print(toml({'prompt': 'a boat', 'adapter': [{'file': 'ink'}]}))"
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

from trainers.errors import ConfigError, StyloraError

Table = dict[str, Any]
Kinds = Mapping[str, type]  # key -> the kind its value must have; `float` takes whole numbers too
WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", list: "a list", dict: "a table"}


@contextmanager
def noting(faults: list[str]) -> Iterator[None]:
    """A StyloraError inside becomes lines of `faults`."""
    try:
        yield
    except StyloraError as error:
        faults += error.faults or ["; ".join(part for part in (error.what, error.next_step) if part)]


def parse(text: str, source: str) -> Table:
    """The tables of a TOML text. Raises ConfigError."""
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{source}: not TOML: {error}") from error


def known(table: Table, kinds: Kinds, where: str, faults: list[str]) -> Table:
    """The entries whose names and kinds are right; a fault for each of the others. `where` stands before the key."""
    values = {}
    for key, value in table.items():
        if key not in kinds:
            faults.append(f"{where}{key}: no such key; {nearest(key, kinds)}")
        elif not _is(value, kinds[key]):
            faults.append(f"{where}{key}: got {value!r}, wanted {WORDS[kinds[key]]}")
        else:
            values[key] = float(value) if kinds[key] is float else value
    return values


def digest_faults(wanted: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """A line for each part of the base whose digest isn't the recipe's; `found` has all the parts of `wanted`."""
    return [
        f"{part}: sha256 is {found[part][:12]}, wanted {digest[:12]}"
        for part, digest in wanted.items()
        if digest != found[part]
    ]


def unicode_faults(texts: Iterable[str]) -> list[str]:
    """A line for each that has half of a surrogate pair, which is what the bytes of a badly named file become."""
    return [f"{text!r}: isn't Unicode text" for text in texts if any("\ud800" <= letter <= "\udfff" for letter in text)]


def nearest(word: str, words: Iterable[str]) -> str:
    """ "the nearest is prompt", or all there are where none is near."""
    there = list(words)
    near = get_close_matches(word, there, n=1)
    return f"the nearest is {near[0]}" if near else f"there are {', '.join(there)}" if there else "there are none"


def _is(value: object, kind: type) -> bool:
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, kind)


def toml(table: Table) -> str:
    """TOML that gives `table` back: plain values first, then the tables, then the lists of tables."""
    inner = {key: value for key, value in table.items() if isinstance(value, dict)}
    lists = {key: value for key, value in table.items() if isinstance(value, list)}
    lines = _entries({key: value for key, value in table.items() if key not in inner | lists})
    for key, rows in lists.items():
        lines += [line for row in rows for line in ("", f"[[{key}]]", *_entries(row))]
    for key, value in inner.items():
        lines += ["", f"[{key}]", *_entries(value)]
    return "\n".join(lines) + "\n"


def _entries(table: Table) -> list[str]:
    return [f"{key} = {_value(value)}" for key, value in table.items()]


def _value(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case _:  # JSON's escapes are TOML's, but for DEL
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
