"""What adapters do to a base, measured on its own predictions through the rack: strength of one, disturbance of two.

A base is asked at probes; every probe is asked once per cell (weights of the adapters), all cells in one batch, so that
what differs is the adapters alone. What is asked and what is answered differs between pictures (measure_pictures) and
text (measure_text); the measures are the same. Formulas: docs/methods.md.

Try it: `stylora strength ink.safetensors --base tiny-sd`, `stylora conflict pirate herald --base tiny-lm`
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from trainers import bases, devices
from trainers.bases import Kind
from trainers.errors import AdapterError, ConfigError
from trainers.lora.adapter import Adapter
from trainers.lora.family import is_text
from trainers.lora.files import parts_on_disk, write_whole
from trainers.lora.formats.names import CONFIG_FILE
from trainers.lora.gains import Gain
from trainers.lora.rack import Gains, Rack

ADDS_UP = 0.25  # a disturbance up to here is nothing to speak of
EQUAL_FEEL = "stylora.equal_feel"  # header entry


class Probes(Protocol):
    """What a base is asked; an answer is a vector of D numbers."""

    @property
    def places(self) -> tuple[int, ...]:
        """K names of places: probe n is of place n % K. () where the probes have none."""

    @property
    def logits(self) -> bool:
        """An answer holds a logit for each token: it is a distribution, too."""

    def answers(self, cells: Sequence[Gains]) -> Iterator[Tensor]:
        """(probes, cells, D) in float64 on the CPU, in pieces, always in the same order."""


class Base(Protocol):
    """A base of either kind with a rack around it."""

    kind: Kind
    rack: Rack
    prompts: tuple[str, ...]  # those that come with the code
    reference: float  # the effect at which weights feel equal, see docs/methods.md

    def digest(self) -> str:
        """sha256 of the part that was asked."""

    def probes(self, prompts: Sequence[str]) -> Probes:
        """What the bare base is used to, from these prompts on; always the same."""

    def show(self, cells: Sequence[Gains], prompt: str) -> list[Any]:
        """What is made of one prompt in each cell: pictures, or lines of text."""


def on_base(
    base: str, adapters: Mapping[str, Adapter], device: str = "auto", opened: Base | None = None
) -> tuple[Base, list[str]]:
    """(the base with the adapters in its rack, their keys). AdapterError: everything that doesn't fit, by name.

    `opened` is the base where it is in memory already.
    """
    opened = opened or _opened(base, device)
    keys, faults = list[str](), list[str]()
    for name, adapter in adapters.items():
        if is_text(adapter.pairs) != (opened.kind == "text"):
            faults.append(f"{name}: is an adapter for {'text' if is_text(adapter.pairs) else 'pictures'}")
            continue
        try:
            keys.append(opened.rack.add(adapter))
        except AdapterError as error:
            faults += [f"{name}: {fault}" for fault in error.faults or [error.what]]
    if faults:
        step = "name the base they were trained on with --base; `stylora check FILE --base …` tells how much fits"
        raise AdapterError(f"adapters don't fit the base {base}", faults, step)
    return opened, keys


def _opened(base: str, device: str) -> Base:
    machine, folder = devices.machine(device), bases.find(base)
    if bases.kind_of(folder) == "text":
        from studio.look.measure_text import Texts
        from trainers.families.causal_lm import CausalLM

        return Texts(CausalLM(folder, device=machine.device, dtype=machine.frozen_dtype))
    from studio.look.measure_pictures import Pictures
    from trainers.families.stable_diffusion import StableDiffusion

    return Pictures(StableDiffusion(folder, device=machine.device, dtype=machine.frozen_dtype))


def with_triggers(prompts: Sequence[str], triggers: Sequence[str]) -> tuple[str, ...]:
    """Each prompt, followed by those trigger words that it lacks."""
    return tuple(
        ", ".join([prompt, *(word for word in dict.fromkeys(triggers) if word and word not in prompt)])
        for prompt in prompts
    )


# --- strength --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Strength:
    """The effect of one adapter by weight, and the weight at which it has the reference effect (None: never)."""

    weights: tuple[float, ...]
    effects: tuple[float, ...]
    reference: float
    equal_feel: float | None
    nats: tuple[float, ...] | None = None  # of text: KL divergence from the bare base, in nats per token

    @property
    def worth_a_look(self) -> list[float]:
        """The weights, and the equal-feel one after them."""
        return [*self.weights, *([] if self.equal_feel is None else [self.equal_feel])]

    @property
    def labels(self) -> list[str]:
        """What these are called."""
        feel = [] if self.equal_feel is None else [f"equal feel: {self.equal_feel:.2f}"]
        return [*(f"{weight:g}" for weight in self.weights), *feel]


def strength(asked: Probes, key: str, weights: Sequence[float], reference: float) -> Strength:
    """Effect at w: ||f(w) - f(0)|| / ||f(0)||, mean over the probes; f is the base's answer."""
    cells: list[Gains] = [{}, *({key: Gain(weight)} for weight in weights)]
    effects, nats = [], []
    for said in asked.answers(cells):
        effects.append(_effects(said))
        nats += [divergence(said)] if asked.logits else []
    found = tuple(torch.cat(effects).mean(0)[1:].tolist())
    apart = tuple(torch.cat(nats).mean(0)[1:].tolist()) if nats else None
    return Strength(tuple(weights), found, reference, equal_feel(weights, found, reference), apart)


def _effects(said: Tensor) -> Tensor:
    """(N, cells, D) -> (N, cells): each cell's distance from cell 0, relative to cell 0."""
    bare = said[:, :1]
    each: Tensor = (said - bare).norm(dim=2) / bare.norm(dim=2)
    return each


def divergence(said: Tensor) -> Tensor:
    """(N, cells, V) logits -> (N, cells): sum p ln(p / p_0) of each cell's distribution from cell 0's, in nats."""
    logs = said.log_softmax(2)
    each: Tensor = (logs.exp() * (logs - logs[:, :1])).sum(2)
    return each


def equal_feel(weights: Sequence[float], effects: Sequence[float], reference: float) -> float | None:
    """The positive weight with the reference effect: linear between the points, from (0, 0) on while effects rise."""
    points = sorted({(0.0, 0.0)} | {(w, e) for w, e in zip(weights, effects, strict=True) if w > 0})
    for (w0, e0), (w1, e1) in pairwise(points):
        if e1 <= e0:
            return None
        if e0 < reference <= e1:
            return w0 + (w1 - w0) * (reference - e0) / (e1 - e0)
    return None


# --- disturbance -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Disturbance:
    """Two adapters together on the base: how far the effect of both is from the sum of their effects."""

    share: float  # ||f(both) - f(one) - f(other) + f(0)|| / ||f(both) - f(0)|| over all probes; 0: they just add up
    alone: tuple[float, float]  # the same of each adapter and itself, both at half weight: how much it bends alone
    agreement: float  # cosine of the two effects: 1 they push the same way, 0 apart, -1 against each other
    effects: tuple[float, float, float]  # of one, the other, both, relative to f(0)
    by_timestep: dict[int, float]  # timestep -> share; of pictures alone
    nats: tuple[float, float, float] | None = None  # of text: KL divergences of one, the other, both from the base

    @property
    def verdict(self) -> str:
        """In words: against ADDS_UP, then against what the two do to themselves."""
        if self.share <= ADDS_UP:
            return "they add up: each looks as it does alone"
        if self.share <= max(self.alone):
            return "they bend each other, no more than one of them bends itself as its weight grows"
        return "they disturb each other more than either bends itself"


def disturbance(asked: Probes, one: tuple[str, Gain], other: tuple[str, Gain]) -> Disturbance:
    """Two different adapters (key, gain), measured as six cells of one batch: none, each, both, and each at half."""
    gains = dict([one, other])
    if len(gains) < 2:
        raise ValueError("one adapter twice")
    each = [{key: gain} for key, gain in gains.items()]
    half = [{key: halved(gain)} for key, gain in gains.items()]
    squares, effects, nats = [], [], []
    for said in asked.answers([{}, *each, gains, *half]):
        squares.append(_squares(said))
        effects.append(_effects(said)[:, 1:4])
        nats += [divergence(said)[:, 1:4]] if asked.logits else []
    table = torch.cat(squares)  # (N, 7)
    rest, both, bent_a, a, bent_b, b, product = table.sum(0).tolist()
    k = len(asked.places)
    return Disturbance(
        _ratio(rest, both),
        (_ratio(bent_a, a), _ratio(bent_b, b)),
        product / math.sqrt(a * b) if a and b else 0.0,
        _three(effects),
        {place: _ratio(*table[n::k, :2].sum(0).tolist()) for n, place in enumerate(asked.places)},
        _three(nats) if nats else None,
    )


def _squares(said: Tensor) -> Tensor:
    """(N, 6 cells, D) -> (N, 7): of each probe what `disturbance` adds up, squared norms and one product."""
    bare, *changed = said.unbind(1)
    a, b, both, half_a, half_b = (value - bare for value in changed)  # effects, each (N, D)
    parts = (both - a - b, both, a - 2 * half_a, a, b - 2 * half_b, b)
    return torch.stack([*(part.square().sum(1) for part in parts), (a * b).sum(1)], 1)


def _three(pieces: Sequence[Tensor]) -> tuple[float, float, float]:
    """The means over the probes of three cells."""
    one, other, both = torch.cat(list(pieces)).mean(0).tolist()
    return one, other, both


def halved(gain: Gain) -> Gain:
    encoder = None if gain.text_encoder is None else gain.text_encoder / 2
    return replace(gain, weight=gain.weight / 2, text_encoder=encoder)


def _ratio(part: float, whole: float) -> float:
    """||part|| / ||whole|| from their squares; 0 where both are nothing, infinite where only the whole is."""
    return math.sqrt(part / whole) if whole else (math.inf if part else 0.0)


# --- words and files -------------------------------------------------------------------------------------------------


def read_prompts(path: Path | None) -> tuple[str, ...]:
    """A text file's lines that aren't empty; none where there is no file: the base's own serve. Raises ConfigError."""
    if path is None:
        return ()
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigError(
            f"--prompts {path}: can't be read: {reason}", next_step="give a text, a prompt a line"
        ) from None
    if not (found := tuple(line for line in lines if line)):
        raise ConfigError(f"--prompts {path}: holds no prompt", next_step="write one prompt a line")
    return found


def rising(weights: Sequence[float]) -> tuple[float, ...]:
    """The different weights in rising order. Raises ConfigError: there are fewer than two."""
    found = tuple(sorted(set(weights)))
    if len(found) < 2:
        raise ConfigError("--weights: a curve needs two different weights", next_step="write for example 0..1.5/7")
    return found


def with_metadata(path: Path, entries: Mapping[str, str]) -> None:
    """Put entries into the header of a safetensors file, or of each in a PEFT folder; every other byte stays.

    AdapterError: nothing was written of the file that it names.
    """
    for file in parts_on_disk(path):
        if file.name != CONFIG_FILE:
            _with_entries(file, entries)


def _with_entries(path: Path, entries: Mapping[str, str]) -> None:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise AdapterError(f"{path}: has no header to write in: {error.strerror or error}") from None
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = {**header.get("__metadata__", {}), **entries}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_whole(path.resolve(), [len(text).to_bytes(8, "little"), text, memoryview(data)[end:]])  # a link stays a link
