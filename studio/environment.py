"""What this machine offers stylora: versions, devices, number formats, attention, where caches lie. `stylora env`."""

from __future__ import annotations

import os
import platform
from importlib import metadata

PACKAGES = (
    "stylora",
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "safetensors",
    "xformers",
)


def facts() -> list[tuple[str, str]]:
    """(name, value) lines, ready to print or to paste into a bug report."""
    import torch

    from trainers import attention, cache, devices, samples

    machine = devices.machine()
    chosen = attention.choose(machine.device)
    lines = [("python", f"{platform.python_version()} on {platform.platform()}")]
    lines += [(name, _version(name)) for name in PACKAGES]
    lines += [
        (
            "device",
            f"{machine.device}" + (f" ({torch.cuda.get_device_name()})" if machine.device.type == "cuda" else ""),
        ),
        ("threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores"),
        ("precision", f"{machine.precision} (train.precision=auto)"),
        ("attention", f"{chosen.name}: {chosen.why}"),
        ("embedded bases", ", ".join(samples.base_names()) or "none"),
        ("sample styles", ", ".join(samples.style_names()) or "none"),
        ("encodings are kept in", str(cache.default_folder())),
    ]
    return lines


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
