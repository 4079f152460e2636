"""What an adapter file says about itself: kohya's `ss_*` and the `modelspec.*` entries of its header, all strings.

Pure functions of named facts: no clock and no machine speaks here, so equal runs give equal bytes. The two hashes over
the tensors (`sshs_model_hash`, `modelspec.hash_sha256`) are added by Adapter.save.

Try it: python -c "from trainers.lora.metadata import *; print(modelspec_metadata(base_version='sd_v1', title='Ink'))"
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from trainers.errors import AdapterError

# base version -> modelspec's architecture; https://github.com/Stability-AI/ModelSpec, version 1.0.1
ARCHITECTURES = {
    "sd_v1": "stable-diffusion-v1/lora",
    "sd_v2": "stable-diffusion-v2-512/lora",
    "sd_v2_v": "stable-diffusion-v2-768-v/lora",
    "sdxl_base_v1-0": "stable-diffusion-xl-v1-base/lora",
}
SGM = "https://github.com/Stability-AI/generative-models"
PREDICTIONS = {"epsilon": "epsilon", "v": "v", "v_prediction": "v"}
THUMBNAIL_START, BASE64 = "data:image/jpeg;base64,", ";base64,"
WORDS = 3  # tags that all captions share; more are no trigger but a subject in keywords


def _strings(entries: Mapping[str, Any]) -> dict[str, str]:
    """Numbers as Python writes them, tables as JSON; entries that are None or empty text are left out."""
    return {
        key: json.dumps(value, sort_keys=True) if isinstance(value, dict) else str(value)
        for key, value in sorted(entries.items())
        if value is not None and value != ""
    }


def _faults(base_version: str, prediction: str | None = None) -> None:
    faults = []
    if base_version not in ARCHITECTURES:
        faults.append(f"base_version is {base_version!r}, wanted one of {', '.join(ARCHITECTURES)}")
    if prediction is not None and prediction not in PREDICTIONS:
        faults.append(f"prediction is {prediction!r}, wanted one of {', '.join(PREDICTIONS)}")
    if faults:
        raise AdapterError("the adapter's metadata can't be written", faults)


def kohya_metadata(
    *,
    base_version: str,
    rank: int,
    alpha: float,
    name: str | None = None,
    network_args: Mapping[str, Any] | None = None,
    base_name: str | None = None,
    base_digest: str | None = None,
    seed: int | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    learning_rate: float | None = None,
    unet_lr: float | None = None,
    text_encoder_lr: float | None = None,
    optimizer: str | None = None,
    schedule: str | None = None,
    resolution: tuple[int, int] | None = None,
    pictures: int | None = None,
    tag_frequency: Mapping[str, Mapping[str, int]] | None = None,
    dataset_dirs: Mapping[str, Mapping[str, int]] | None = None,
    bucket_info: Mapping[str, Any] | None = None,
    clip_skip: int | None = None,
    min_snr_gamma: float | None = None,
    noise_offset: float | None = None,
    mixed_precision: str | None = None,
    started_at: float | None = None,
    finished_at: float | None = None,
) -> dict[str, str]:
    """The `ss_*` entries as kohya-ss/sd-scripts names them; `resolution` is (width, height)."""
    _faults(base_version)
    return _strings(
        {
            "ss_v2": base_version.startswith("sd_v2"),
            "ss_base_model_version": base_version,
            "ss_network_module": "networks.lora",
            "ss_network_dim": rank,
            "ss_network_alpha": alpha,
            "ss_network_args": dict(network_args or {}),
            "ss_output_name": name,
            "ss_sd_model_name": base_name,
            "ss_new_sd_model_hash": base_digest,
            "ss_seed": seed,
            "ss_steps": steps,
            "ss_epoch": epochs,
            "ss_learning_rate": learning_rate,
            "ss_unet_lr": unet_lr,
            "ss_text_encoder_lr": text_encoder_lr,
            "ss_optimizer": optimizer,
            "ss_lr_scheduler": schedule,
            "ss_resolution": None if resolution is None else f"({resolution[0]}, {resolution[1]})",
            "ss_num_train_images": pictures,
            "ss_tag_frequency": None if tag_frequency is None else dict(tag_frequency),
            "ss_dataset_dirs": None if dataset_dirs is None else dict(dataset_dirs),
            "ss_bucket_info": None if bucket_info is None else dict(bucket_info),
            "ss_clip_skip": clip_skip,
            "ss_min_snr_gamma": min_snr_gamma,
            "ss_noise_offset": noise_offset,
            "ss_mixed_precision": mixed_precision,
            "ss_training_started_at": started_at,
            "ss_training_finished_at": finished_at,
        }
    )


def modelspec_metadata(
    *,
    base_version: str,
    title: str,
    resolution: tuple[int, int] = (512, 512),
    prediction: str = "epsilon",
    trigger: str | None = None,
    description: str | None = None,
    author: str | None = None,
    license: str | None = None,
    usage_hint: str | None = None,
    date: str | None = None,
    tags: Sequence[str] = (),
    merged_from: Sequence[str] = (),
    clip_skip: int | None = None,
    thumbnail: bytes | None = None,
) -> dict[str, str]:
    """The `modelspec.*` entries; `thumbnail` is a whole JPEG file, `date` ISO 8601, `resolution` (width, height)."""
    _faults(base_version, prediction)
    entries = {
        "sai_model_spec": "1.0.1",
        "architecture": ARCHITECTURES[base_version],
        "implementation": SGM if base_version.startswith("sdxl") else "diffusers",
        "title": title,
        "resolution": f"{resolution[0]}x{resolution[1]}",
        "description": description,
        "author": author,
        "date": date,
        "license": license,
        "usage_hint": usage_hint,
        "thumbnail": None if thumbnail is None else THUMBNAIL_START + base64.b64encode(thumbnail).decode(),
        "tags": ", ".join(tags),
        "merged_from": ", ".join(merged_from),
        "trigger_phrase": trigger,
        "prediction_type": PREDICTIONS[prediction],
        "encoder_layer": clip_skip,
    }
    return _strings({f"modelspec.{key}": value for key, value in entries.items()})


# --- what a header says ----------------------------------------------------------------------------------------------


def tag_counts(metadata: Mapping[str, str]) -> Counter[str]:
    """`ss_tag_frequency`, {tag: captions that have it}, over all of its folders; empty where it is absent or broken."""
    counts: Counter[str] = Counter()
    try:
        for tags in json.loads(metadata.get("ss_tag_frequency", "{}")).values():
            counts.update({str(tag).strip(): int(count) for tag, count in tags.items()})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return Counter()
    return counts


def trigger_of(metadata: Mapping[str, str]) -> str:
    """The trigger phrase: modelspec's, else the few tags that all captions of the training have; "" unknown."""
    if said := metadata.get("modelspec.trigger_phrase", ""):
        return said
    try:
        folders = json.loads(metadata.get("ss_dataset_dirs", "{}")).values()
        captions = sum(int(folder["img_count"]) for folder in folders)
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return ""
    shared = [tag for tag, count in tag_counts(metadata).items() if count == captions > 1]
    return ", ".join(shared) if len(shared) <= WORDS else ""


def thumbnail_of(metadata: Mapping[str, str]) -> bytes | None:
    """The picture file of `modelspec.thumbnail`, JPEG by the standard; None where there is none or it is broken."""
    uri = metadata.get("modelspec.thumbnail", "")
    with contextlib.suppress(binascii.Error, ValueError):
        return base64.b64decode(uri.partition(BASE64)[2], validate=True) or None
    return None
