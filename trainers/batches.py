"""(seed, step) -> which samples, in which micro-batches, with which weight. Nothing here remembers anything.

Resuming needs no state: `Plan.step(k)` is the same whether the steps before it ran in this process or not. Try it:
`python -c "from trainers.batches import Plan; print(Plan((1, 1, 2), ('a', 'a', 'b'), batch=2, micro_batch=1).step(7))"`
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import TypeVar

import torch

from trainers.errors import ConfigError

Item = TypeVar("Item")


def generator_for(seed: int, *key: int | str) -> torch.Generator:
    """A CPU generator that depends on (seed, key) alone, for example `generator_for(seed, step, slot, "noise")`.

    Seeded by the first 8 bytes of sha256 over the key written as JSON, where 1 and "1", ("ab",) and ("a", "b") differ.
    """
    text = json.dumps([seed, *key])
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


@dataclass(frozen=True)
class Exposure:
    """One sample shown once. `slot` is its place in the step's whole batch: it goes into the keys of random numbers,
    so they don't change with the size of micro-batches or the number of processes."""

    sample: int
    slot: int
    weight: float
    prior: bool


MicroBatch = tuple[Exposure, ...]


@dataclass(frozen=True)
class Plan:
    """Which samples each step shows. The tuples hold one entry per sample.

    An epoch shows every sample `repeats` times, mostly one bucket a batch; the endless sequence of epochs is cut into
    batches of `batch`, so nothing is dropped or doubled. Prior samples (class pictures) are a second such sequence.
    """

    repeats: tuple[int, ...]
    buckets: tuple[Hashable, ...]
    batch: int
    micro_batch: int
    seed: int = 0
    prior: tuple[bool, ...] = ()  # empty: no sample is a prior one
    prior_weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.prior:
            object.__setattr__(self, "prior", (False,) * len(self.repeats))
        if faults := _faults(self):
            raise ConfigError("No batches can be planned", faults, "correct these numbers")

    @property
    def epoch_length(self) -> int:
        """Exposures of instance samples in one epoch."""
        return sum(count for count, prior in zip(self.repeats, self.prior, strict=True) if not prior)

    def step(self, k: int) -> list[MicroBatch]:
        """The exposures of step k (from 0), by bucket, at most `micro_batch` together. O(epoch), in any order of k."""
        if k < 0:
            raise ValueError(f"steps count from 0, got {k}")
        instances = _batch(self, k, prior=False)
        exposures = [Exposure(sample, slot, 1.0, False) for slot, sample in enumerate(instances)]
        if any(self.prior):
            classes = _batch(self, k, prior=True)
            exposures += [Exposure(one, self.batch + n, self.prior_weight, True) for n, one in enumerate(classes)]
        return self._grouped(exposures)

    def weight(self, k: int) -> int:
        """What step k's summed loss is divided by: its instance exposures (prior ones carry their own weight)."""
        return sum(not exposure.prior for exposure in chain.from_iterable(self.step(k)))

    def share(self, micro_batches: Sequence[MicroBatch], rank: int, world: int) -> list[MicroBatch]:
        """What process `rank` of `world` does of a step: every world-th exposure, grouped anew; may be empty."""
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not one of {world} processes")
        return self._grouped(list(chain.from_iterable(micro_batches))[rank::world])

    def exposures(self, steps: int) -> list[int]:
        """How often each sample is really shown in the first `steps` steps."""
        counts = [0] * len(self.repeats)
        for prior in {False, any(self.prior)}:
            members = _members(self, prior)
            epochs, rest = divmod(steps * self.batch, len(members))
            for sample in members:
                counts[sample] += epochs
            for sample in _epoch(self, epochs, prior)[:rest]:
                counts[sample] += 1
        return counts

    def _grouped(self, exposures: Sequence[Exposure]) -> list[MicroBatch]:
        groups = _by_bucket(exposures, [self.buckets[exposure.sample] for exposure in exposures])
        return [tuple(part) for group in groups for part in _cut(group, self.micro_batch)]


def _faults(plan: Plan) -> list[str]:
    samples = len(plan.repeats)
    checks = {
        f"buckets: got {len(plan.buckets)}, wanted one for each of {samples} samples": len(plan.buckets) == samples,
        f"prior: got {len(plan.prior)}, wanted one for each of {samples} samples": len(plan.prior) == samples,
        f"repeats: got {min(plan.repeats, default=0)}, wanted at least 1": min(plan.repeats, default=1) >= 1,
        f"batch: got {plan.batch}, wanted at least 1": plan.batch >= 1,
        f"micro_batch: got {plan.micro_batch}, wanted at least 1": plan.micro_batch >= 1,
        f"prior_weight: got {plan.prior_weight}, wanted 0 or more": plan.prior_weight >= 0,
        "samples: got none to learn, wanted at least one that is not a prior one": not all(plan.prior),
    }
    return [fault for fault, good in checks.items() if not good]


def _members(plan: Plan, prior: bool) -> list[int]:
    """The exposures of one epoch, not yet in order: each sample `repeats` times."""
    return [n for n, count in enumerate(plan.repeats) if plan.prior[n] == prior for _ in range(count)]


def _batch(plan: Plan, k: int, prior: bool) -> list[int]:
    """Exposures k * batch up to (k + 1) * batch of the endless sequence; a batch may reach over several epochs."""
    length = len(_members(plan, prior))
    start, stop = k * plan.batch, (k + 1) * plan.batch
    first, last = start // length, (stop - 1) // length
    shown = [sample for epoch in range(first, last + 1) for sample in _epoch(plan, epoch, prior)]
    return shown[start - first * length : stop - first * length]


@lru_cache(maxsize=4)  # steps in a row ask for the same epoch; the answer depends on the arguments alone
def _epoch(plan: Plan, epoch: int, prior: bool) -> tuple[int, ...]:
    """One epoch in order: leftovers up to the next batch's start, whole one-bucket batches, the other leftovers."""
    generator = generator_for(plan.seed, epoch, "prior order" if prior else "order")
    members = _shuffled(_members(plan, prior), generator)
    groups = _shuffled(_by_bucket(members, [plan.buckets[sample] for sample in members]), generator)
    parts = [part for group in groups for part in _cut(group, plan.batch)]
    chunks = _shuffled([part for part in parts if len(part) == plan.batch], generator)
    leftovers = [sample for part in parts if len(part) < plan.batch for sample in part]
    lead = -epoch * len(members) % plan.batch  # what the last epoch's last batch still wants
    while chunks and len(leftovers) < lead:
        leftovers += chunks.pop()
    return tuple(chain(leftovers[:lead], *chunks, leftovers[lead:]))


def _shuffled(items: Sequence[Item], generator: torch.Generator) -> list[Item]:
    return [items[n] for n in torch.randperm(len(items), generator=generator).tolist()]


def _by_bucket(items: Sequence[Item], buckets: Sequence[Hashable]) -> list[list[Item]]:
    """Items of one bucket together, buckets in the order in which they first come."""
    groups: dict[Hashable, list[Item]] = {}
    for item, bucket in zip(items, buckets, strict=True):
        groups.setdefault(bucket, []).append(item)
    return list(groups.values())


def _cut(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
