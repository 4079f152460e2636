"""One frozen config from defaults < TOML file < flags < --set, with every fault listed at once. Imports no torch.

Try: python -c "from trainers.config import TrainConfig; print(TrainConfig(data='pictures', out='runs/ink').to_toml())"
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from trainers.errors import ConfigError
from trainers.settings import Leaf, OptimConfig, Settings, by_key, leaves

__all__ = ["Leaf", "TrainConfig", "leaves"]

BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class TrainConfig(Settings):
    """All settings of one training. Relative paths, in a TOML file too, are relative to the current folder."""

    @property
    def adapter_name(self) -> str:
        return self.name or self.out.resolve().name or "adapter"

    @classmethod
    def build(
        cls, *, file: Path | None = None, values: Mapping[str, Any] | None = None, sets: Sequence[str] = ()
    ) -> TrainConfig:
        """From a TOML file, flags (`{"optim.lr": "1e-4"}`) and `--set` texts ("optim.lr=1e-4"); later ones win.

        Raises one ConfigError that lists every fault.
        """
        faults: list[str] = []
        given, whole = _from_file(file, faults)
        given |= {key: Given(_parse(key, value), "a flag") for key, value in (values or {}).items()}
        given |= _from_sets(sets, faults)
        faults += [_unknown(key, given.pop(key).source) for key in list(given) if key not in by_key()]
        config, found = _validated(given)
        faults += [text for key, text in found.items() if whole or key in given]  # a broken file may well name `data`
        if config is None or faults:
            raise ConfigError(
                f"{len(faults)} setting{'s' * (len(faults) != 1)} can't be used:",
                faults,
                "`stylora train --help` lists every setting with its limits",
            )
        return config

    def get(self, key: str) -> Any:
        """The value of a dotted key."""
        value: Any = self
        for part in key.split("."):
            value = getattr(value, part)
        return value

    def to_toml(self) -> str:
        """As a TOML file that `build` reads back to an equal config. A setting left out is unset (None)."""
        return "\n".join(self._toml_lines()) + "\n"

    def _toml_lines(self) -> Iterator[str]:
        section = ""
        for leaf in leaves():
            value = self.get(leaf.key)
            if value is None and leaf.default is None:
                continue
            if leaf.section != section:
                section = leaf.section
                yield from ("", f"[{section}]")
            yield f"{leaf.name} = {_toml(value)}"


@dataclass(frozen=True)
class Given:
    value: Any
    source: str


def _parse(key: str, value: Any) -> Any:
    """The value a text from the command line stands for; another text stays one, and is refused later."""
    leaf = by_key().get(key)
    if leaf is None or not isinstance(value, str):
        return value
    if NoneType in leaf.kinds and value.lower() == "none":
        return None
    if list in leaf.kinds:
        return _parse_list(value, single=str in leaf.kinds)
    if bool in leaf.kinds:
        return BOOLEANS.get(value.lower(), value)
    if leaf.kinds & {int, float}:
        return _parse_number(value, whole=int in leaf.kinds)
    return value


def _parse_list(value: str, single: bool) -> Any:
    if value.startswith("["):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            pass  # a regular expression may start so too
    parts = [part.strip() for part in re.split(r",(?![^{]*})", value) if part.strip()]  # not in "a{1,2}"
    return value if single and len(parts) < 2 else parts


def _parse_number(value: str, whole: bool) -> Any:
    try:
        return int(value)
    except ValueError:
        pass
    try:
        number = float(value)
    except ValueError:
        return value
    return int(number) if whole and number.is_integer() else number  # "1e3" steps


def _from_file(file: Path | None, faults: list[str]) -> tuple[dict[str, Given], bool]:
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


def _from_sets(sets: Sequence[str], faults: list[str]) -> dict[str, Given]:
    given = {}
    for text in sets:
        key, sign, value = (part.strip() for part in text.partition("="))
        if sign and key:
            given[key] = Given(_parse(key, value), "--set")
        else:
            faults.append(f"--set {text}: got no key and value, wanted KEY=VALUE such as optim.lr=1e-4")
    return given


def _unknown(key: str, source: str) -> str:
    inside = [known for known in by_key() if known.startswith(f"{key}.")]
    if inside:
        return f"{key} (from {source}): is a section, wanted one of {', '.join(inside)}"
    near = _nearest(key.replace("-", "_"))
    return f"{key} (from {source}): no such setting; " + (f"the nearest is {near}" if near else "none is near it")


def _nearest(key: str) -> str:
    """The right name in a wrong section, else a close name in the same section or anywhere, else one so described."""
    section, _, name = key.rpartition(".")
    same = [leaf.key for leaf in leaves() if leaf.name == name]
    here = {leaf.name: leaf.key for leaf in leaves() if leaf.section == section}
    anywhere = {leaf.name: leaf.key for leaf in leaves()}
    near = [names[found] for names in (here, anywhere) for found in get_close_matches(name, names, n=1)]
    near += [leaf.key for leaf in leaves() if name.replace("_", " ") in leaf.description]
    near += get_close_matches(key, list(by_key()), n=1, cutoff=0.75)
    return " or ".join(same or near[:1])


def _validated(given: Mapping[str, Given]) -> tuple[TrainConfig | None, dict[str, str]]:
    """The config, or the faults by key: those of single settings, then those between settings right by themselves."""
    try:
        config = TrainConfig.model_validate(_tree(given))
        found: dict[str, str] = {}
    except ValidationError as error:
        found = {}
        for detail in error.errors():
            key = _key(detail)
            found.setdefault(key, _fault(key, given.get(key), detail))
        good = {key: value for key, value in given.items() if key not in found}
        stand_in = {key: Given(key, "") for key in ("data", "out") if key not in good}
        config = TrainConfig.model_validate(_tree(good | stand_in))
    for key, other, broken, fault in CROSS_CHECKS:
        if not found.keys() & {key, other} and broken(config):
            found[key] = f"{key}: got {_short(config.get(key))}, {fault.format(_short(config.get(other)))}"
    return (None if found else config), found


def _tree(given: Mapping[str, Given]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, item in given.items():
        section, _, name = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[name] = item.value
    return tree


def _key(detail: ErrorDetails) -> str:
    """Pydantic's place of a fault goes on into unions and lists; the setting is its first one or two parts."""
    first, *more = map(str, detail["loc"])
    return first if first in by_key() else f"{first}.{more[0]}"


def _fault(key: str, item: Given | None, detail: ErrorDetails) -> str:
    leaf = by_key()[key]
    if item is None:
        return f'{key}: missing, wanted the {leaf.description}; give --{key} or write {key} = "…" in the file'
    wanted = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else leaf.type_text
    return f"{key}: got {_short(item.value)} (from {item.source}), wanted {wanted}"


def _short(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) or value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _toml(value: Any) -> str:
    match value:
        case None:
            return '"none"'  # see _unset
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case list():
            return f"[{', '.join(map(_toml, value))}]"
        case _:  # JSON's escapes are TOML's, but for DEL
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


# The setting to blame, the one it contradicts, whether they do, and what is wanted.
CROSS_CHECKS: list[tuple[str, str, Callable[[TrainConfig], bool], str]] = [
    (
        "train.micro_batch",
        "train.batch",
        lambda c: c.train.micro_batch is not None and c.train.micro_batch > c.train.batch,
        "wanted at most train.batch, {}",
    ),
    (
        "optim.warmup",
        "train.steps",
        # The default gives way by itself (optim.lr_at): a trial run of 5 steps should need no second setting.
        lambda c: c.train.steps < c.optim.warmup != OptimConfig().warmup,
        "wanted at most train.steps, {}",
    ),
    (
        "optim.text_lr",
        "lora.text_encoder",
        lambda c: c.optim.text_lr is not None and not c.lora.text_encoder,
        "but lora.text_encoder is {}: leave one of them out",
    ),
    (
        "lora.text_rank",
        "lora.text_encoder",
        lambda c: c.lora.text_rank is not None and not c.lora.text_encoder,
        "but lora.text_encoder is {}: leave one of them out",
    ),
]
