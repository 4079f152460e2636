"""An adapter in use: which file, how strongly, where and when; as people type it and as a table of a recipe.
And what else recipes of pictures and of texts share: flags win over a file, bases are seen from the file's folder.

    ink.safetensors:0.8:te=0.4:blocks=IN00-IN05=0.5,MID=0:schedule=0@0,1@0.4

Try it: python -c "from studio.draw.use import *; print(parse_use('runs/ink:0.8:te=0.4'))"
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studio.draw.tables import Kinds, Table, known, nearest, noting
from trainers.bases import EMBEDDED
from trainers.errors import AdapterError, ConfigError
from trainers.lora.blocks import format_blocks, parse_blocks
from trainers.lora.files import subfolders
from trainers.lora.formats.names import CONFIG_FILE
from trainers.lora.gains import Gain, format_schedule, parse_schedule

KINDS: dict[str, type] = {
    "file": str, "weight": float, "text_encoder": float, "blocks": str, "schedule": str, "name": str,
    "digest": str, "sha256": str,
}  # fmt: skip
PARTS = {"te": "text_encoder", "blocks": "blocks", "schedule": "schedule", "name": "name"}  # typed word -> table's key


@dataclass(frozen=True)
class Use:
    """An adapter's file (or PEFT folder) and its gain; the digests pin what must be in it, "" pins nothing.

    A file of this sha256 is the right one; of others only those are whose numbers have this digest.
    """

    path: Path
    gain: Gain = field(default_factory=Gain)
    digest: str = ""  # of its numbers: adapter.content_digest of what acts in the base
    sha256: str = ""  # of the whole file
    name: str = ""  # what people call it, if not as its file

    @property
    def title(self) -> str:
        return self.name or self.path.stem

    def mismatch(self, found: Use) -> str:
        """Why the adapter that was found, both its digests known, isn't the one pinned here; "" if it is.

        The same file is the same adapter, whatever digest its numbers have: DoRA's conversion (an SVD) rounds otherwise
        with other threads. Of another file the numbers must be the same.
        """
        key = "digest" if self.digest else "sha256"
        pinned, got = getattr(self, key), getattr(found, key)
        if self.sha256 == found.sha256 or pinned in ("", got):
            return ""
        return f"its {key} is {got[:12]}, wanted {pinned[:12]}"


def parse_use(text: str, folder: Path = Path()) -> Use:
    """`FILE[:WEIGHT][:te=W][:blocks=…][:schedule=…]`, the parts in any order; a run's or PEFT folder for FILE.

    Raises AdapterError with everything wrong with it.
    """
    path, parts = text, list[str]()
    while ":" in path and not os.path.exists(folder / path):  # file names may have colons of their own
        path, _, part = path.rpartition(":")
        parts.insert(0, part)
    table: Table = {"file": path}
    faults: list[str] = []
    for part in parts:
        word, sign, value = part.partition("=")
        key = PARTS.get(word) if sign else "weight"
        if key is None:
            faults.append(f"{part!r}: no such part; {nearest(word, PARTS)}")
        elif key in table:
            faults.append(f"{part!r}: {word if sign else 'a weight'} stands there twice")
        else:
            table[key] = value if sign else word
    for key in {"weight", "text_encoder"} & table.keys():
        table[key] = _number(table[key], faults)
    use = _built(table, folder, faults)
    if faults or use is None:
        raise AdapterError(f"--adapter {text}", [f"{text}: {fault}" for fault in faults], "write FILE:0.8:te=0.4")
    return use


def _number(text: str, faults: list[str]) -> float:
    try:
        if math.isfinite(number := float(text)):
            return number
    except ValueError:
        pass
    faults.append(f"{text!r} is no weight")
    return 0.0


def from_table(table: Table, folder: Path) -> Use:
    """The reverse of `to_table`. Raises AdapterError with everything wrong with it."""
    faults: list[str] = []
    values = known(table, KINDS, "", faults)
    if "file" not in table:
        faults.append('no file; write file = "…"')
    use = _built(values, folder, faults) if "file" in values else None
    if faults or use is None:
        where = f"adapter {table.get('file', '')}".strip()
        raise AdapterError(where, [f"{where}: {fault}" for fault in faults], "mend the recipe's [[adapter]]")
    return use


def _built(table: Table, folder: Path, faults: list[str]) -> Use | None:
    """A use from values of the right kinds."""
    gain: Table = {key: table[key] for key in ("weight", "text_encoder") if key in table}
    readers: Mapping[str, Callable[[str], Any]] = {"blocks": parse_blocks, "schedule": parse_schedule}
    for key in readers.keys() & table.keys():
        with noting(faults):
            gain[key] = readers[key](table[key])
    with noting(faults):
        path = adapter_file(folder / os.path.expanduser(table["file"]))
        return Use(path, Gain(**gain), **{key: table[key] for key in ("digest", "sha256", "name") if key in table})
    return None


def to_table(use: Use, folder: Path, absolute: bool = True) -> Table:
    """The recipe's table of a use, its path as `written` from `folder`, all that is as usual left out."""
    gain = use.gain
    table: Table = {"file": written(use.path, folder, absolute), "weight": gain.weight}
    if gain.text_encoder is not None:
        table["text_encoder"] = gain.text_encoder
    texts = {"blocks": format_blocks(gain.blocks), "schedule": format_schedule(gain.schedule), "name": use.name,
             "digest": use.digest, "sha256": use.sha256}  # fmt: skip
    return table | {key: text for key, text in texts.items() if text}


def adapter_file(path: Path) -> Path:
    """The absolute path of an adapter: a file, a PEFT folder, or the file a finished run's folder names."""
    if path.is_dir() and not peft_configs(path):
        try:
            path = path / json.loads((path / "report.json").read_text())["adapter"]
        except (OSError, LookupError, TypeError, ValueError) as error:
            raise AdapterError(
                f"{path}: this folder holds no finished run and no PEFT adapter",
                next_step="name the .safetensors file itself",
            ) from error
    if not path.exists():
        raise AdapterError(
            f"{path}: there is no such file", next_step="name an adapter file, or a finished run's folder"
        )
    return located(path)


def peft_configs(folder: Path) -> list[Path]:
    """What makes a folder a PEFT adapter: its own config, or one for each component in a folder of its name."""
    return [folder / name / CONFIG_FILE for name in subfolders(folder)]


def located(path: Path) -> Path:
    """The path as an absolute one without `..`; the name itself stays, though it be a link to another."""
    whole = Path(os.path.abspath(path))
    return whole.parent.resolve() / whole.name


def written(path: Path, folder: Path, absolute: bool = True) -> str:
    """The path as a file in `folder` names it: relative; where the two have nothing but the root in common the
    absolute one, or without `absolute` its last part alone, which tells nobody how a disk is laid out.
    """
    path, folder = located(path), Path(folder).resolve()
    if os.path.commonpath((path, folder)) != os.path.abspath(os.sep):
        return os.path.relpath(path, folder)
    return str(path) if absolute else path.name


# --- recipes ---------------------------------------------------------------------------------------------------------


def settled(
    table: Table, kinds: Kinds, inner: Mapping[str, Kinds], folder: Path, flags: Mapping[str, Any], faults: list[str]
) -> Table:
    """The values of a recipe: those of a file's tables, its paths seen from `folder`, and flags that win over them.

    `kinds` are those of its keys, `inner` of the tables in it; x, y and batch of the flags go into its table "grid".
    """
    flags = dict(flags)
    # flags name other adapters: the file's own may be gone
    own = {key: value for key, value in table.items() if key != "adapter" or key not in flags}
    values = known(own, kinds, "", faults)
    if "adapter" in values:
        values["adapters"] = uses(values.pop("adapter"), folder, faults)
    if "base" in values:
        values["base"] = base_in(folder, values["base"])
    for key in inner.keys() & values.keys():
        values[key] = known(values[key], inner[key], f"{key}.", faults)
    if "adapter" in flags:
        flags["adapters"] = uses(flags.pop("adapter"), Path(), faults)
    if axes := {key: flags.pop(key) for key in inner["grid"] if key in flags}:
        flags["grid"] = values.get("grid", {}) | axes
    if "base" in flags:
        values.pop("digests", None)  # those of the recipe's own base
    values |= flags
    if "prompt" not in values:
        faults.append('prompt: missing; give --prompt, or write prompt = "…" in the recipe')
        values["prompt"] = ""
    return values


def uses(items: Sequence[Any], folder: Path, faults: list[str]) -> tuple[Use, ...]:
    """Adapters as a person typed them ("ink.safetensors:0.8") or as tables."""
    found = []
    for item in items:
        with noting(faults):
            if not isinstance(item, str | dict):
                raise ConfigError(f"adapter: got {item!r}, wanted a table or text such as 'ink.safetensors:0.8'")
            found.append(parse_use(item, folder) if isinstance(item, str) else from_table(item, folder))
    return tuple(found)


def base_in(folder: Path, base: str) -> str:
    """A base named in a file in `folder`: the absolute path where it is one, else the alias or hub id it is."""
    path = folder / os.path.expanduser(base)
    return str(located(path)) if base not in EMBEDDED and path.exists() else base


def base_written(base: str, folder: Path, absolute: bool = True) -> str:
    """The reverse, as `written` does it, and never what could be an alias or a hub id."""
    if not Path(base).is_absolute():
        return base
    path = written(Path(base), folder, absolute)
    return path if path.startswith((".", "/")) else f"./{path}"
