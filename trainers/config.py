"""One frozen config from defaults < TOML file < flags < --set, with every fault listed at once. Imports no torch.

Try: python -c "from trainers.config import TrainConfig; print(TrainConfig(data='pictures', out='runs/ink').to_toml())"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from trainers.errors import ConfigError
from trainers.given import Given, from_file, from_sets, parse, toml
from trainers.leaves import Leaf, by_key, leaves
from trainers.settings import DatasetConfig, OptimConfig, Settings

__all__ = ["Leaf", "TrainConfig", "leaves"]

NEEDS = {"pictures": "a base that makes pictures", "text": "a language model"}


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
        given, whole = from_file(file, faults)
        given |= {key: Given(parse(key, value), "a flag") for key, value in (values or {}).items()}
        given |= from_sets(sets, faults)
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

    def for_kind(self, kind: str) -> TrainConfig:
        """The same with the defaults of a kind of base, "pictures" or "text".

        Raises ConfigError with every setting that was given and is of the other kind.
        """
        odd = [leaf for leaf in leaves() if leaf.only not in ("", kind) and self.get(leaf.key) != leaf.default]
        faults = [f"{leaf.key}: is for {NEEDS[leaf.only]}" for leaf in odd]
        if kind == "text" and self._given("adapter.format") and self.adapter.format != "peft":
            faults.append(f"adapter.format: got {self.adapter.format}, wanted peft: the others have no names for text")
        if faults:
            raise ConfigError(
                f"{self.base} is {NEEDS[kind]}, and some settings aren't for it", faults, "leave them out"
            )
        if kind != "text":
            return self
        other = [leaf for leaf in leaves() if leaf.on_text != leaf.default and not self._given(leaf.key)]
        sections: dict[str, dict[str, Any]] = {}
        for leaf in other:
            sections.setdefault(leaf.section, {})[leaf.name] = leaf.on_text
        changed = {name: getattr(self, name).model_copy(update=values) for name, values in sections.items()}
        return self.model_copy(update=changed)

    def _given(self, key: str) -> bool:
        """Was it set by anyone, though to its default?"""
        section, _, name = key.rpartition(".")
        return name in (getattr(self, section) if section else self).model_fields_set

    def to_toml(self, kind: str = "") -> str:
        """As a TOML file that `build` reads back to an equal config; of a kind of base only what it has.

        A setting left out is unset (None).
        """
        return "\n".join(self._toml_lines(kind)) + "\n"

    def _toml_lines(self, kind: str) -> Iterator[str]:
        section = ""
        for leaf in leaves():
            value = self.get(leaf.key)
            if (value is None and leaf.default is None) or (kind and leaf.only not in ("", kind)):
                continue
            if leaf.section != section:
                section = leaf.section
                yield from ("", f"[{section}]")
            yield f"{leaf.name} = {toml(value)}"


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
        "train.patience",
        "train.validate_every",
        lambda c: bool(c.train.patience) and not c.train.validate_every,
        "but train.validate_every is {}: leave one of them out",
    ),
    (
        "dataset.overlap",
        "dataset.context",
        # The default gives way by itself (texts.scan): who wants short pieces should need no second setting.
        lambda c: c.dataset.context is not None and c.dataset.context <= c.dataset.overlap != DatasetConfig().overlap,
        "wanted less than dataset.context, {}",
    ),
    (
        "lora.text_rank",
        "lora.text_encoder",
        lambda c: c.lora.text_rank is not None and not c.lora.text_encoder,
        "but lora.text_encoder is {}: leave one of them out",
    ),
]
