"""How strongly an adapter acts, where and when: weight x block factor x schedule, as pure data.

Try it: python -c "from trainers.lora.gains import *; print(Gain(0.8, schedule=parse_schedule('0@0, 1@0.4')).row(0.2))"
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from trainers.errors import AdapterError
from trainers.lora.blocks import ENCODERS, GROUPS, KNOWN, LABELS, PICTURES, TEXTS, block_of, number_text, to_number

Schedule = tuple[tuple[float, float], ...]  # (place in the denoising 0..1, factor), in the order of places
_ENCODERS, _LAYERS = frozenset(ENCODERS.values()), frozenset(GROUPS["L"])


@dataclass(frozen=True)
class Gain:
    """In the UNet g = weight x block factor x schedule, in the text encoders g = their weight x block factor.

    The text encoders' weight is `text_encoder`, or `weight` where that is None. They run once, before the first step,
    and what they wrote serves all steps: a schedule isn't theirs. In a language model's layers g = weight x block
    factor: it has no steps and no text encoder; whoever loads one refuses a gain that speaks of them (`for_pictures`).
    Raises AdapterError for numbers that aren't finite, blocks that don't exist and schedules out of order.
    """

    weight: float = 1.0
    text_encoder: float | None = None
    blocks: Mapping[str, float] = field(default_factory=dict)  # a label of blocks.LABELS -> factor
    schedule: Schedule = ()  # of the UNet's gains over the denoising

    def __post_init__(self) -> None:
        numbers = {"weight": self.weight, "text_encoder": self.text_encoder or 0.0, **self.blocks}
        faults = [
            f"{name}: {number} is no finite number" for name, number in numbers.items() if not math.isfinite(number)
        ]
        faults += [f"{label}: no such block" for label in self.blocks if label not in LABELS]
        faults += schedule_faults(self.schedule)
        if faults:
            raise AdapterError("an adapter can't be used like this", faults, f"blocks are {KNOWN}")

    def at(self, path: str, place: float = 0.0) -> float:
        """The gain of one module at one place of the denoising (0 = first step), without the adapter's own scale."""
        return self.row(place, (block_of(path),))[0]

    def row(self, place: float = 0.0, labels: Sequence[str] = PICTURES) -> list[float]:
        """The gains of these blocks at one place of the denoising, in the order of `labels`."""
        encoder = self.weight if self.text_encoder is None else self.text_encoder
        weights = dict.fromkeys(labels, self.weight * factor(self.schedule, place))
        weights |= dict.fromkeys(_ENCODERS & weights.keys(), encoder)
        weights |= dict.fromkeys(_LAYERS & weights.keys(), self.weight)
        for label in self.blocks.keys() & weights.keys():
            weights[label] *= self.blocks[label]
        return list(weights.values())

    @property
    def for_pictures(self) -> list[str]:
        """What of it has a meaning for pictures alone: its schedule, the text encoders' weight, the UNet's blocks."""
        own = [label for label in self.blocks if label not in TEXTS]
        spoken = {"a schedule": self.schedule, "a text encoder's weight": self.text_encoder is not None}
        return [name for name, said in spoken.items() if said] + [f"block {label}" for label in own]


def factor(schedule: Schedule, place: float) -> float:
    """Linear between the points, constant before the first and after the last; two points at one place are a jump."""
    if not schedule:
        return 1.0
    right = bisect_right([p for p, _ in schedule], place)
    if right == 0 or right == len(schedule):
        return schedule[min(right, len(schedule) - 1)][1]
    (p0, f0), (p1, f1) = schedule[right - 1], schedule[right]
    return f0 + (f1 - f0) * (place - p0) / (p1 - p0)


def parse_schedule(text: str) -> Schedule:
    """ "0@0, 1@0.4" (factor@place, as sd-webui-loractl writes it) -> ((0, 0), (0.4, 1)). AdapterError: all faults."""
    points, faults = [], []
    for entry in text.split(",") if text.strip() else []:
        number, _, place = entry.partition("@")
        point = (to_number(place), to_number(number))
        if point[0] is None or point[1] is None:
            faults.append(f"{entry.strip()!r}: wanted FACTOR@PLACE")
        else:
            points.append((point[0], point[1]))
    schedule = tuple(points)
    if faults := faults or schedule_faults(schedule):
        raise AdapterError(f"schedule {text!r} can't be read", faults, "write 0@0,1@0.4: from off to full at 40%")
    return schedule


def format_schedule(schedule: Schedule) -> str:
    """What `parse_schedule` reads back as the same schedule: "0@0,1@0.4"."""
    return ",".join(f"{number_text(factor)}@{number_text(place)}" for place, factor in schedule)


def schedule_faults(schedule: Schedule) -> list[str]:
    """What keeps points from being a schedule: places lie in 0..1 and ascend, two at most at one place (a jump)."""
    places = [place for place, _ in schedule]
    faults = [f"place {place}: wanted 0 to 1" for place in places if not 0 <= place <= 1]
    faults += [
        f"place {place}: factor {number} isn't finite" for place, number in schedule if not math.isfinite(number)
    ]
    faults += [f"place {two:g} comes after {one:g}" for one, two in pairwise(places) if two < one]
    return faults + [f"place {place:g} stands there {n} times" for place, n in Counter(places).items() if n > 2]
