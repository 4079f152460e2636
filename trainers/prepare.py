"""What every run prepares, whatever it teaches: the LoRA in the base, its learning rates, its optimizer; and `Subject`.

A subject is what differs between pictures and text outside the model itself: `trainers.pictures` and `trainers.texts`
are two, as modules. The family says how a base computes, the subject how its data is read and its results are shown.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from trainers import bases, devices, loop, optim
from trainers.batches import Plan
from trainers.config import TrainConfig
from trainers.events import Event
from trainers.families.base import Encoding, Family
from trainers.lora import inject


@dataclass(frozen=True)
class Data:
    """What is trained on: one encoding a sample, what each is called in errors, the plan of steps, and a digest."""

    names: Sequence[str]
    encodings: Sequence[Encoding]
    plan: Plan
    digest: str


@dataclass(frozen=True)
class Shape:
    """How LoRA goes into one component, where, and the peak of its learning rate (None: a rule's)."""

    lora: inject.Shape
    targets: str | Sequence[str]
    rate: float | None
    rule: float = 0.2  # of the first component: optim.default_lr's constant
    below: float = 1  # what the first component's rate is divided by, where no own one is given


class Subject(Protocol):
    """What a run needs besides the family. `family` and `data` are what its own `open_base` and `encode` gave."""

    UNIT: str  # what the loss is divided by, for people: "pictures", "tokens"
    KIND: bases.Kind

    def open_base(self, config: TrainConfig, folder: Path, machine: devices.Machine) -> Any:
        """The frozen base, its weights not yet read."""

    def shapes(self, config: TrainConfig) -> Mapping[str, Shape]:
        """By component, the main one first."""

    def scan(self, config: TrainConfig, family: Any) -> Any:
        """Read the data; raises ConfigError or DatasetError with all faults before anything is made or loaded."""

    def encode(
        self, config: TrainConfig, family: Any, found: Any, machine: devices.Machine
    ) -> Generator[Event, None, Any]:
        """Yields what it is busy with and returns the Data."""

    def validate(self, family: Any, data: Any) -> float | None:
        """The mean loss over what is kept apart, None where nothing is."""

    def preview(self, config: TrainConfig, family: Any, data: Any, step: int) -> Path:
        """What fixed prompts and seeds give now, as a file in the run's `previews`."""

    def header(
        self, config: TrainConfig, family: Any, data: Any, rates: Mapping[str, float], machine: devices.Machine
    ) -> dict[str, str]:
        """The header of the adapter's file; equal runs give equal bytes."""

    def facts(self, config: TrainConfig, data: Any, seconds: float) -> dict[str, Any]:
        """What the report says of the data and the speed."""

    def appraise(
        self, config: TrainConfig, family: Any, data: Any, path: Path
    ) -> Generator[Event, None, dict[str, Any]]:
        """What the finished adapter at `path` does, measured: more entries of the report."""


def check_targets(family: Family, shapes: Mapping[str, Shape]) -> None:
    """Own patterns must match something in the base; presets always do, so that nothing is loaded for them yet."""
    for part, shape in shapes.items():
        if not isinstance(shape.targets, str):
            inject.targets(part, family.part(part), shape.targets)


def put_lora(config: TrainConfig, family: Family, shapes: Mapping[str, Shape]) -> None:
    """Inject into each component; switch on what training needs."""
    chosen = {part: inject.targets(part, family.part(part), shape.targets) for part, shape in shapes.items()}
    for part, shape in shapes.items():
        inject.inject(part, family.part(part), chosen[part], shape.lora, config.seed)
    family.save_memory(config.train.gradient_checkpointing)


def peak_rates(family: Family, shapes: Mapping[str, Shape]) -> dict[str, float]:
    """Peak learning rate by component; where none is set, the first one's follows the width of its adapted layers."""
    first, *_ = shapes
    widths = inject.widths(first, family.part(first))
    main = shapes[first].rate or optim.default_lr(widths, shapes[first].rule)
    return {part: shape.rate or main / shape.below for part, shape in shapes.items()}


def update(config: TrainConfig, family: Family, peaks: Mapping[str, float], machine: devices.Machine) -> loop.Update:
    """One flat group per component with its own learning rate, and their optimizer."""
    settings = config.optim
    groups, rates = [], []
    for part, model in family.loaded_parts().items():
        if named := inject.trainable(part, model):
            groups.append(optim.FlatGroup(named, part))
            rates.append(peaks[part])

    def at(step: int) -> list[float]:
        total, schedule = config.train.steps, settings.schedule
        return [optim.lr_at(step, peak=peak, total=total, warmup=settings.warmup, schedule=schedule) for peak in rates]

    betas = (settings.beta1, settings.beta2)
    optimizer = optim.build(settings.name, groups, weight_decay=settings.weight_decay, betas=betas)
    return loop.Update(groups, optimizer, at, settings.clip, machine.scaler())
