"""Pictures as a run's subject: the folder becomes encodings; previews, header and report speak of pictures.

Try it: python -c "from trainers import pictures; print(pictures.UNIT)"
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from trainers import bases, buckets, cache, devices, doctor, documents, plot, prior, report
from trainers.batches import Plan
from trainers.config import TrainConfig
from trainers.dataset import Sample, kohya_parts
from trainers.digests import digest_of
from trainers.errors import ConfigError
from trainers.events import Busy, Cached, Event, Note
from trainers.families.base import Encoding
from trainers.families.stable_diffusion import StableDiffusion
from trainers.lora import inject
from trainers.lora.metadata import kohya_metadata, modelspec_metadata
from trainers.prepare import Data, Shape

KIND: bases.Kind = "pictures"
UNIT = "pictures"
THUMBNAIL = 256  # side in pixels


@dataclass(frozen=True)
class Samples:
    """The folder as read: sound samples, what a person should know of it, and the side of the pictures to train on."""

    samples: tuple[Sample, ...]
    notes: tuple[str, ...]
    resolution: int


@dataclass(frozen=True)
class PictureData(Data):
    """The digest is over pixels, captions and repeats."""

    samples: tuple[Sample, ...]
    resolution: int

    @property
    def captions(self) -> list[str]:
        return [sample.caption for sample in self.samples if not sample.prior]


def open_base(config: TrainConfig, folder: Path, machine: devices.Machine) -> StableDiffusion:
    """The base in `folder` as the settings want it."""
    objective = config.objective
    return StableDiffusion(
        folder,
        device=machine.device,
        dtype=machine.frozen_dtype,
        prediction=None if objective.prediction == "auto" else objective.prediction,
        min_snr_gamma=objective.min_snr_gamma,
        noise_offset=objective.noise_offset,
        caption_dropout=config.dataset.caption_dropout,
        autocast=machine.autocast,
    )


def shapes(config: TrainConfig) -> dict[str, Shape]:
    """The UNet and, where asked for, the text encoder at a fifth of its rate."""
    lora, rates = config.lora, config.optim
    unet = inject.Shape(lora.rank, lora.full_alpha, lora.dropout, lora.rslora)
    found = {"unet": Shape(unet, lora.targets, rates.lr)}
    if lora.text_encoder:
        encoder = inject.Shape(lora.text_encoder_rank, lora.text_encoder_alpha, lora.dropout, lora.rslora)
        found["text_encoder"] = Shape(encoder, lora.text_targets, rates.text_lr, below=5)
    return found


def scan(config: TrainConfig, family: StableDiffusion) -> Samples:
    """The folder's samples and the side to train on."""
    if documents.holds_texts(config.data):
        raise ConfigError(
            f"{config.data} holds texts and no pictures, and {config.base} makes pictures",
            next_step="name a language model with --base, such as tiny-lm, or a folder of pictures",
        )
    wish, resolution = config.dataset, config.dataset.resolution or family.resolution
    if resolution % family.multiple:
        near = max(1, round(resolution / family.multiple)) * family.multiple
        raise ConfigError(
            f"dataset.resolution={resolution}: this base takes multiples of {family.multiple}", next_step=f"use {near}"
        )
    report = doctor.examine(
        config.data,
        instance_prompt=wish.instance_prompt,
        trigger=wish.trigger,
        require_captions=wish.require_captions,
        repeats=wish.repeats,
        min_side=resolution // 2,
    )
    doctor.sound(report, config.data)
    return Samples(report.samples, report.notes, resolution)


def encode(
    config: TrainConfig, family: StableDiffusion, found: Samples, machine: devices.Machine
) -> Generator[Event, None, PictureData]:
    """Class pictures, encodings and the plan; yields what it is busy with and returns the Data.

    With several processes the first one fills the cache, then the others read it. The VAE is let go afterwards.
    """
    for note in found.notes:
        yield Note(note)
    folder = config.dataset.cache or cache.default_folder()
    if not machine.leads:
        machine.wait()
    samples = list(found.samples)
    if config.prior.class_prompt:
        samples += yield from _class_samples(config, family, folder, found.resolution)
    placements = buckets.plan([sample.size for sample in samples], found.resolution, family.multiple)
    store = cache.Cache(folder)
    encodings: list[Encoding] = []
    pixels: list[str] = []
    background = tuple(bytes.fromhex(config.dataset.background.lstrip("#")))
    filled = cache.fill(
        store,
        family,
        samples,
        placements,
        text_trained=config.lora.text_encoder,
        background=(background[0], background[1], background[2]),
        mirror=config.dataset.flip,
    )
    for encoding, digest in filled:
        encodings.append(encoding)
        pixels.append(digest)
        yield Busy("pictures encoded", len(encodings), len(samples))
    family.set_empty(store.text(family, "", trained=config.lora.text_encoder))
    yield Cached(store.encoded, store.reused)
    yield from _too_long(family, samples)
    family.unload("vae")
    if not config.lora.text_encoder:
        family.unload("text_encoder")
    if machine.leads:
        machine.wait()
    plan = Plan(
        repeats=tuple(sample.repeats for sample in samples),
        buckets=tuple(placement.bucket for placement in placements),
        batch=config.train.batch,
        micro_batch=config.train.micro_batch or config.train.batch,
        seed=config.seed,
        prior=tuple(sample.prior for sample in samples),
        prior_weight=config.prior.weight,
    )
    whole = digest_of(*(f"{d} {s.caption} {s.repeats} {s.prior}" for d, s in zip(pixels, samples, strict=True)))
    names = [str(sample.path) for sample in samples]
    return PictureData(names, encodings, plan, whole, tuple(samples), found.resolution)


def _class_samples(
    config: TrainConfig, family: StableDiffusion, folder: Path, resolution: int
) -> Generator[Event, None, list[Sample]]:
    settings = config.prior
    wish = prior.Wish(str(settings.class_prompt), settings.pictures, settings.guidance, settings.steps, resolution)
    parts = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
    base = digest_of(family.prediction, *(family.digest(part) for part in parts))
    place = prior.folder_for(folder, wish, base)
    yield from prior.pictures(place, wish, family.sample)
    return prior.samples(place, wish)


def _too_long(family: StableDiffusion, samples: Sequence[Sample]) -> Iterator[Event]:
    """Name the captions whose end the text encoder will not read."""
    for sample in samples:
        needed, read = family.token_count(sample.caption)
        if needed > read:
            yield Note(f"{sample.path.name}: its caption has {needed} tokens, the text encoder reads the first {read}")


def validate(family: StableDiffusion, data: PictureData) -> float | None:
    """No pictures are kept apart."""
    return None


def preview(config: TrainConfig, family: StableDiffusion, data: PictureData, step: int) -> Path:
    """A sheet of the preview prompts, each with its fixed seed."""
    prompts = config.train.preview_prompts or list(dict.fromkeys(data.captions))[:4]
    made = family.sample(prompts, [config.seed + k for k in range(len(prompts))])
    for part in ("vae", *(() if config.lora.text_encoder else ("text_encoder",))):
        family.unload(part)
    path = config.out / "previews" / f"step-{step:06d}.png"
    path.parent.mkdir(exist_ok=True)
    plot.grid([made], [f"step {step}"], prompts).save(path)
    return path


def facts(config: TrainConfig, data: PictureData, seconds: float) -> dict[str, Any]:
    """Pictures and their speed."""
    shown = report.exposures(data, config.train.steps)
    return {
        "pictures": len(data.captions),
        "exposures_per_picture": list(shown),
        "pictures_per_second": round(config.train.steps * config.train.batch / seconds, 2) if seconds else 0.0,
    }


def appraise(
    config: TrainConfig, family: StableDiffusion, data: PictureData, path: Path
) -> Generator[Event, None, dict[str, Any]]:
    """Nothing: what a style is worth is seen, or measured by `stylora demo` on prompts of its own."""
    yield from ()
    return {}


def header(
    config: TrainConfig,
    family: StableDiffusion,
    data: PictureData,
    rates: Mapping[str, float],
    machine: devices.Machine,
) -> dict[str, str]:
    """kohya's and modelspec's entries, with a picture of the first caption, and stylora's own."""
    lora, settings, precision = config.lora, config.optim, machine.precision
    own = [sample for sample in data.samples if not sample.prior]
    folders = Counter(_folder(sample) for sample in own)
    repeats = {_folder(sample): sample.repeats for sample in own}
    tags: dict[str, Counter[str]] = {}
    for sample in own:
        words = [tag.strip() for tag in sample.caption.split(",") if tag.strip()]
        tags.setdefault(_folder(sample), Counter()).update(words)
    buckets = Counter(data.plan.buckets)
    entries = kohya_metadata(
        base_version="sd_v1",
        rank=lora.rank,
        alpha=lora.full_alpha,
        name=config.adapter_name,
        network_args={"dropout": lora.dropout, "rslora": lora.rslora},
        base_name=report.base_name(config),
        base_digest=family.digest("unet"),
        seed=config.seed,
        steps=config.train.steps,
        epochs=config.train.steps * config.train.batch // data.plan.epoch_length,
        learning_rate=rates["unet"],
        unet_lr=rates["unet"],
        text_encoder_lr=rates["text_encoder"] if lora.text_encoder else 0.0,
        optimizer=settings.name,
        schedule=settings.schedule,
        resolution=(data.resolution, data.resolution),
        pictures=len(own),
        tag_frequency={name: dict(sorted(count.items())) for name, count in tags.items()},
        dataset_dirs={name: {"n_repeats": repeats[name], "img_count": folders[name]} for name in folders},
        bucket_info={
            "buckets": {str(k): {"resolution": b, "count": c} for k, (b, c) in enumerate(sorted(buckets.items()))}
        },
        min_snr_gamma=config.objective.min_snr_gamma,
        noise_offset=config.objective.noise_offset,
        mixed_precision="no" if precision == "fp32" else precision,
    )
    entries |= modelspec_metadata(
        base_version="sd_v1",
        title=config.adapter_name,
        resolution=(data.resolution, data.resolution),
        prediction=family.prediction,
        trigger=config.dataset.trigger,
        thumbnail=thumbnail(config, family, data),
    )
    return entries | report.own_header(config, KIND, family.digest("unet"), data)


def thumbnail(config: TrainConfig, family: StableDiffusion, data: PictureData) -> bytes:
    """A JPEG of the first caption, made with the finished adapter and the run's seed."""
    picture = family.sample([data.captions[0]], [config.seed], size=(data.resolution, data.resolution))[0]
    stream = io.BytesIO()
    small: Image.Image = plot.enlarged(picture, THUMBNAIL)
    small.save(stream, format="JPEG", quality=88)
    return stream.getvalue()


def _folder(sample: Sample) -> str:
    """A sample's folder as kohya calls it, `10_ink drawing`, wherever the training was started."""
    folder = sample.path.parent.resolve()
    parts = kohya_parts(folder)
    return f"{sample.repeats}_{parts[1] if parts else folder.name}"
