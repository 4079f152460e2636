"""Every setting of a training: its default, its limits and its meaning, written once. Imports no torch.

Flags, `--help`, TOML files and `--set` are all made from these models (`leaves`); `config` reads them.
Try: python -c "from trainers.settings import leaves; print(*leaves(), sep='\\n')"
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo

PRESETS = ("attention", "attention+ff", "all-linear")  # where LoRA goes; anything else is a pattern of module paths


def _path(value: object) -> object:
    if value == "":
        raise ValueError("a path, not an empty text")
    return Path(value) if isinstance(value, str) else value


def _matching(pattern: str, wanted: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(wanted)
        return value

    return check


def _targets(value: str | list[str]) -> str | list[str]:
    """A preset stays a text; one own pattern becomes a list of one."""
    if isinstance(value, str):
        if value in PRESETS:
            return value
        if near := get_close_matches(value, PRESETS, n=1, cutoff=0.75):
            raise ValueError(f"{'|'.join(PRESETS)} or patterns of module paths; did you mean {near[0]}?")
        value = [value]
    if not value or not all(value):
        raise ValueError("at least one pattern, and none of them empty")
    for pattern in value:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"regular expressions; {pattern!r}: {error}") from None
    return value


Location = Annotated[Path, BeforeValidator(_path)]
Targets = Annotated[str | list[str], AfterValidator(_targets)]
Name = Annotated[str, AfterValidator(_matching(r"[^/\\\0]*", "a name without slashes"))]
Colour = Annotated[str, AfterValidator(_matching(r"#[0-9a-fA-F]{6}", "a colour such as #ffffff"))]
Device = Annotated[str, AfterValidator(_matching(r"auto|cpu|mps|cuda(:\d+)?", "auto|cpu|mps|cuda|cuda:0"))]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class LoraConfig(Section):
    rank: int = Field(default=16, ge=1, description="rank of the UNet's adapter")
    alpha: float | None = Field(default=None, gt=0, description="strength, divided by the rank; none = the rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of the adapter's inputs dropped in training")
    rslora: bool = Field(default=False, description="divide alpha by the root of the rank (rsLoRA)")
    targets: Targets = Field(
        default="attention",
        description=f"UNet modules that get LoRA: {', '.join(PRESETS)}, or own regular expressions of module paths",
    )
    text_encoder: bool = Field(default=True, description="train the text encoder too")
    text_rank: int | None = Field(
        default=None, ge=1, description="rank of the text encoder's adapter; none = half of rank, at least 1"
    )
    text_targets: Targets = Field(default="attention", description="text encoder modules that get LoRA; as targets")

    @property
    def unet_alpha(self) -> float:
        return float(self.rank if self.alpha is None else self.alpha)

    @property
    def text_encoder_rank(self) -> int:
        return self.text_rank or max(1, self.rank // 2)

    @property
    def text_encoder_alpha(self) -> float:
        """The same alpha / rank as in the UNet, so that one strength means one thing."""
        return self.unet_alpha * self.text_encoder_rank / self.rank


class DatasetConfig(Section):
    resolution: int | None = Field(
        default=None, ge=32, multiple_of=8, description="side of the pictures in pixels; none = the base's own size"
    )
    instance_prompt: str | None = Field(default=None, description="one caption for the pictures that have none")
    trigger: str = Field(default="", description="word put before every caption; calls the style up later")
    caption_dropout: float = Field(default=0.05, ge=0, le=1, description="share of captions left empty in training")
    repeats: int = Field(default=1, ge=1, description="how often a pass over the data shows each picture")
    require_captions: bool = Field(default=False, description="a picture without its own caption is an error")
    background: Colour = Field(default="#ffffff", description="colour put under transparent pictures")
    flip: bool = Field(default=False, description="mirror pictures at random")
    cache: Annotated[Path | None, BeforeValidator(_path)] = Field(
        default=None, description="folder for encodings; none = $STYLORA_CACHE, else ~/.cache/stylora"
    )


class PriorConfig(Section):
    class_prompt: str | None = Field(
        default=None, description="DreamBooth's class, such as 'a house': keep what the base knows of it; none = off"
    )
    pictures: int = Field(default=16, ge=1, description="class pictures, made once by the base and cached")
    weight: float = Field(default=1.0, gt=0, description="weight of the class pictures in the loss")
    guidance: float = Field(default=7.5, ge=1, description="guidance when the class pictures are made")
    steps: int = Field(default=25, ge=1, description="denoising steps when the class pictures are made")


class ObjectiveConfig(Section):
    min_snr_gamma: float | None = Field(default=5.0, gt=0, description="min-SNR weighting of timesteps; none = off")
    noise_offset: float = Field(
        default=0.0, ge=0, le=1, description="noise shared by a whole channel, for darker darks"
    )
    prediction: Literal["auto", "epsilon", "v"] = Field(
        default="auto", description="what the base predicts; auto = as its scheduler says"
    )


class OptimConfig(Section):
    name: Literal["adamw8bit", "adamw", "paged-adamw8bit", "lion8bit"] = Field(
        default="adamw8bit", description="optimizer; 8bit keeps its state in a byte per number"
    )
    lr: float | None = Field(
        default=None,
        gt=0,
        description="peak learning rate of the UNet's adapter; none = by the base's width, 2.6e-4 on SD 1.5",
    )
    text_lr: float | None = Field(
        default=None, gt=0, description="peak learning rate of the text encoder's adapter; none = a fifth of lr"
    )
    weight_decay: float = Field(default=0.01, ge=0, description="pull of the adapter's weights towards 0")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="memory of the gradient's mean")
    beta2: float = Field(default=0.99, ge=0, lt=1, description="memory of the gradient's square")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="cosine", description="course of the learning rate after the warmup"
    )
    warmup: int = Field(
        default=20, ge=0, description="steps over which the learning rate rises; no more than train.steps"
    )
    clip: float = Field(default=1.0, ge=0, description="largest norm of the gradient; 0 = never clipped")


class LoopConfig(Section):
    steps: int = Field(default=300, ge=1, description="optimizer updates")
    batch: int = Field(default=8, ge=1, description="pictures a step")
    micro_batch: int | None = Field(
        default=None, ge=1, description="pictures in memory at once; same result, less memory; none = batch"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="number format of the computation; auto = fit for the device"
    )
    gradient_checkpointing: bool = Field(default=False, description="compute activations twice instead of keeping them")
    save_every: int = Field(default=100, ge=0, description="steps between checkpoints; 0 = none on the way")
    keep: int = Field(default=2, ge=1, description="newest checkpoints kept")
    preview_every: int = Field(default=0, ge=0, description="steps between previews; 0 = none")
    preview_prompts: list[str] = Field(
        default=[], description="prompts of the previews, between commas or as JSON; empty = captions of the data"
    )
    device: Device = Field(default="auto", description="where to compute: auto, cpu, cuda, cuda:1, mps")


class AdapterConfig(Section):
    format: Literal["kohya", "diffusers"] = Field(default="kohya", description="names of the tensors in the file")
    dtype: Literal["fp16", "bf16", "fp32"] = Field(default="fp16", description="number format in the file")


class Settings(Section):
    """All settings of one training. Relative paths, in a TOML file too, are relative to the current folder."""

    base: str = Field(
        default="tiny-sd", min_length=1, description="frozen model: tiny-sd, sd15, a diffusers folder or a hub id"
    )
    data: Location = Field(description="folder of pictures")
    out: Location = Field(description="folder of the run, where the adapter is written")
    name: Name = Field(default="", description="name of the adapter; empty = the out folder's name")
    seed: int = Field(default=0, ge=0, lt=2**63, description="start of every random number")
    lora: LoraConfig = LoraConfig()
    dataset: DatasetConfig = DatasetConfig()
    prior: PriorConfig = PriorConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: OptimConfig = OptimConfig()
    train: LoopConfig = LoopConfig()
    adapter: AdapterConfig = AdapterConfig()


@dataclass(frozen=True)
class Leaf:
    """One setting: what flags, `--help` and `--set` need to know of it."""

    key: str  # dotted: "optim.lr"; "data" at the top
    type_text: str  # "number > 0"
    default: Any
    description: str
    section: str  # "" at the top
    required: bool
    kinds: frozenset[type]

    @property
    def name(self) -> str:
        return self.key.rpartition(".")[2]


def leaves() -> list[Leaf]:
    """All settings, the top level first, in the order of the models."""
    return list(by_key().values())


@cache
def by_key() -> dict[str, Leaf]:
    top = [("", name, field) for name, field in Settings.model_fields.items() if not _is_section(field)]
    below = [
        (section, name, field)
        for section, owner in Settings.model_fields.items()
        if _is_section(owner)
        for name, field in owner.annotation.model_fields.items()  # type: ignore[union-attr]
    ]
    found = [_leaf(*row) for row in top + below]
    return {leaf.key: leaf for leaf in found}


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, Section)


def _leaf(section: str, name: str, field: FieldInfo) -> Leaf:
    key = f"{section}.{name}" if section else name
    required = field.is_required()
    default = None if required else field.default
    text = field.description or ""
    return Leaf(key, _type_text(field), default, text, section, required, _kinds(field.annotation))


def _kinds(annotation: Any) -> frozenset[type]:
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return frozenset({str})
    if origin in (None, list):
        return frozenset({origin or annotation})
    return frozenset().union(*(_kinds(part) for part in typing.get_args(annotation)))


def _type_text(field: FieldInfo) -> str:
    """What a value must be, in a few words, from the type and the limits of a field."""
    words = {bool: "true|false", int: "int", float: "number", str: "text", Path: "path", list: "list"}
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "multiple_of": "multiple of"}
    kinds = _kinds(field.annotation)
    choices = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is Literal else ()
    text = "|".join(choices or [word for kind, word in words.items() if kind in kinds])
    text = "list of texts" if text == "list" else text
    limits = [
        f"{sign} {getattr(item, name)}".replace(str(2**63), "2^63")
        for item in field.metadata
        for name, sign in signs.items()
        if hasattr(item, name)
    ]
    return f"{text} {', '.join(limits)}".strip() + (" or none" if NoneType in kinds else "")
