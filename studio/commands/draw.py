"""The commands that draw, or write where the base is a language model: generate · grid · again.

`stylora generate --adapter ink.safetensors:0.8 --prompt "a blue boat at night" --out boat.png; stylora again boat.png`
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from studio.commands import texts
from studio.commands.texts import PANEL as PANEL
from studio.commands.texts import MaxTokens, Penalty, System, Temperature, TopK, TopP
from trainers.cli import app
from trainers.console import escape, progress, say, show_notes
from trainers.errors import ConfigError, StyloraError

OPTIONS = {
    "pictures": ("negative", "steps", "guidance", "size", "sampler", "cells"),
    "text": ("chat", "system", "max_tokens", "temperature", "top_p", "top_k", "repetition_penalty"),
}  # those that only one kind of base takes

Prompt = Annotated[str | None, typer.Option(help="what to draw; on a language model, how the text begins")]
RecipeFile = Annotated[
    Path | None, typer.Option("--recipe", metavar="FILE", help="recipe as TOML, or a PNG that carries one; flags win")
]
SaveRecipe = Annotated[Path | None, typer.Option(metavar="FILE.toml", help="write the recipe, as --recipe reads it")]
Base = Annotated[
    str | None,
    typer.Option(
        help="tiny-sd, sd15, a diffusers folder, a checkpoint or a hub id; default tiny-sd; or a language model: "
        "tiny-lm, a transformers folder or a hub id"
    ),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        metavar="FILE[:WEIGHT]",
        help="adapter file, run or PEFT folder; may be repeated; more of it after FILE, in any order: "
        ":0.8 :te=0.4 (weight in the text encoder) :blocks=IN00-IN05=0.5,MID=0 :schedule=0@0,1@0.4 (of the UNet's "
        "weight over the steps: FACTOR@PLACE; the text encoder runs once, with its whole weight)",
    ),
]
Negative = Annotated[str | None, typer.Option(help="what to keep out of the picture")]
Steps = Annotated[int | None, typer.Option(help="denoising steps; default 25")]
Guidance = Annotated[float | None, typer.Option(help="how closely to follow the prompt; default 7.5")]
Size = Annotated[str | None, typer.Option(metavar="WxH", help="such as 512x768; default: the base's own")]
Sampler = Annotated[
    str | None, typer.Option(help="ddim, euler, euler-a, dpm++2m, dpm++2m-karras, unipc, pndm; default: the base's")
]
Partial = Annotated[
    bool | None, typer.Option("--partial", help="use adapters of which only a part fits the base", show_default=False)
]
Chat = Annotated[
    bool | None,
    typer.Option("--chat/--plain", help="answer the prompt in the base's chat template, or go on from it (default)"),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps")]
Overwrite = Annotated[bool, typer.Option(help="write over files that are there")]


@app.command(rich_help_panel=PANEL)
def generate(
    out: Annotated[
        Path | None, typer.Option(help="PNG file to write, of texts (they are printed too) a TXT; several are numbered")
    ] = None,
    prompt: Prompt = None,
    recipe: RecipeFile = None,
    base: Base = None,
    adapter: Adapters = None,
    negative: Negative = None,
    seed: Annotated[int | None, typer.Option(help="of the first; the next has seed + 1; default 0")] = None,
    count: Annotated[int | None, typer.Option(help="how many pictures or texts; default 1")] = None,
    steps: Steps = None,
    guidance: Guidance = None,
    size: Size = None,
    sampler: Sampler = None,
    chat: Chat = None,
    system: System = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    repetition_penalty: Penalty = None,
    partial: Partial = None,
    save_recipe: SaveRecipe = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Draw pictures, or write texts, with a base and any adapters; each PNG carries its recipe."""
    flags = _given(prompt, recipe, base=base, adapter=adapter, negative=negative, seed=seed, count=count, steps=steps,
                   guidance=guidance, size=size, sampler=sampler, chat=chat, system=system, max_tokens=max_tokens,
                   temperature=temperature, top_p=top_p, top_k=top_k, repetition_penalty=repetition_penalty,
                   partial=partial)  # fmt: skip
    if _writes(recipe, flags):
        return texts.generate_texts(recipe, flags, out, save_recipe, device, overwrite)
    out = _needed(out)
    from studio.draw import generate as drawing
    from studio.draw import pictures

    more = [save_recipe] if save_recipe else []
    asked, paths = pictures.asked(recipe, flags, out, overwrite=overwrite, more=more)
    show_notes(["one picture of the recipe, without its axes: `stylora grid` draws the sheet"] if asked.grid else [])
    easel = _load(asked, device)
    if save_recipe:
        pictures.write_recipe(save_recipe, easel.recipe)
    with progress("drawing") as tell:
        for k, picture in drawing.draw(easel, easel.recipe.pictures(), on_step=tell):
            pictures.write(paths[k], picture)
            say(f"[green]{escape(str(paths[k]))}[/] seed {picture.recipe.seed}")


@app.command(rich_help_panel=PANEL)
def grid(
    out: Annotated[
        Path | None, typer.Option(help="PNG file to write: one labelled sheet; of texts a table: MD, CSV or TXT")
    ] = None,
    x: Annotated[
        str | None,
        typer.Option(
            metavar="AXIS=VALUES",
            help="across: adapter:A=0..1/5 (A is the first --adapter; or its name), te:A, block:MID, seed=1..4, "
            "'prompt=a boat|a house', negative, guidance=4,7.5, steps, sampler=ddim,euler; of texts: adapter:A, "
            "block:L00, seed, prompt, system, temperature, top_p, top_k, repetition_penalty, max_tokens",
        ),
    ] = None,
    y: Annotated[str | None, typer.Option(metavar="AXIS=VALUES", help="down: the same; may be left out")] = None,
    prompt: Prompt = None,
    recipe: RecipeFile = None,
    base: Base = None,
    adapter: Adapters = None,
    negative: Negative = None,
    seed: Annotated[int | None, typer.Option(help="of every picture; default 0")] = None,
    steps: Steps = None,
    guidance: Guidance = None,
    size: Size = None,
    sampler: Sampler = None,
    chat: Chat = None,
    system: System = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    repetition_penalty: Penalty = None,
    partial: Partial = None,
    batch: Annotated[int | None, typer.Option(help="cells drawn at once at the most; default 16")] = None,
    cells: Annotated[Path | None, typer.Option(metavar="FOLDER", help="write each cell too, as ROW-COLUMN.png")] = None,
    save_recipe: SaveRecipe = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Draw one sheet, or print a table of texts, on which weights, blocks, seeds, prompts or numbers vary two ways."""
    flags = _given(prompt, recipe, base=base, adapter=adapter, negative=negative, seed=seed, steps=steps, size=size,
                   guidance=guidance, sampler=sampler, chat=chat, system=system, max_tokens=max_tokens,
                   temperature=temperature, top_p=top_p, top_k=top_k, repetition_penalty=repetition_penalty,
                   partial=partial, x=x, y=y, batch=batch)  # fmt: skip
    if _writes(recipe, {**flags, **({"cells": cells} if cells else {})}):
        return texts.grid_of_texts(recipe, flags, out, save_recipe, device, overwrite)
    out = _needed(out)
    from studio.draw import generate as drawing
    from studio.draw import grid as grids
    from studio.draw import pictures
    from studio.outputs import check_free

    more = [save_recipe] if save_recipe else []
    asked, paths = pictures.asked(recipe, flags, out, overwrite=overwrite, more=more, sheet=True)
    planned = grids.plan(asked)
    show_notes(["a grid has one picture a cell: the recipe's count stays out"] if asked.count > 1 else [])
    names = grids.cell_names(planned, cells) if cells else []
    if names:
        check_free(names, overwrite)
    easel = _load(asked, device)
    if save_recipe:
        pictures.write_recipe(save_recipe, easel.recipe)
    with progress("drawing") as tell:
        made = grids.draw(easel, tell)
    for name, picture in zip(names, made, strict=bool(names)):
        pictures.write(name, picture)
    pictures.write(paths[0], grids.sheet(easel, made))
    together = len(drawing.batches(planned.cells, asked.grid.batch if asked.grid else 1))
    say(f"[green]{escape(str(paths[0]))}[/] {len(made)} pictures in {together} batch{'es' if together > 1 else ''}")


@app.command(rich_help_panel=PANEL)
def again(
    picture: Annotated[Path, typer.Argument(metavar="PICTURE.png", help="picture or sheet that stylora has drawn")],
    out: Annotated[Path | None, typer.Option(help="PNG file to write; default: PICTURE-again.png")] = None,
    adapters: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="where to look for adapters that moved, by their digests")
    ] = None,
    base: Annotated[str | None, typer.Option(help="where the base is now")] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Draw a picture again from the recipe it carries, and compare; exit code 1 unless the pixels are the same."""
    from PIL import Image

    from studio.draw import again as repeating
    from studio.draw import pictures

    wanted = repeating.recall(picture, base, adapters)
    (path,) = pictures.targets_of(out or picture.with_stem(f"{picture.stem}-again"), 1, overwrite)
    easel = _load(wanted, device)
    with progress("drawing") as tell:
        made = repeating.redo(easel, tell)
    with Image.open(picture) as before:
        difference = repeating.compare(before, made.image)
    pictures.write(path, made)
    colour = "yellow" if difference.pixels else "green"
    say(f"[{colour}]{escape(str(path))}[/] {difference}")
    if difference.pixels:
        then, now = (recipe.made.facts if recipe.made else "" for recipe in (wanted, made.recipe))
        show_notes([f"drawn with {then}", f"and now with {now}"] if then != now else ["all that was noted is the same"])
        raise typer.Exit(1)


def _given(prompt: str | None, recipe: Path | None, **flags: Any) -> Mapping[str, Any]:
    """The flags that were given; a prompt must be among them, in a recipe or on an axis."""
    varied = any(str(flags.get(way)).startswith("prompt=") for way in ("x", "y"))
    if prompt is None and recipe is None and not varied:
        raise typer.BadParameter("give it, or a --recipe that holds one", param_hint="--prompt")
    prompt = "" if prompt is None and varied else prompt
    return {key: value for key, value in {"prompt": prompt, **flags}.items() if value is not None and value != []}


def _needed(out: Path | None) -> Path:
    """Where pictures go. Raises BadParameter where nobody said."""
    if out is None:
        raise typer.BadParameter("name the PNG file to write", param_hint="--out")
    return out


def _writes(recipe: Path | None, flags: Mapping[str, Any]) -> bool:
    """Whether the base is a language model. Raises BaseError; ConfigError that names all options of the other kind."""
    from trainers import bases

    name = flags.get("base") or _base_in(recipe)
    kind = bases.kind_of(bases.find(name, weights=False))
    other: bases.Kind = "pictures" if kind == "text" else "text"
    if wrong := [f"--{key.replace('_', '-')}" for key in flags if key in OPTIONS[other]]:
        faults = [f"{option} is for {'pictures' if other == 'pictures' else 'texts'}" for option in wrong]
        raise ConfigError(f"{name} is {bases.WORDS[kind]}", faults, "leave them out, or name another --base")
    return kind == "text"


def _base_in(recipe: Path | None) -> str:
    """The base that a recipe names; what else is wrong with it is told by who reads all of it."""
    from studio.draw.recipe import Recipe, text_of
    from studio.draw.tables import parse
    from studio.draw.use import base_in

    named = None
    if recipe:
        with contextlib.suppress(StyloraError):
            named = parse(text_of(recipe), str(recipe)).get("base")
    return base_in(recipe.parent, named) if recipe and isinstance(named, str) else Recipe.base


def _load(asked: Any, device: str) -> Any:
    """The easel; says what of the adapters doesn't act."""
    from studio.draw import generate as drawing

    with progress("loading"):
        easel = drawing.load(asked, device)
    show_notes(easel.notes)
    return easel
