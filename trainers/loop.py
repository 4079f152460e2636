"""The training loop: the only one, whatever the family. It follows a plan, sums gradients, updates, and tells.

A step's loss is the sum over its exposures divided once by the step's weight (pictures, or supervised tokens of text):
1 x 8, 8 x 1 and 2 processes x 4 agree.
The caller saves and previews between the yielded steps; while it does, the state is that of the yielded step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers import devices, optim
from trainers.batches import MicroBatch, Plan, generator_for
from trainers.errors import TrainingError
from trainers.events import Step
from trainers.families.base import Encoding, Example, Family


@dataclass(frozen=True)
class Update:
    """How a gradient becomes a change: the flat groups, their optimizer, learning rates by step, the clipping norm."""

    groups: Sequence[optim.FlatGroup]
    optimizer: torch.optim.Optimizer
    rates: Callable[[int], list[float]]
    clip: float
    scaler: torch.amp.GradScaler


def train(
    family: Family,
    plan: Plan,
    encodings: Sequence[Encoding],
    names: Sequence[str],
    update: Update,
    machine: devices.Machine,
    *,
    first: int,
    steps: int,
) -> Iterator[Step]:
    """Run steps first+1 .. steps. `names` says which file a sample is, for errors.

    Raises TrainingError when a loss is not finite (naming the samples) or a part of the adapter doesn't learn.
    """
    for k in range(first, steps):
        begun = time.perf_counter()
        shown = plan.step(k)
        mine = plan.share(shown, machine.rank, machine.world)
        total, weight = torch.zeros((), device=machine.device), 0.0
        for number, micro in enumerate(mine):
            torch.manual_seed(generator_for(plan.seed, k, machine.rank, number, "dropout").initial_seed())
            loss = family.loss([_example(plan, encodings[e.sample], e.weight, k, e.slot) for e in micro])
            _check_finite(loss.each, micro, names, k)
            update.scaler.scale(loss.total).backward()
            total += loss.total.detach()
            weight += loss.weight
        weight = machine.number(weight)
        norm, total = _apply(update, machine, k, total, weight)
        if k + 1 == learning_shows(steps):
            _check_learning(update.groups)
        yield Step(
            step=k + 1,
            loss=float(total) / weight,
            lr=update.rates(k)[0],
            grad_norm=norm,
            seconds=time.perf_counter() - begun,
            samples=sum(len(micro) for micro in shown),
            weight=weight,
            memory=devices.peak_memory(machine.device),
        )


def _example(plan: Plan, encoding: Encoding, weight: float, step: int, slot: int) -> Example:
    return Example(encoding, weight, plan.seed, step, slot, plan.batch)


def _apply(update: Update, machine: devices.Machine, k: int, total: Tensor, weight: float) -> tuple[float, Tensor]:
    """Sum gradients over processes, divide, clip, update; returns the gradient's norm and the summed loss."""
    total = machine.sum(total)
    for group in update.groups:
        machine.sum_(group.grad)
    scale = update.scaler.get_scale()
    norm = optim.step(update.groups, update.optimizer, update.rates(k), update.clip, weight * scale)
    if update.scaler.is_enabled():
        update.scaler.update(scale / 2 if not math.isfinite(norm) else scale * 2 if _grows(k) else scale)
    elif not math.isfinite(norm):
        raise TrainingError(
            f"step {k + 1}: the gradient is not finite",
            next_step="lower optim.lr and start again; the last checkpoint is kept",
        )
    return norm, total


def _grows(k: int) -> bool:
    """float16's loss scale is doubled every 500 steps: a function of the step, so that resuming needs no counter."""
    return (k + 1) % 500 == 0


def _check_finite(each: Tensor, micro: MicroBatch, names: Sequence[str], k: int) -> None:
    if bool(torch.isfinite(each).all()):
        return
    bad = [names[e.sample] for e, value in zip(micro, each.tolist(), strict=True) if not math.isfinite(value)]
    raise TrainingError(
        f"step {k + 1}: the loss is not finite",
        [f"{name}: loss is NaN or infinite" for name in dict.fromkeys(bad)],
        "lower optim.lr, look at these samples, or use train.precision=fp32; the last checkpoint is kept",
    )


def learning_shows(steps: int) -> int:
    """The step after which every part must have moved."""
    return min(steps, 5)


def _check_learning(groups: Sequence[optim.FlatGroup]) -> None:
    """`up` starts at zero; a part whose every `up` is still zero gets no gradient, and the run would be in vain."""
    still: dict[str, bool] = {}
    for group in groups:
        for name, tensor in group.tensors().items():
            if name.endswith(".up"):
                component = name.split(".", 1)[0]
                still[component] = still.get(component, True) and not bool(tensor.any())
    if dead := [component for component, dead in still.items() if dead]:
        raise TrainingError(
            "part of the adapter doesn't learn",
            [f"{component}: every `up` matrix is still zero" for component in dead],
            "check lora.targets and the learning rates (optim.lr, optim.text_lr)",
        )
