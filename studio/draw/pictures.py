"""Pictures on disk: which files may be written, and what is written into their PNGs: parameters and recipe.

Try it: python -c "from studio.draw.pictures import *; print(recipes.text_of(Path('boat.png')))"
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL.PngImagePlugin import PngInfo

from studio.draw import recipe as recipes
from studio.draw.generate import Picture
from studio.draw.recipe import Recipe
from studio.draw.tables import noting
from studio.draw.use import Use
from studio.outputs import check_free, numbered, write_whole
from trainers.errors import ConfigError, RunError

SAMPLER_NAMES = {
    "ddim": "DDIM",
    "euler": "Euler",
    "euler-a": "Euler a",
    "dpm++2m": "DPM++ 2M",
    "dpm++2m-karras": "DPM++ 2M Karras",
    "unipc": "UniPC",
    "pndm": "PLMS",
}  # fmt: skip  (as A1111 calls them)


def asked(
    file: Path | None,
    flags: Mapping[str, Any],
    out: Path,
    *,
    overwrite: bool = False,
    more: Sequence[Path] = (),
    sheet: bool = False,
) -> tuple[Recipe, list[Path]]:
    """The recipe of a file and flags, and the pictures to write; `more` are other files that will be written.

    A sheet is one picture, whatever the recipe's count.
    Raises one ConfigError with everything that is wrong with any of them, before anything is loaded.
    """
    faults: list[str] = []
    recipe, paths = Recipe(""), list[Path]()
    with noting(faults):
        recipe = recipes.read(file, flags)
    with noting(faults):
        paths = targets_of(out, 1 if sheet else max(1, flags.get("count", recipe.count)), overwrite)
    for path in more:
        with noting(faults):
            check_free([path], overwrite)
    if faults:
        raise ConfigError(recipes.REFUSED, faults, "`stylora generate --help` says what is meant")
    return recipe, paths


def targets_of(out: Path, count: int, overwrite: bool) -> list[Path]:
    """`boat.png`, or `boat-1.png` … for several. Raises RunError rather than write over a picture unasked."""
    if out.suffix.lower() != ".png":
        raise RunError(f"--out {out}: pictures are written as PNG", next_step=f"use {out.with_suffix('.png')}")
    paths = numbered(out, count)
    check_free(paths, overwrite)
    return paths


def parameters_text(picture: Picture) -> str:
    """The text that A1111 and the tools after it write into a PNG's "parameters" chunk and read from there."""
    asked = picture.recipe
    lines = [asked.prompt + "".join(f" {_tag(use)}" for use in asked.adapters)]
    if asked.negative:
        lines.append(f"Negative prompt: {asked.negative}")
    fields = {
        "Steps": asked.steps,
        "Sampler": SAMPLER_NAMES.get(asked.sampler or "", asked.sampler),
        "CFG scale": f"{asked.guidance:g}",
        "Seed": asked.seed,
        "Size": "{}x{}".format(*asked.size or picture.image.size),
        "Model hash": asked.digests.get("unet", "")[:10],
        "Model": asked.base.rstrip("/").rsplit("/", 1)[-1],
    }
    if asked.adapters:
        fields["Lora hashes"] = '"' + ", ".join(f"{use.title}: {use.sha256[:12]}" for use in asked.adapters) + '"'
    said = {name: value for name, value in {**fields, "Version": "stylora"}.items() if value is not None}
    lines.append(", ".join(f"{name}: {value}" for name, value in said.items()))
    return "\n".join(lines)


def _tag(use: Use) -> str:
    """`<lora:ink:0.8>`; a text encoder's own weight comes first, as A1111 reads it: `<lora:ink:0.4:0.8>`."""
    gain = use.gain
    text = "" if gain.text_encoder is None else f"{gain.text_encoder:g}:"
    return f"<lora:{use.title}:{text}{gain.weight:g}>"


def write(path: Path, picture: Picture) -> None:
    """One PNG with its parameters and its recipe. Raises RunError where it can't be written."""
    info = PngInfo()
    recipe = recipes.write(picture.recipe, path.parent, absolute=False)  # pictures are passed on
    texts = {"parameters": parameters_text(picture), recipes.CHUNK: recipe}
    for name, text in texts.items():
        (info.add_text if text.isascii() else info.add_itxt)(name, text)
    stream = io.BytesIO()
    picture.image.save(stream, format="PNG", pnginfo=info)
    write_whole(path, stream.getvalue())


def write_recipe(path: Path, asked: Recipe) -> None:
    """A recipe as a TOML file, to be drawn with other seeds or counts: not tied to one place in a batch."""
    write_whole(path, recipes.write(replace(asked, made=None), path.parent).encode())
