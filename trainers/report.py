"""What a finished run says of itself: the header of the adapter file, report.json, and their numbers.

The header holds no clock, no path and no machine: equal runs give equal bytes. Times and memory stand in report.json.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from PIL import Image

from trainers import devices, optim
from trainers.config import TrainConfig
from trainers.dataset import Sample, kohya_parts
from trainers.families.stable_diffusion import StableDiffusion
from trainers.lora.metadata import kohya_metadata, modelspec_metadata
from trainers.plot import enlarged
from trainers.prepare import Data, peak_rates

THUMBNAIL = 256  # side in pixels
PLACES = {"data", "out"}  # settings that say where, not what
PACE = {"save_every", "keep", "preview_every", "preview_prompts", "micro_batch", "gradient_checkpointing", "device"}


def parameters(family: StableDiffusion, groups: Sequence[optim.FlatGroup]) -> dict[str, tuple[int, int]]:
    """(trainable, total) numbers by component."""
    trained = {group.name: group.numel for group in groups}
    models = family.loaded_parts()
    totals = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    return {name: (trained.get(name, 0), totals[name]) for name in models}


def thumbnail(config: TrainConfig, family: StableDiffusion, data: Data) -> bytes:
    """A JPEG of the first caption, made with the finished adapter and the run's seed."""
    picture = family.sample([data.captions[0]], [config.seed], size=(data.resolution, data.resolution))[0]
    stream = io.BytesIO()
    small: Image.Image = enlarged(picture, THUMBNAIL)
    small.save(stream, format="JPEG", quality=88)
    return stream.getvalue()


def header(config: TrainConfig, family: StableDiffusion, data: Data, precision: str, picture: bytes) -> dict[str, str]:
    """kohya's and modelspec's entries, and stylora's own: version, base digest, data digest, config."""
    lora, settings, rates = config.lora, config.optim, peak_rates(config, family)
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
        alpha=lora.unet_alpha,
        name=config.adapter_name,
        network_args={"dropout": lora.dropout, "rslora": lora.rslora},
        base_name=_base_name(config),
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
        thumbnail=picture,
    )
    ours = {
        "stylora.version": "1",
        "stylora.base_digest": family.digest("unet"),
        "stylora.data_digest": data.digest,
        "stylora.config": json.dumps(_settings(config), sort_keys=True),
    }
    return entries | ours


def _folder(sample: Sample) -> str:
    """A sample's folder as kohya calls it, `10_ink drawing`, wherever the training was started."""
    folder = sample.path.parent.resolve()
    parts = kohya_parts(folder)
    return f"{sample.repeats}_{parts[1] if parts else folder.name}"


def _base_name(config: TrainConfig) -> str:
    """The base without the place where it lies."""
    return config.base.rstrip("/").rsplit("/", 1)[-1]


def _settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that can change the adapter's numbers."""
    kept: dict[str, Any] = config.model_dump(mode="json", exclude=PLACES | {"name"})
    kept["train"] = {key: value for key, value in kept["train"].items() if key not in PACE}
    kept["dataset"].pop("cache")
    kept["base"] = _base_name(config)
    return kept


def facts(
    config: TrainConfig, machine: devices.Machine, data: Data, losses: Sequence[float], seconds: float
) -> dict[str, Any]:
    """report.json without what only the caller knows; seconds and bytes."""
    shown = [n for n, s in zip(data.plan.exposures(config.train.steps), data.samples, strict=True) if not s.prior]
    tenth = max(1, len(losses) // 10)
    return {
        "name": config.adapter_name,
        "base": config.base,
        "steps": config.train.steps,
        "seconds": round(seconds, 2),
        "pictures_per_second": round(config.train.steps * config.train.batch / seconds, 2) if seconds else 0.0,
        "loss_first_tenth": sum(losses[:tenth]) / tenth,
        "loss_last_tenth": sum(losses[-tenth:]) / tenth,
        "peak_memory_bytes": devices.peak_memory(machine.device),
        "device": str(machine.device),
        "precision": machine.precision,
        "processes": machine.world,
        "optimizer": config.optim.name,
        "pictures": len(shown),
        "exposures_per_picture": [min(shown), max(shown)],
        "data_digest": data.digest,
    }
