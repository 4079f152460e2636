"""Recipe -> base and adapters in memory -> pictures whose PNG files carry their recipe.

`stylora generate --base tiny-sd --adapter runs/ink/ink.safetensors:0.8 --prompt "a blue boat at night" --out boat.png`
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from studio.draw.recipe import DIGESTS, Made, Recipe, digest_faults
from studio.draw.use import Use, located
from trainers import bases, devices
from trainers.errors import AdapterError, BaseError, ConfigError
from trainers.families.stable_diffusion import StableDiffusion
from trainers.lora import fit
from trainers.lora.adapter import Adapter, content_digest, digest
from trainers.lora.ledger import Ledger, fitted
from trainers.lora.rack import Rack

MOST_AT_ONCE = 8  # pictures sampled as one batch
OnStep = Callable[[int, int], None]  # (steps done, steps in all)


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
    folder = bases.find(recipe.base)
    machine = devices.machine(device)
    family = StableDiffusion(folder, device=machine.device, dtype=machine.frozen_dtype)
    check_size(family, recipe.size)
    digests = {part: family.digest(part) for part in DIGESTS}
    if faults := digest_faults(recipe.digests, digests):
        raise BaseError(f"base {recipe.base}: not the one of the recipe", faults, "name the right one with --base")
    rack = Rack(family.parts())
    uses, notes = _hang(rack, recipe)
    known = replace(recipe, base=_base_of(recipe), digests=digests, adapters=uses)
    return Easel(family, rack, tuple(use.digest for use in uses), known, notes)


def _base_of(recipe: Recipe) -> str:
    """The base's absolute path, so that its pictures find it from anywhere; or the alias or hub id it is."""
    local = recipe.base not in bases.EMBEDDED and os.path.exists(os.path.expanduser(recipe.base))
    return str(located(Path(os.path.expanduser(recipe.base)))) if local else recipe.base


def _hang(rack: Rack, recipe: Recipe) -> tuple[tuple[Use, ...], tuple[str, ...]]:
    """The adapters, now resident in the rack, with their digests; and notes on those of which a part is lost."""
    uses: list[Use] = []
    notes: list[str] = []
    errors: list[AdapterError] = []
    for use in recipe.adapters:
        try:
            adapter, ledger = _fitted(rack, use.path, recipe.partial)
            own = replace(use, digest=content_digest(adapter), sha256=digest(use.path))
            _check_use(use, own, uses)
            rack.add(adapter)
        except AdapterError as error:
            errors.append(error)
            continue
        uses.append(own)
        if not ledger.whole or round(ledger.share, 3) < 1:
            unknown = f" at the most, {ledger.unknown} tensors being of unknown energy" if ledger.unknown else ""
            notes.append(f"{use.path.name}: {ledger.share:.1%} of its energy acts in this base{unknown}")
    if len(errors) == 1:
        raise errors[0]
    if errors:
        faults = [line for error in errors for line in (error.what, *(f"  {fault}" for fault in error.faults))]
        raise AdapterError(f"{len(errors)} adapters can't be used", faults, errors[0].next_step)
    return tuple(uses), tuple(notes)


def _fitted(rack: Rack, path: Path, partial: bool) -> tuple[Adapter, Ledger]:
    """The adapter as it acts in the rack's models, and its ledger; DoRA is converted with these models' weights."""
    modules = fit.modules(rack.parts)

    def weight(name: str) -> Tensor:
        return modules[name].get_parameter("weight").detach().float().cpu()

    return fitted(path, fit.shapes(rack.parts), partial=partial, weight_of=weight)


def _check_use(wanted: Use, got: Use, others: Sequence[Use]) -> None:
    """Raises AdapterError unless it is the adapter that was promised, and no other is the same."""
    if why := wanted.mismatch(got):
        raise AdapterError(
            f"{got.path}: not the adapter of the recipe: {why}",
            next_step="name the right one with --adapter (of `again`: --adapters FOLDER), or take digest and sha256 "
            "out of the recipe",
        )
    if twin := next((use for use in others if use.digest == got.digest), None):
        raise AdapterError(f"{got.path}: the same adapter as {twin.path}", next_step="name it once, with one weight")


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
    easel: Easel, cells: Sequence[Recipe], most: int = MOST_AT_ONCE, on_step: OnStep | None = None
) -> Iterator[tuple[int, Picture]]:
    """(its place among the cells, the picture) for each, as batches are done.

    A cell is a recipe of one picture with the easel's base and adapters; gains, prompts, seeds may differ in a batch.
    """
    plan = batches(cells, most)
    total = sum(cells[group[0]].steps for group in plan)
    done = 0
    for group in plan:
        these = [cells[k] for k in group]

        def tell(step: int, _: int, before: int = done) -> None:
            if on_step:
                on_step(before + step, total)

        images = sample(easel, these, tell)
        done += these[0].steps
        for place, (k, image) in enumerate(zip(group, images, strict=True)):
            made = Made(len(group), place, facts(easel))
            yield k, Picture(image, replace(these[place], size=image.size, grid=None, made=made))


def sample(easel: Easel, cells: Sequence[Recipe], on_step: OnStep) -> list[Image.Image]:
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
    )


def facts(easel: Easel) -> str:
    """What else decides how sums are rounded: versions, device, number format, threads."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "diffusers"))
    dtype = str(easel.family.dtype).removeprefix("torch.")
    return f"{versions}, {easel.family.device.type} {dtype}, {torch.get_num_threads()} threads"
