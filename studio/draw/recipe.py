"""What pictures are made of, as a value and as TOML: base, adapters with their gains, prompt, seed, numbers.

`stylora generate --recipe blend.toml --out boat.png`; each PNG carries its own: `stylora generate --recipe boat.png …`.
Paths in a recipe are relative to the folder of the file that holds it; digests in it are promises that are checked.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from studio.draw.tables import Kinds, Table, known, noting, parse, toml
from studio.draw.use import Use, from_table, located, parse_use, to_table, written
from trainers.bases import EMBEDDED
from trainers.errors import ConfigError

CHUNK = "stylora"  # the PNG's text chunk that holds the recipe
REFUSED = "these pictures can't be made"
MOST = 1024  # pictures in a batch
MOST_STEPS = 1000
MOST_SIDE = 8192  # pixels; far above what any base of these families can draw, far below what would take the machine
KINDS: Kinds = {
    "prompt": str, "negative": str, "base": str, "seed": int, "count": int, "steps": int, "guidance": float,
    "size": str, "sampler": str, "partial": bool, "adapter": list, "grid": dict, "digests": dict, "made": dict,
}  # fmt: skip
GRID: Kinds = {"x": str, "y": str, "batch": int}
DIGESTS: Kinds = dict.fromkeys(("unet", "text_encoder", "vae"), str)
MADE: Kinds = {"batch": int, "place": int, "with": str}


@dataclass(frozen=True)
class Axes:
    """A sheet's axes as they were written, and how many of its cells are one batch at the most."""

    x: str = ""
    y: str = ""
    batch: int = 16


@dataclass(frozen=True)
class Made:
    """Where in which batch a picture was drawn, which decides how its sums were rounded; and with what."""

    batch: int = 1
    place: int = 0
    facts: str = ""  # "torch 2.13.0, cpu, …"


@dataclass(frozen=True)
class Recipe:
    """All that decides how pictures look; `size` is (width, height), None the base's own; picture k has seed + k."""

    prompt: str
    negative: str = ""
    base: str = "tiny-sd"
    adapters: tuple[Use, ...] = ()
    seed: int = 0
    count: int = 1
    steps: int = 25
    guidance: float = 7.5
    size: tuple[int, int] | None = None
    sampler: str | None = None
    partial: bool = False  # use adapters of which only a part fits the base
    digests: Mapping[str, str] = field(default_factory=dict)  # part of the base -> sha256
    grid: Axes | None = None
    made: Made | None = None

    def pictures(self) -> list[Recipe]:
        """One recipe for each picture, with its own seed."""
        return [replace(self, seed=self.seed + k, count=1) for k in range(self.count)]

    def faults(self) -> list[str]:
        """Everything that is out of range."""
        from trainers.families.stable_diffusion import SAMPLERS  # diffusers takes seconds

        least = {"count": 1, "steps": 1, "seed": 0}
        got = {key: getattr(self, key) for key in least}
        found = [f"{key}: got {got[key]}, wanted at least {low}" for key, low in least.items() if got[key] < low]
        if self.steps > MOST_STEPS:
            found.append(f"steps: got {self.steps}, wanted at most {MOST_STEPS}, as many as the base was trained on")
        if self.seed + self.count > 2**63:
            found.append(f"seed: got {self.seed}, wanted less than 2^63")
        if not 0 <= self.guidance < math.inf:
            found.append(f"guidance: got {self.guidance}, wanted at least 0")
        if self.sampler is not None and self.sampler not in SAMPLERS:
            found.append(f"sampler: got {self.sampler}, wanted one of {', '.join(SAMPLERS)}")
        if self.grid and not 1 <= self.grid.batch <= MOST:
            found.append(f"batch: got {self.grid.batch}, wanted 1 to {MOST}")
        if self.made and not 0 <= self.made.place < self.made.batch <= MOST:
            found.append(f"made: got place {self.made.place} of {self.made.batch}, wanted 0 to {MOST - 1}, below batch")
        texts = (self.prompt, self.negative, self.base, *(str(use.path) for use in self.adapters))
        return found + [f"{text!r}: isn't Unicode text" for text in texts if not _is_unicode(text)]


def _is_unicode(text: str) -> bool:
    """No half of a surrogate pair, which is what the bytes of a badly named file become."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


# --- reading ---------------------------------------------------------------------------------------------------------


def read(file: Path | None = None, flags: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a TOML file or PNG; `flags` win over it: the same keys, adapters as texts, paths from here.

    Raises one ConfigError with all that is wrong in both.
    """
    faults: list[str] = []
    table: Table = {}
    if file:
        with noting(faults):
            table = parse(text_of(file), str(file))
        if faults:
            flags = {"prompt": ""} | dict(flags or {})  # which may well be in the file
    return build(table, file.parent if file else Path(), flags or {}, faults)


def build(table: Table, folder: Path, flags: Mapping[str, Any], faults: list[str]) -> Recipe:
    """The recipe of a file's tables and of the flags that win over it. Raises ConfigError, `faults` among its own."""
    flags = dict(flags)
    # flags name other adapters: the file's own may be gone
    own = {key: value for key, value in table.items() if key != "adapter" or key not in flags}
    values = _values(own, folder, faults)
    if "adapter" in flags:
        flags["adapters"] = _uses(flags.pop("adapter"), Path(), faults)
    if axes := {key: flags.pop(key) for key in GRID if key in flags}:
        flags["grid"] = replace(values.get("grid", Axes()), **axes)
    if "base" in flags:
        values.pop("digests", None)  # those of the recipe's own base
    values |= flags
    if "prompt" not in values:
        faults.append('prompt: missing; give --prompt, or write prompt = "…" in the recipe')
        values["prompt"] = ""
    size = None
    with noting(faults):
        size = parse_size(values.pop("size", None))
    recipe = Recipe(**values, size=size)
    faults += recipe.faults()
    if faults:
        raise ConfigError(REFUSED, faults, "`stylora generate --help` says what is meant")
    return recipe


def text_of(file: Path) -> str:
    """The text of a TOML file, or of the recipe in a PNG. Raises ConfigError."""
    step = "name a recipe.toml, or a PNG that stylora has drawn"
    try:
        if file.suffix.lower() != ".png":
            return file.read_text(encoding="utf-8")
        with Image.open(file) as picture:
            text = picture.info.get(CHUNK)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises any of them
        reason = getattr(error, "strerror", None) or "not a whole file of its kind"
        raise ConfigError(f"{file}: can't be read: {reason}", next_step=step) from error
    if not isinstance(text, str):
        raise ConfigError(f"{file}: carries no recipe of stylora's", next_step=step)
    return str(text)


def _values(table: Table, folder: Path, faults: list[str]) -> Table:
    """A file's tables as the values of a Recipe (`size` still text), its paths made absolute."""
    values = known(table, KINDS, "", faults)
    if "adapter" in values:
        values["adapters"] = _uses(values.pop("adapter"), folder, faults)
    if "base" in values:
        values["base"] = base_in(folder, values["base"])
    if "digests" in values:
        values["digests"] = known(values["digests"], DIGESTS, "digests.", faults)
    if "grid" in values:
        values["grid"] = Axes(**known(values["grid"], GRID, "grid.", faults))
    if "made" in values:
        made = known(values["made"], MADE, "made.", faults)
        values["made"] = Made(made.get("batch", 1), made.get("place", 0), made.get("with", ""))
    return values


def _uses(items: Sequence[Any], folder: Path, faults: list[str]) -> tuple[Use, ...]:
    """Adapters as a person typed them ("ink.safetensors:0.8") or as tables."""
    uses = []
    for item in items:
        with noting(faults):
            if not isinstance(item, str | dict):
                raise ConfigError(f"adapter: got {item!r}, wanted a table or text such as 'ink.safetensors:0.8'")
            uses.append(parse_use(item, folder) if isinstance(item, str) else from_table(item, folder))
    return tuple(uses)


def base_in(folder: Path, base: str) -> str:
    """A base named in a file in `folder`: the absolute path where it is one, else the alias or hub id it is."""
    path = folder / os.path.expanduser(base)
    return str(located(path)) if base not in EMBEDDED and path.exists() else base


def digest_faults(wanted: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """A line for each part of the base whose digest isn't the recipe's; `found` has all the parts of `wanted`."""
    return [
        f"{part}: sha256 is {found[part][:12]}, wanted {digest[:12]}"
        for part, digest in wanted.items()
        if digest != found[part]
    ]


def parse_size(text: str | None) -> tuple[int, int] | None:
    """`512x768` -> (512, 768). Raises ConfigError."""
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not all(side.isascii() and side.isdecimal() and int(side) > 0 for side in (width, height)):
        raise ConfigError(f"size {text}: wanted WIDTHxHEIGHT in pixels", next_step="write for example 512x768")
    if max(int(width), int(height)) > MOST_SIDE:
        raise ConfigError(f"size {text}: wanted sides of at most {MOST_SIDE}", next_step="write for example 512x768")
    return int(width), int(height)


# --- writing ---------------------------------------------------------------------------------------------------------


def write(recipe: Recipe, folder: Path, absolute: bool = True) -> str:
    """The recipe as TOML for a file in `folder`; `read` gives the same recipe back.

    Without `absolute` files that have only the root in common with the folder are there by name alone (use.written).
    """
    table: Table = {"prompt": recipe.prompt, "negative": recipe.negative, "base": recipe.base, "seed": recipe.seed,
                    "count": recipe.count, "steps": recipe.steps, "guidance": recipe.guidance}  # fmt: skip
    if Path(recipe.base).is_absolute():
        path = written(Path(recipe.base), folder, absolute)
        table["base"] = path if path.startswith((".", "/")) else f"./{path}"  # else it could be an alias or a hub id
    if recipe.size:
        table["size"] = "{}x{}".format(*recipe.size)
    if recipe.sampler:
        table["sampler"] = recipe.sampler
    if recipe.partial:
        table["partial"] = True
    table["adapter"] = [to_table(use, folder, absolute) for use in recipe.adapters]
    if recipe.grid:
        table["grid"] = {"x": recipe.grid.x, "y": recipe.grid.y, "batch": recipe.grid.batch}
    if recipe.digests:
        table["digests"] = dict(recipe.digests)
    if recipe.made:
        table["made"] = {"batch": recipe.made.batch, "place": recipe.made.place, "with": recipe.made.facts}
    return toml(table)
