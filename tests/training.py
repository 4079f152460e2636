"""Short trainings on the miniature base, for the tests that need a whole run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from conftest import COLOURS, THINGS, draw_picture
from torch import Tensor

from trainers import run
from trainers.config import TrainConfig
from trainers.events import Event
from trainers.lora.adapter import Adapter, content_digest

SHORT = {
    "name": "tiny",
    "seed": 3,
    "lora.rank": 2,
    "optim.lr": 1e-2,
    "optim.warmup": 0,
    "train.steps": 3,
    "train.batch": 4,
    "train.device": "cpu",
    "train.save_every": 0,
    "adapter.dtype": "fp32",
}

Configure = Callable[..., TrainConfig]


def config_for(base: Path, data: Path, out: Path, settings: Mapping[str, Any] | None = None) -> TrainConfig:
    """Three steps at a high learning rate; `settings` by dotted key win."""
    return TrainConfig.build(
        values={**SHORT, "base": str(base), "data": str(data), "out": str(out), **(settings or {})}
    )


def pictures(folder: Path, count: int = 4, *, captions: bool = True, first: int = 0) -> Path:
    """A folder of drawn 16 px pictures: conftest's `picture_folder` for fixtures that last longer than a test."""
    folder.mkdir(parents=True)
    for number in range(first, first + count):
        draw_picture(number, (16, 16)).save(folder / f"{number:02}.png")
        if captions:
            (folder / f"{number:02}.txt").write_text(f"a {COLOURS[number % 5]} {THINGS[number % 4]}, by the sea")
    return folder


def arguments(config: TrainConfig) -> list[str]:
    """The command line that trains so, without the python in front."""
    file = config.out.parent / f"{config.out.name}.toml"
    file.write_text(config.to_toml())
    return ["-m", "trainers", "train", str(file)]


def train(config: TrainConfig, opened: run.Opened | None = None) -> list[Event]:
    return list(run.start(config, opened))


def adapter(config: TrainConfig) -> Adapter:
    return Adapter.load(run.adapter_path(config))


def numbers(config: TrainConfig) -> str:
    """Digest of the adapter's numbers alone: the header names the settings, so the file always differs with them."""
    return content_digest(adapter(config))


def deltas(config: TrainConfig) -> dict[str, Tensor]:
    return {path: pair.delta() for path, pair in adapter(config).pairs.items()}


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Difference of two adapters' deltas over the size of the first one."""
    assert one.keys() == other.keys()
    apart = sum(float((one[path] - other[path]).square().sum()) for path in one)
    return (apart / sum(float(delta.square().sum()) for delta in one.values())) ** 0.5
