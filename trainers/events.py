"""What a training tells the world, one JSON line each: Started, Cached, Supervised, Busy, Note, Step, Validation,
Preview, Saved, Stopped, Finished.

The command line draws them, `runs/<name>/events.jsonl` keeps them, and the studio follows that file.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Started:
    """Everything is loaded; the first step comes next."""

    name: str
    base: str
    device: str
    precision: str
    attention: str
    samples: int
    unit: str  # what the speed counts: "pictures", "tokens"
    steps: int
    first_step: int  # 0, or where a resumed run goes on
    parameters: dict[str, tuple[int, int]]  # component -> (trainable, total)
    optimizer: str
    exposures: tuple[int, int]  # how often a sample is seen in this run: fewest, most


@dataclass(frozen=True)
class Cached:
    """Pictures and captions are encoded: how many were made now, how many lay on disk."""

    encoded: int
    reused: int


@dataclass(frozen=True)
class Supervised:
    """Which tokens of the texts are learned: counts, and the first texts cut where learning begins and ends."""

    documents: int
    pieces: int
    tokens: int
    supervised: int
    samples: list[tuple[str, list[tuple[str, bool]]]]  # (its name, its runs: (text, learned))


@dataclass(frozen=True)
class Busy:
    """Work before the first step: `done` of `total` pictures encoded, class pictures made …"""

    what: str
    done: int
    total: int


@dataclass(frozen=True)
class Note:
    """Something a person should know that stops nothing."""

    text: str


@dataclass(frozen=True)
class Step:
    """One optimizer update is done."""

    step: int  # counted from 1
    loss: float
    lr: float
    grad_norm: float
    seconds: float  # wall time of this step
    samples: int  # pictures or texts in it, over all processes
    weight: float  # what its summed loss was divided by: pictures, or supervised tokens
    memory: int  # peak so far in bytes: of the GPU where there is one, else of the process


@dataclass(frozen=True)
class Validation:
    """Measured on what is kept apart, with the adapter as it is after this step."""

    step: int
    loss: float  # mean over what is kept apart; of text, per token
    best: bool  # lower than all before


@dataclass(frozen=True)
class Preview:
    """Pictures from fixed seeds in one sheet, or texts in a file."""

    step: int
    path: str


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint stands on disk."""

    step: int
    path: str


@dataclass(frozen=True)
class Stopped:
    """The run was asked to stop and has ended; it can go on after this step, which stands on disk."""

    step: int


@dataclass(frozen=True)
class Finished:
    """The adapter is written."""

    path: str
    sha256: str
    steps: int
    seconds: float
    report: dict[str, Any]


Event = Started | Cached | Supervised | Busy | Note | Step | Validation | Preview | Saved | Stopped | Finished
KINDS: dict[str, type] = {kind.__name__: kind for kind in typing.get_args(Event)}


def to_json(event: Event) -> str:
    """One line, `event` first."""
    return json.dumps({"event": type(event).__name__, **dataclasses.asdict(event)})


def from_json(line: str) -> Event:
    """The inverse of `to_json`; raises KeyError or TypeError on a line that is none of ours."""
    fields = json.loads(line)
    kind = KINDS[fields.pop("event")]
    for field in dataclasses.fields(kind):
        if str(field.type).startswith("tuple"):
            fields[field.name] = tuple(fields[field.name])
        if kind is Supervised and field.name == "samples":
            fields["samples"] = [(name, [(t, learned) for t, learned in runs]) for name, runs in fields["samples"]]
        if field.name == "parameters":
            fields[field.name] = {name: tuple(pair) for name, pair in fields[field.name].items()}
    event: Event = kind(**fields)
    return event
