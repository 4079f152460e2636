"""Every setting of a training: its default, its limits and its meaning, written once. Imports no torch.

Flags, `--help`, TOML files and `--set` are all made from these models (by `leaves`); `config` reads them.
A setting may be for one kind of base only (`for_pictures`, `for_text`), or have another default on text.
Try: python -c "from trainers.settings import Settings; print(Settings(data='pictures', out='runs/ink').lora)"
"""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

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


def for_pictures(default: Any, description: str, **limits: Any) -> Any:
    """A setting that only bases which make pictures have."""
    return Field(default=default, description=description, json_schema_extra={"only": "pictures"}, **limits)


def for_text(default: Any, description: str, **limits: Any) -> Any:
    """A setting that only language models have."""
    return Field(default=default, description=description, json_schema_extra={"only": "text"}, **limits)


def for_both(default: Any, on_text: Any, description: str, **limits: Any) -> Any:
    """A setting whose default is another on language models."""
    return Field(default=default, description=description, json_schema_extra={"text": on_text}, **limits)


class LoraConfig(Section):
    rank: int = Field(default=16, ge=1, description="rank of the adapter, of the UNet's or of the language model's")
    alpha: float | None = Field(default=None, gt=0, description="strength, divided by the rank; none = the rank")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="share of the adapter's inputs dropped in training")
    rslora: bool = Field(default=False, description="divide alpha by the root of the rank (rsLoRA)")
    dora: bool = for_text(False, "learn the length of each weight row apart from its direction (DoRA)")
    targets: Targets = for_both(
        "attention",
        "all-linear",
        f"modules that get LoRA: {', '.join(PRESETS)}, or own regular expressions of module paths",
    )
    text_encoder: bool = for_pictures(True, "train the text encoder too")
    text_rank: int | None = for_pictures(
        None, "rank of the text encoder's adapter; none = half of rank, at least 1", ge=1
    )
    text_targets: Targets = for_pictures("attention", "text encoder modules that get LoRA; as targets")

    @property
    def full_alpha(self) -> float:
        return float(self.rank if self.alpha is None else self.alpha)

    @property
    def text_encoder_rank(self) -> int:
        return self.text_rank or max(1, self.rank // 2)

    @property
    def text_encoder_alpha(self) -> float:
        """The same alpha / rank as in the UNet, so that one strength means one thing."""
        return self.full_alpha * self.text_encoder_rank / self.rank


class DatasetConfig(Section):
    resolution: int | None = for_pictures(
        None, "side of the pictures in pixels; none = the base's own size", ge=32, multiple_of=8
    )
    instance_prompt: str | None = for_pictures(None, "one caption for the pictures that have none")
    trigger: str = for_pictures("", "word put before every caption; calls the style up later")
    caption_dropout: float = for_pictures(0.05, "share of captions left empty in training", ge=0, le=1)
    repeats: int = Field(default=1, ge=1, description="how often a pass over the data shows each picture or text")
    require_captions: bool = for_pictures(False, "a picture without its own caption is an error")
    background: Colour = for_pictures("#ffffff", "colour put under transparent pictures")
    flip: bool = for_pictures(False, "mirror pictures at random")
    cache: Annotated[Path | None, BeforeValidator(_path)] = for_pictures(
        None, "folder for encodings; none = $STYLORA_CACHE, else ~/.cache/stylora"
    )
    context: int | None = for_text(None, "longest piece of a text in tokens; none = the base's own, at most 1024", ge=8)
    overlap: int = for_text(64, "tokens that a piece of a longer text repeats of the piece before it", ge=0)
    supervise: Literal["auto", "all"] = for_text(
        "auto", "what is learned: auto = completions and the assistant's turns where there are such, else all"
    )
    layout: Literal["packed", "padded"] = for_text(
        "packed", "texts end to end, each by itself; or filled up to one length"
    )
    heldout: float = for_text(
        0.1, "share of the texts kept apart for measuring, where the data has no heldout file of its own", ge=0, le=0.5
    )
    plain: Annotated[Path | None, BeforeValidator(_path)] = for_text(
        None, "texts outside the style, to measure what is forgotten; none = what the bare base writes"
    )


class PriorConfig(Section):
    class_prompt: str | None = for_pictures(
        None, "DreamBooth's class, such as 'a house': keep what the base knows of it; none = off"
    )
    pictures: int = for_pictures(16, "class pictures, made once by the base and cached", ge=1)
    weight: float = for_pictures(1.0, "weight of the class pictures in the loss", gt=0)
    guidance: float = for_pictures(7.5, "guidance when the class pictures are made", ge=1)
    steps: int = for_pictures(25, "denoising steps when the class pictures are made", ge=1)


class ObjectiveConfig(Section):
    min_snr_gamma: float | None = for_pictures(5.0, "min-SNR weighting of timesteps; none = off", gt=0)
    noise_offset: float = for_pictures(0.0, "noise shared by a whole channel, for darker darks", ge=0, le=1)
    prediction: Literal["auto", "epsilon", "v"] = for_pictures(
        "auto", "what the base predicts; auto = as its scheduler says"
    )
    neftune: float = for_text(
        0.0, "noise on the words' embeddings in training (NEFTune's alpha, such as 5); 0 = off", ge=0
    )


class OptimConfig(Section):
    name: Literal["adamw8bit", "adamw", "paged-adamw8bit", "lion8bit"] = Field(
        default="adamw8bit", description="optimizer; 8bit keeps its state in a byte per number"
    )
    lr: float | None = Field(
        default=None,
        gt=0,
        description="peak learning rate of the adapter; none = by the base's width, 2.6e-4 on SD 1.5 and 5e-4 on a 7B",
    )
    text_lr: float | None = for_pictures(
        None, "peak learning rate of the text encoder's adapter; none = a fifth of lr", gt=0
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
    steps: int = for_both(300, 600, "optimizer updates", ge=1)
    batch: int = Field(default=8, ge=1, description="pictures or texts a step")
    micro_batch: int | None = Field(
        default=None, ge=1, description="pictures or texts in memory at once; same result, less memory; none = batch"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="number format of the computation; auto = fit for the device"
    )
    quantization: Literal["none", "nf4", "int8"] = for_text(
        "none", "number format of the frozen base: nf4 (QLoRA) takes an eighth of fp32's memory, int8 a quarter"
    )
    gradient_checkpointing: bool = Field(default=False, description="compute activations twice instead of keeping them")
    save_every: int = Field(default=100, ge=0, description="steps between checkpoints; 0 = only where it is stopped")
    keep: int = Field(default=2, ge=1, description="newest checkpoints kept")
    validate_every: int = for_text(
        50, "steps between measurements on the texts kept apart; the best step is kept; 0 = none", ge=0
    )
    patience: int = for_text(
        0, "measurements in a row without a better one that end the training early; 0 = never", ge=0
    )
    preview_every: int = Field(default=0, ge=0, description="steps between previews; 0 = none")
    preview_prompts: list[str] = Field(
        default=[], description="prompts of the previews, between commas or as JSON; empty = beginnings in the data"
    )
    device: Device = Field(default="auto", description="where to compute: auto, cpu, cuda, cuda:1, mps")


class AdapterConfig(Section):
    format: Literal["kohya", "diffusers", "peft"] = for_both(
        "kohya", "peft", "names of the tensors in the file; peft is a folder"
    )
    dtype: Literal["fp16", "bf16", "fp32"] = Field(default="fp16", description="number format in the file")


class Settings(Section):
    """All settings of one training. Relative paths, in a TOML file too, are relative to the current folder."""

    base: str = Field(
        default="tiny-sd",
        min_length=1,
        description="frozen model: tiny-sd, tiny-lm, sd15, a folder of diffusers or transformers, or a hub id",
    )
    data: Location = Field(description="folder of pictures, or folder or file of texts")
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
