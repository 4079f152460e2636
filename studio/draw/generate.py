"""Recipe -> base and adapters in memory -> pictures whose PNG files carry their recipe.

`stylora generate --base tiny-sd --adapter runs/ink/ink.safetensors:0.8 --prompt "a blue boat at night" --out boat.png`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from studio import resident
from studio.draw.recipe import DIGESTS, Made, Recipe
from studio.resident import Reader
from trainers import bases, devices
from trainers.errors import ConfigError
from trainers.families.stable_diffusion import StableDiffusion
from trainers.lora.rack import Rack

MOST_AT_ONCE = 8  # pictures sampled as one batch
OnStep = Callable[[int, int], None]  # (steps done, steps in all)
OnLatents = Callable[[Sequence[int], int, Tensor], None]  # (which cells, steps of these that are done, their latents)


@dataclass(frozen=True)
class Easel:
    """A base with adapters resident in its rack, ready to draw; `recipe` now has every digest."""

    family: StableDiffusion
    rack: Rack
    keys: tuple[str, ...]  # the rack's, in the order of the recipe's adapters
    recipe: Recipe
    notes: tuple[str, ...]  # what a person should know of it


@dataclass(frozen=True)
class Picture:
    """A picture and the recipe that makes it again."""

    image: Image.Image
    recipe: Recipe


# --- the base and its adapters ---------------------------------------------------------------------------------------


def load(recipe: Recipe, device: str = "auto") -> Easel:
    """The base with the recipe's adapters resident in it, able to draw its size.

    Raises BaseError or ConfigError; AdapterError with what is wrong with any of the adapters; a digest of the recipe
    that isn't what is there is an error too.
    """
    return set_up(recipe, open_base(bases.find(recipe.base), device))


def open_base(folder: Path, device: str = "auto") -> StableDiffusion:
    """The base in `folder`; its parts are loaded when they are first needed. Raises BaseError or ConfigError."""
    machine = devices.machine(device)
    return StableDiffusion(folder, device=machine.device, dtype=machine.frozen_dtype)


def set_up(recipe: Recipe, family: StableDiffusion, rack: Rack | None = None, read: Reader = resident.read) -> Easel:
    """`load` with a base that is open already; of the rack's residents, those that the recipe names stay as they are.

    `read` gives an adapter's file as it acts in the rack.
    """
    check_size(family, recipe.size)
    digests = {part: family.digest(part) for part in DIGESTS}
    resident.check_digests(recipe.base, recipe.digests, digests)
    rack = Rack(family.parts()) if rack is None else rack
    uses, notes = resident.hang(rack, recipe.adapters, recipe.partial, read, recipe.base, digests["unet"])
    known = replace(recipe, base=resident.base_of(recipe.base), digests=digests, adapters=uses)
    return Easel(family, rack, tuple(use.digest for use in uses), known, notes)


def check_size(family: StableDiffusion, size: tuple[int, int] | None) -> None:
    """Raises ConfigError where the base can't draw in this size."""
    if size and (bad := [side for side in size if side < family.multiple or side % family.multiple]):
        near = [max(family.multiple, round(side / family.multiple) * family.multiple) for side in size]
        raise ConfigError(
            f"size {size[0]}x{size[1]}: this base takes sides that are multiples of {family.multiple}",
            [f"{side} is none" for side in bad],
            f"use {near[0]}x{near[1]}",
        )


# --- drawing ---------------------------------------------------------------------------------------------------------


def batches(cells: Sequence[Recipe], most: int = MOST_AT_ONCE) -> list[list[int]]:
    """Which cells are drawn together, by their places: those with the same numbers, `most` at once."""
    alike: dict[tuple[object, ...], list[int]] = {}
    for k, cell in enumerate(cells):
        alike.setdefault((cell.steps, cell.guidance, cell.size, cell.sampler), []).append(k)
    return [group[first : first + most] for group in alike.values() for first in range(0, len(group), most)]


def draw(
    easel: Easel,
    cells: Sequence[Recipe],
    most: int = MOST_AT_ONCE,
    on_step: OnStep | None = None,
    on_latents: OnLatents | None = None,
) -> Iterator[tuple[int, Picture]]:
    """(its place among the cells, the picture) for each, as batches are done.

    A cell is a recipe of one picture with the easel's base and adapters; gains, prompts, seeds may differ in a batch.
    `on_latents` is given what StableDiffusion.sample tells after each step. Raises ConfigError, before anything is
    drawn: a sampler can't take so many steps.
    """
    for steps, sampler in dict.fromkeys((cell.steps, cell.sampler) for cell in cells):
        easel.family.check_steps(steps, sampler)
    plan = batches(cells, most)
    total = sum(cells[group[0]].steps for group in plan)
    done = 0
    for group in plan:
        these = [cells[k] for k in group]

        def tell(step: int, _: int, before: int = done) -> None:
            if on_step:
                on_step(before + step, total)

        images = sample(easel, these, tell, partial(on_latents, group) if on_latents else None)
        done += these[0].steps
        for place, (k, image) in enumerate(zip(group, images, strict=True)):
            made = Made(len(group), place, facts(easel))
            yield k, Picture(image, replace(these[place], size=image.size, grid=None, made=made))


def sample(
    easel: Easel, cells: Sequence[Recipe], on_step: OnStep, on_latents: Callable[[int, Tensor], None] | None = None
) -> list[Image.Image]:
    """One batch; every sample has its own gains, also where they are alike, so that rounding is that of its place."""
    rack, first = easel.rack, cells[0]
    rack.set([{key: use.gain for key, use in zip(easel.keys, cell.adapters, strict=True)} for cell in cells])

    def step(done: int, total: int) -> None:
        rack.at(done / total)
        on_step(done, total)

    return easel.family.sample(
        [cell.prompt for cell in cells],
        [cell.seed for cell in cells],
        negative=[cell.negative for cell in cells],
        steps=first.steps,
        guidance=first.guidance,
        size=first.size,
        sampler=first.sampler,
        on_step=step,
        on_latents=on_latents,
    )


def facts(easel: Easel) -> str:
    """What else decides how sums are rounded: versions, device, number format, threads."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "diffusers"))
    dtype = str(easel.family.dtype).removeprefix("torch.")
    return f"{versions}, {easel.family.device.type} {dtype}, {torch.get_num_threads()} threads"
