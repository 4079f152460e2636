"""Prompt + base + adapters -> pictures whose PNG files say how they were made.

`stylora generate --base tiny-sd --adapter runs/ink/ink.safetensors:0.8 --prompt "a blue boat at night" --out boat.png`
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from trainers import bases, checkpoint, devices
from trainers.errors import AdapterError, ConfigError, RunError, StyloraError
from trainers.families.stable_diffusion import SAMPLERS, StableDiffusion
from trainers.lora import inject
from trainers.lora.adapter import Adapter, digest

MOST_AT_ONCE = 8  # pictures sampled as one batch
REFUSED = "these pictures can't be made"


@dataclass(frozen=True)
class Used:
    """An adapter file and its weight: 1 is as trained, 0 is off, negative turns it around."""

    path: Path
    weight: float


@dataclass(frozen=True)
class Request:
    """What to make; `size` is (width, height), None the base's own; picture k has seed + k."""

    prompt: str
    negative: str = ""
    seed: int = 0
    count: int = 1
    steps: int = 25
    guidance: float = 7.5
    size: tuple[int, int] | None = None
    sampler: str | None = None

    def faults(self) -> list[str]:
        """Everything that is out of range."""
        found = [
            f"{name}: got {value}, wanted at least {least}"
            for name, value, least in (("count", self.count, 1), ("steps", self.steps, 1), ("seed", self.seed, 0))
            if value < least
        ]
        if self.seed >= 2**63:
            found.append(f"seed: got {self.seed}, wanted less than 2^63")
        if not 0 <= self.guidance < math.inf:
            found.append(f"guidance: got {self.guidance}, wanted at least 0")
        if self.sampler is not None and self.sampler not in SAMPLERS:
            found.append(f"sampler: got {self.sampler}, wanted one of {', '.join(SAMPLERS)}")
        return found


def check(request: Request) -> None:
    """Raises one ConfigError with everything that is out of range."""
    if faults := request.faults():
        raise ConfigError(REFUSED, faults, "`stylora generate --help` says what is meant")


def read(
    request: Request, size: str | None, adapters: Sequence[str], out: Path, overwrite: bool = False
) -> tuple[Request, list[Used], list[Path]]:
    """What the command line says, in full: the request with its size, adapters, files to write.

    Raises one StyloraError with everything that is wrong with it, before anything is loaded.
    """
    used: list[Used] = []
    paths: list[Path] = []
    sizes: list[tuple[int, int] | None] = []
    readers: list[Callable[[], object]] = [
        lambda: check(request),
        lambda: sizes.append(parse_size(size)),
        *(lambda text=text: used.append(parse_used(text)) for text in adapters),
        lambda: paths.extend(targets_of(out, max(1, request.count), overwrite)),
    ]
    errors: list[StyloraError] = []
    for reader in readers:
        try:
            reader()
        except StyloraError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ConfigError(
            REFUSED,
            [fault for error in errors for fault in error.faults or (f"{error.what}; {error.next_step}",)],
            "`stylora generate --help` says what is meant",
        )
    return replace(request, size=sizes[0]), used, paths


def parse_size(text: str | None) -> tuple[int, int] | None:
    """`512x768` -> (512, 768). Raises ConfigError."""
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not all(side.isascii() and side.isdecimal() and int(side) > 0 for side in (width, height)):
        raise ConfigError(f"--size {text}: wanted WIDTHxHEIGHT in pixels", next_step="write for example 512x768")
    return int(width), int(height)


def parse_used(text: str) -> Used:
    """`FILE`, `FILE:0.8`, or a run's folder in the file's place. Raises AdapterError."""
    path, weight = Path(text), 1.0
    if not path.exists() and ":" in text:
        name, _, number = text.rpartition(":")
        path = Path(name)
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight):
            raise AdapterError(f"--adapter {text}: {number!r} is no weight", next_step="write FILE:0.8")
    if path.is_dir():
        try:
            path = path / json.loads((path / "report.json").read_text())["adapter"]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise AdapterError(
                f"--adapter {path}: this folder holds no finished run", next_step="name the .safetensors file itself"
            ) from error
    if not path.is_file():
        raise AdapterError(
            f"--adapter {path}: there is no such file", next_step="name an adapter file, or a finished run's folder"
        )
    return Used(path, weight)


def targets_of(out: Path, count: int, overwrite: bool) -> list[Path]:
    """`boat.png`, or `boat-1.png` … for several. Raises RunError rather than write over a picture unasked."""
    if out.suffix.lower() != ".png":
        raise RunError(f"--out {out}: pictures are written as PNG", next_step=f"use {out.with_suffix('.png')}")
    paths = [out] if count == 1 else [out.with_name(f"{out.stem}-{k + 1}{out.suffix}") for k in range(count)]
    folder = next(place for place in out.absolute().parents if place.exists())
    effective = os.access in os.supports_effective_ids
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK, effective_ids=effective):
        raise RunError(
            f"--out {out}: nothing can be written in {folder}", next_step="name a file in a folder of your own"
        )
    if folders := [path for path in paths if path.is_dir()]:
        raise RunError("a folder is in the way", [f"{path} is a folder" for path in folders], "name another --out")
    if not overwrite and (there := [path for path in paths if path.exists()]):
        raise RunError(
            "that would write over pictures",
            [f"{path} exists" for path in there],
            "name another --out, or add --overwrite",
        )
    return paths


def load(base: str, used: Sequence[Used], device: str = "auto", size: tuple[int, int] | None = None) -> StableDiffusion:
    """The base with the adapters acting in it, able to draw in `size`. Raises BaseError, AdapterError, ConfigError."""
    adapters = [(one, Adapter.load(one.path)) for one in used]
    machine = devices.machine(device)
    family = StableDiffusion(bases.find(base), device=machine.device, dtype=machine.frozen_dtype)
    _check_size(family, size)
    for number, (one, adapter) in enumerate(adapters):
        inject.attach(family.parts(), adapter.pairs, one.weight, f"adapter{number}")
    return family


def pictures(
    family: StableDiffusion, request: Request, on_step: Callable[[int, int], None] | None = None
) -> list[tuple[Image.Image, int]]:
    """(picture, its seed), `count` of them; picture k is the same whatever the count."""
    check(request)
    _check_size(family, request.size)
    made: list[tuple[Image.Image, int]] = []
    seeds = [request.seed + k for k in range(request.count)]
    for first in range(0, len(seeds), MOST_AT_ONCE):
        part = seeds[first : first + MOST_AT_ONCE]
        images = family.sample(
            [request.prompt] * len(part),
            part,
            negative=request.negative,
            steps=request.steps,
            guidance=request.guidance,
            size=request.size,
            sampler=request.sampler,
            on_step=on_step,
        )
        made += zip(images, part, strict=True)
    return made


def _check_size(family: StableDiffusion, size: tuple[int, int] | None) -> None:
    if size and (bad := [side for side in size if side < family.multiple or side % family.multiple]):
        near = [max(family.multiple, round(side / family.multiple) * family.multiple) for side in size]
        raise ConfigError(
            f"size {size[0]}x{size[1]}: this base takes sides that are multiples of {family.multiple}",
            [f"{side} is none" for side in bad],
            f"use {near[0]}x{near[1]}",
        )


def parameters_text(
    request: Request, seed: int, picture: Image.Image, base: str, base_digest: str, used: Sequence[Used]
) -> str:
    """The text that A1111 and the tools after it write into a PNG's "parameters" chunk and read from there."""
    loras = "".join(f" <lora:{one.path.stem}:{one.weight:g}>" for one in used)
    lines = [request.prompt + loras]
    if request.negative:
        lines.append(f"Negative prompt: {request.negative}")
    fields = {
        "Steps": request.steps,
        "Sampler": request.sampler or "the base's own",
        "CFG scale": f"{request.guidance:g}",
        "Seed": seed,
        "Size": f"{picture.width}x{picture.height}",
        "Model hash": base_digest[:10],
        "Model": base.rstrip("/").rsplit("/", 1)[-1],
    }
    if used:
        fields["Lora hashes"] = '"' + ", ".join(f"{one.path.stem}: {digest(one.path)[:12]}" for one in used) + '"'
    lines.append(", ".join(f"{name}: {value}" for name, value in {**fields, "Version": "stylora"}.items()))
    return "\n".join(lines)


def write(path: Path, picture: Image.Image, parameters: str) -> None:
    """One PNG with its parameters. Raises RunError where it can't be written."""
    info = PngInfo()
    info.add_itxt("parameters", parameters) if not parameters.isascii() else info.add_text("parameters", parameters)
    stream = io.BytesIO()
    picture.save(stream, format="PNG", pnginfo=info)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_atomically(path, stream.getvalue())
    except OSError as error:
        raise RunError(f"{path} can't be written: {error.strerror or error}", next_step="name another --out") from error
