"""What pictures are made of, as a value and as TOML: base, adapters with their gains, prompt, seed, numbers.

`stylora generate --recipe blend.toml --out boat.png`; each PNG carries its own: `stylora generate --recipe boat.png …`.
Paths in a recipe are relative to the folder of the file that holds it; digests in it are promises that are checked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from studio.draw.axes import GRID, Axes
from studio.draw.tables import Kinds, Table, noting, parse, toml, unicode_faults
from studio.draw.use import Use, base_written, settled, to_table
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
DIGESTS: Kinds = dict.fromkeys(("unet", "text_encoder", "vae"), str)
MADE: Kinds = {"batch": int, "place": int, "with": str}


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
        return found + unicode_faults(texts)


# --- reading ---------------------------------------------------------------------------------------------------------


def read(file: Path | None = None, flags: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a TOML file or PNG; `flags` win over it: the same keys, adapters as texts, paths from here.

    Raises one ConfigError with all that is wrong in both.
    """
    return build(*opened(file, flags or {}))


def opened(file: Path | None, flags: Mapping[str, Any]) -> tuple[Table, Path, Mapping[str, Any], list[str]]:
    """What `build` takes, of pictures or texts: a file's tables and its folder, the flags, what is wrong so far."""
    faults: list[str] = []
    table: Table = {}
    if file:
        with noting(faults):
            table = parse(text_of(file), str(file))
        if faults:
            flags = {"prompt": ""} | dict(flags)  # which may well be in the file
    return table, file.parent if file else Path(), flags, faults


def build(table: Table, folder: Path, flags: Mapping[str, Any], faults: list[str]) -> Recipe:
    """The recipe of a file's tables and of the flags that win over it. Raises ConfigError, `faults` among its own."""
    values = settled(table, KINDS, {"digests": DIGESTS, "grid": GRID, "made": MADE}, folder, flags, faults)
    if "grid" in values:
        values["grid"] = Axes(**values["grid"])
    if "made" in values:
        made = values["made"]
        values["made"] = Made(made.get("batch", 1), made.get("place", 0), made.get("with", ""))
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
    table: Table = {"prompt": recipe.prompt, "negative": recipe.negative,
                    "base": base_written(recipe.base, folder, absolute), "seed": recipe.seed,
                    "count": recipe.count, "steps": recipe.steps, "guidance": recipe.guidance}  # fmt: skip
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
