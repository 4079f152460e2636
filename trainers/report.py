"""What a finished run says of itself, whatever it taught: entries of the adapter's header, and of report.json.

The header holds no clock, no path and no machine: equal runs give equal bytes. Times and memory stand in report.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trainers import devices, optim
from trainers.config import TrainConfig
from trainers.families.base import Family
from trainers.leaves import leaves

if TYPE_CHECKING:
    from trainers.prepare import Data

NOWHERE = {"data", "out", "name", "dataset.cache", "dataset.plain"}  # settings that say where, not what
PACE = {"save_every", "keep", "preview_every", "preview_prompts", "micro_batch", "gradient_checkpointing", "device"}


def parameters(family: Family, groups: Sequence[optim.FlatGroup]) -> dict[str, tuple[int, int]]:
    """(trainable, total) numbers by component."""
    trained = {group.name: group.numel for group in groups}
    models = family.loaded_parts()
    totals = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    return {name: (trained.get(name, 0), totals[name]) for name in models}


def own_header(config: TrainConfig, kind: str, base_digest: str, data: Data) -> dict[str, str]:
    """Stylora's entries of the adapter's header: version, digests of base and data, the settings that matter."""
    return {
        "stylora.version": "1",
        "stylora.base_digest": base_digest,
        "stylora.data_digest": data.digest,
        "stylora.config": json.dumps(_settings(config, kind), sort_keys=True),
    }


def base_name(config: TrainConfig) -> str:
    """The base without the place where it lies."""
    return config.base.rstrip("/").rsplit("/", 1)[-1]


def _settings(config: TrainConfig, kind: str) -> dict[str, Any]:
    """The settings that can change the adapter's numbers, on a base of this kind."""
    kept: dict[str, Any] = {}
    for leaf in leaves():
        if leaf.only in ("", kind) and leaf.key not in NOWHERE and not (leaf.section == "train" and leaf.name in PACE):
            place = kept.setdefault(leaf.section, {}) if leaf.section else kept
            place[leaf.name] = config.get(leaf.key)
    return kept | {"base": base_name(config)}


def facts(
    config: TrainConfig, machine: devices.Machine, data: Data, losses: Sequence[float], seconds: float
) -> dict[str, Any]:
    """report.json without what only the caller knows; seconds and bytes."""
    tenth = max(1, len(losses) // 10)
    return {
        "name": config.adapter_name,
        "base": config.base,
        "steps": len(losses),
        "seconds": round(seconds, 2),
        "loss_first_tenth": sum(losses[:tenth]) / tenth,
        "loss_last_tenth": sum(losses[-tenth:]) / tenth,
        "peak_memory_bytes": devices.peak_memory(machine.device),
        "device": str(machine.device),
        "precision": machine.precision,
        "processes": machine.world,
        "optimizer": config.optim.name,
        "data_digest": data.digest,
    }


def exposures(data: Data, steps: int) -> tuple[int, int]:
    """How often a sample that isn't a class picture is shown: fewest, most."""
    shown = [n for n, prior in zip(data.plan.exposures(steps), data.plan.prior, strict=True) if not prior]
    return min(shown), max(shown)
