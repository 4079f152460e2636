"""A picture that carries its recipe -> the same picture again, or what is no longer there, or by how much it differs.

`stylora again boat.png --adapters ~/adapters`
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from studio.draw import generate, recipe
from studio.draw.generate import Easel, OnStep, Picture
from studio.draw.recipe import Made, Recipe
from studio.draw.tables import Table, noting, parse
from studio.draw.use import located, peft_configs
from trainers.errors import AdapterError, ConfigError
from trainers.lora.adapter import Adapter, content_digest, digest


@dataclass(frozen=True)
class Difference:
    """Between two pictures of one size: the largest of a channel (of 255), and how many of how many pixels differ."""

    largest: int
    pixels: int
    of: int

    def __str__(self) -> str:
        if not self.pixels:
            return "same pixels"
        return f"{self.pixels:,} of {self.of:,} pixels differ, by {self.largest} of 255 at the most"


def recall(picture: Path, base: str | None = None, adapters: Path | None = None) -> Recipe:
    """The recipe in a picture; adapters that moved are looked for below a folder by their digests.

    Raises ConfigError with everything that isn't there, or isn't a recipe.
    """
    if picture.suffix.lower() != ".png":
        raise ConfigError(f"{picture}: no PNG", next_step="name a picture that stylora has drawn")
    _check_pixels(picture)
    faults: list[str] = []
    table = parse(recipe.text_of(picture), str(picture))
    rows, named = table.get("adapter"), table.get("base")
    if isinstance(rows, list):
        table["adapter"] = []
        for row in rows:
            with noting(faults):
                table["adapter"].append(find(row, picture.parent, adapters))
    if base:
        table["base"] = str(located(Path(base))) if Path(base).exists() else base
    elif isinstance(named, str) and named.startswith((".", "/")) and not (picture.parent / named).exists():
        faults.append(f"base {named}: not there, seen from the picture; say where it is with --base")
    try:
        return recipe.build(table, picture.parent, {}, faults)
    except ConfigError as error:
        step = "`stylora again --help` says how adapters and bases that moved are found"
        raise ConfigError(f"{picture}: can't be drawn again", error.faults, step) from error


def _check_pixels(picture: Path) -> None:
    """Raises ConfigError where the pixels that the new ones are to be compared with can't be read."""
    try:
        with Image.open(picture) as image:
            image.load()
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises any of them
        reason = getattr(error, "strerror", None) or "not a whole picture"
        step = "its recipe may be whole: `stylora generate --recipe PICTURE.png --out …`"
        raise ConfigError(f"{picture}: can't be read: {reason}", next_step=step) from error


def find(row: Any, folder: Path, below: Path | None) -> Any:
    """The row of an adapter with the file that its digests tell, where another lies or none. Raises AdapterError.

    What isn't a table with a file is given back as it is: it has no digests, or is a fault of the recipe.
    """
    if not isinstance(row, dict) or not isinstance(row.get("file"), str):
        return row
    wanted = folder / os.path.expanduser(row["file"])
    if wanted.exists() and _sha256(wanted) == row.get("sha256"):
        return row
    if found := next(_alike(row, wanted.name, below), None) if below else None:
        return {"name": wanted.stem, **row, "file": str(located(found))}
    if not wanted.exists():
        where = f", nor in {below} an adapter of its digest" if below else "; say where it is with --adapters FOLDER"
        raise AdapterError(f"{wanted}: there is no such file{where}")
    return row


def _alike(row: Table, name: str, below: Path) -> Iterator[Path]:
    """Adapters of the same bytes, then those of the same numbers; first those of the same name."""
    folders = [folder for folder in below.rglob("*/") if peft_configs(folder)]
    there = sorted([*below.rglob("*.safetensors"), *folders], key=lambda path: (path.name != name, path))
    for digest_of, key in ((_sha256, "sha256"), (_content, "digest")):
        yield from (path for path in there if row.get(key) and digest_of(path) == row[key])


def _sha256(path: Path) -> str:
    """ "" where nothing can be read."""
    with contextlib.suppress(AdapterError):
        return digest(path)
    return ""


def _content(path: Path) -> str:
    """ "" where it is no adapter, or none that can be read without its base."""
    with contextlib.suppress(AdapterError):
        return content_digest(Adapter.load(path))
    return ""


def redo(easel: Easel, on_step: OnStep | None = None) -> Picture:
    """The easel's recipe again: in a batch of the same size at the same place, the other places filled with it too."""
    asked = easel.recipe
    if asked.grid:
        from studio.draw import grid

        return grid.sheet(easel, grid.draw(easel, on_step))
    made = asked.made or Made()
    drawn = dict(generate.draw(easel, [replace(asked, count=1)] * made.batch, made.batch, on_step))
    return drawn[made.place]


def compare(one: Image.Image, other: Image.Image) -> Difference:
    """How far two pictures of one size are apart; of two sizes, every pixel is."""
    if one.size != other.size:
        return Difference(255, one.width * one.height, one.width * one.height)
    a, b = (np.asarray(image.convert("RGB"), dtype=int) for image in (one, other))  # (H, W, 3)
    apart = np.abs(a - b).max(-1)
    return Difference(int(apart.max()), int((apart > 0).sum()), apart.size)
