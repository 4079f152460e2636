"""Everything between the settings and the first step: samples, encodings, plan, LoRA, optimizer."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from trainers import buckets, cache, devices, doctor, loop, optim, prior
from trainers.batches import Plan
from trainers.config import TrainConfig
from trainers.dataset import Sample
from trainers.digests import digest_of
from trainers.errors import ConfigError
from trainers.events import Busy, Cached, Event, Note
from trainers.families.base import Encoding
from trainers.families.stable_diffusion import StableDiffusion
from trainers.lora import inject


@dataclass(frozen=True)
class Samples:
    """The folder as read: sound samples, what a person should know of it, and the side of the pictures to train on."""

    samples: tuple[Sample, ...]
    notes: tuple[str, ...]
    resolution: int


@dataclass(frozen=True)
class Data:
    """What is trained on: one encoding a sample, the plan of steps, and a digest over pixels, captions and repeats."""

    samples: tuple[Sample, ...]
    encodings: Sequence[Encoding]
    plan: Plan
    digest: str
    resolution: int

    @property
    def names(self) -> list[str]:
        return [str(sample.path) for sample in self.samples]

    @property
    def captions(self) -> list[str]:
        return [sample.caption for sample in self.samples if not sample.prior]


def scan(config: TrainConfig, family: StableDiffusion) -> Samples:
    """Read the folder; raises ConfigError or DatasetError with all faults before anything is made or loaded."""
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
    _check_targets(config, family)
    return Samples(report.samples, report.notes, resolution)


def _check_targets(config: TrainConfig, family: StableDiffusion) -> None:
    """Own patterns must match something in the base; presets always do, so that nothing is loaded for them yet."""
    wishes = {"unet": config.lora.targets}
    if config.lora.text_encoder:
        wishes["text_encoder"] = config.lora.text_targets
    for part, choice in wishes.items():
        if not isinstance(choice, str):
            inject.targets(part, family.part(part), choice)


def encode(
    config: TrainConfig, family: StableDiffusion, found: Samples, machine: devices.Machine
) -> Generator[Event, None, Data]:
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
    return Data(tuple(samples), encodings, plan, whole, found.resolution)


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


def put_lora(config: TrainConfig, family: StableDiffusion) -> None:
    """Inject into the UNet and, where asked for, the text encoder; switch on what training needs."""
    lora = config.lora
    shapes = {"unet": (inject.Shape(lora.rank, lora.unet_alpha, lora.dropout, lora.rslora), lora.targets)}
    if lora.text_encoder:
        shape = inject.Shape(lora.text_encoder_rank, lora.text_encoder_alpha, lora.dropout, lora.rslora)
        shapes["text_encoder"] = (shape, lora.text_targets)
    chosen = {part: inject.targets(part, family.part(part), choice) for part, (_, choice) in shapes.items()}
    for part, (shape, _) in shapes.items():
        inject.inject(part, family.part(part), chosen[part], shape, config.seed)
    family.save_memory(config.train.gradient_checkpointing)


def peak_rates(config: TrainConfig, family: StableDiffusion) -> dict[str, float]:
    """Peak learning rate by component; where none is set, the UNet's follows the width of its adapted layers."""
    settings = config.optim
    unet = settings.lr or optim.default_lr(inject.widths("unet", family.part("unet")))
    return {"unet": unet, "text_encoder": settings.text_lr or unet / 5}


def update(config: TrainConfig, family: StableDiffusion, machine: devices.Machine) -> loop.Update:
    """One flat group per component with its own learning rate, and their optimizer."""
    settings, peaks = config.optim, peak_rates(config, family)
    models: dict[str, nn.Module] = family.loaded_parts()
    groups, rates = [], []
    for part, model in models.items():
        if named := inject.trainable(part, model):
            groups.append(optim.FlatGroup(named, part))
            rates.append(peaks[part])

    def at(step: int) -> list[float]:
        total, schedule = config.train.steps, settings.schedule
        return [optim.lr_at(step, peak=peak, total=total, warmup=settings.warmup, schedule=schedule) for peak in rates]

    betas = (settings.beta1, settings.beta2)
    optimizer = optim.build(settings.name, groups, weight_decay=settings.weight_decay, betas=betas)
    return loop.Update(groups, optimizer, at, settings.clip, machine.scaler())
