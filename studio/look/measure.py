"""What adapters do to a base, measured on its own predictions through the rack: strength of one, disturbance of two.

Probes are noisy latents from the bare base's own way to a picture. Every probe is asked once per cell (weights of the
adapters) in one batch, text encoder included, so that what differs is the adapters alone. Formulas: docs/methods.md.

Try it: `stylora strength ink.safetensors --base tiny-sd`, `stylora conflict ink.safetensors neon.safetensors`
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from trainers import bases, devices
from trainers.errors import AdapterError, ConfigError
from trainers.families.stable_diffusion import StableDiffusion
from trainers.lora.adapter import Adapter
from trainers.lora.files import write_whole
from trainers.lora.gains import Gain
from trainers.lora.rack import Gains, Rack

PROMPTS = (
    "a red house", "a blue boat at night", "a green tree in a meadow", "a white cat", "a pink bird in the desert",
    "an orange flower by the sea", "a yellow cup in the snow", "a purple fish",
)  # fmt: skip
STEPS = 10  # of the bare base's way from noise to a picture
PLACES = (2, 5, 8)  # the steps of it at which latents are kept: layout, shapes, details
MOST_PLACES = 16 * 64 * 64  # rows x height x width of the latents in one batch: eight pictures of SD 1.5 with guidance
MOST_AT_ONCE = 8  # pictures sampled as one batch
PICTURE_STEPS = 20
ADDS_UP = 0.25  # a disturbance up to here is nothing to speak of
REFERENCE = 0.2  # the effect at which weights feel equal, see docs/methods.md
EQUAL_FEEL = "stylora.equal_feel"  # header entry


def on_base(
    base: str, adapters: Mapping[str, Adapter], device: str = "auto"
) -> tuple[StableDiffusion, Rack, list[str]]:
    """(the base, a rack with the adapters in it, their keys). AdapterError: everything that doesn't fit, by name."""
    machine = devices.machine(device)
    family = StableDiffusion(bases.find(base), device=machine.device, dtype=machine.frozen_dtype)
    rack, keys, faults = Rack(family.parts()), list[str](), list[str]()
    for name, adapter in adapters.items():
        try:
            keys.append(rack.add(adapter))
        except AdapterError as error:
            faults += [f"{name}: {fault}" for fault in error.faults or [error.what]]
    if faults:
        step = "name the base they were trained on with --base; `stylora check FILE --base …` tells how much fits"
        raise AdapterError(f"adapters don't fit the base {base}", faults, step)
    return family, rack, keys


@dataclass(frozen=True)
class Probes:
    """P prompts at K timesteps each: what the base is asked."""

    prompts: tuple[str, ...]
    ids: Tensor  # (P, T)
    timesteps: Tensor  # (K,)
    latents: Tensor  # (P, K, C, h, w), noisy


def with_triggers(prompts: Sequence[str], triggers: Sequence[str]) -> tuple[str, ...]:
    """Each prompt, followed by those trigger words that it lacks."""
    return tuple(
        ", ".join([prompt, *(word for word in dict.fromkeys(triggers) if word and word not in prompt)])
        for prompt in prompts
    )


@torch.no_grad()
def probes(family: StableDiffusion, rack: Rack, prompts: Sequence[str] = PROMPTS, seed: int = 0) -> Probes:
    """Latents on the bare base's own DDIM path (Song et al. 2021, eq. 12, no noise added), prompt k from seed + k."""
    rack.set([{}])
    ids = family.tokens(prompts).to(family.device)
    unet = family.part("unet")
    alphas = family.noise.alphas_cumprod.double()
    stops = [len(alphas) * (STEPS - k) // STEPS - 1 for k in range(STEPS)]
    shape = unet.config.in_channels, unet.config.sample_size, unet.config.sample_size
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed + k)) for k in range(len(prompts))]
    x = torch.stack(noise).to(family.device)  # (P, C, h, w)
    kept = []
    with family.autocast():
        states = family.part("text_encoder")(ids).last_hidden_state
        for k, t in enumerate(stops[: max(PLACES) + 1]):
            if k in PLACES:
                kept.append(x)
            said = unet(x.to(family.dtype), t, states).sample.to(x.dtype)
            x = _ddim(x, said, float(alphas[t]), float(alphas[stops[k + 1]]), family.prediction)
    timesteps = torch.tensor([stops[k] for k in PLACES], device=family.device)
    return Probes(tuple(prompts), ids, timesteps, torch.stack(kept, 1))


def _ddim(x: Tensor, said: Tensor, now: float, then: float, prediction: str) -> Tensor:
    """x at signal power `then` from x at `now` and what the model says of it."""
    signal, spread = math.sqrt(now), math.sqrt(1 - now)
    noise = said if prediction == "epsilon" else signal * said + spread * x
    picture = (x - spread * said) / signal if prediction == "epsilon" else signal * x - spread * said
    return math.sqrt(then) * picture + math.sqrt(1 - then) * noise


@torch.no_grad()
def predictions(family: StableDiffusion, rack: Rack, asked: Probes, cells: Sequence[Gains]) -> Tensor:
    """(P * K, cells, C * h * w) in float64 on the CPU: cells of a probe in one batch, with as many probes as fit."""
    n, (p, k) = len(cells), asked.latents.shape[:2]
    rack.set(cells)
    unet, found = family.part("unet"), []
    with family.autocast():
        states = family.part("text_encoder")(asked.ids.repeat_interleave(n, 0)).last_hidden_state  # (P * n, T, width)
        states = states.unflatten(0, (p, 1, n)).expand(p, k, n, *states.shape[1:]).flatten(0, 1)  # (P * K, n, T, width)
        latents = asked.latents.flatten(0, 1).to(family.dtype)
        timesteps = asked.timesteps.repeat(p)
        for rows in torch.arange(p * k).split(max(1, MOST_PLACES // (n * asked.latents[0, 0, 0].numel()))):
            x, t = latents[rows].repeat_interleave(n, 0), timesteps[rows].repeat_interleave(n)
            found.append(unet(x, t, states[rows].flatten(0, 1)).sample.double().cpu().unflatten(0, (-1, n)))
    return torch.cat(found).flatten(2)


# --- strength --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Strength:
    """The effect of one adapter by weight, and the weight at which it has the reference effect (None: never)."""

    weights: tuple[float, ...]
    effects: tuple[float, ...]
    reference: float
    equal_feel: float | None


def strength(
    family: StableDiffusion, rack: Rack, asked: Probes, key: str, weights: Sequence[float], reference: float = REFERENCE
) -> Strength:
    """Effect at w: ||f(w) - f(0)|| / ||f(0)||, mean over the probes; f is the UNet's prediction."""
    said = predictions(family, rack, asked, [{}, *({key: Gain(weight)} for weight in weights)])
    effects = tuple(_effects(said)[1:].tolist())
    return Strength(tuple(weights), effects, reference, equal_feel(weights, effects, reference))


def _effects(said: Tensor) -> Tensor:
    """(cells,): the mean over the probes of each cell's distance from cell 0, relative to cell 0."""
    bare = said[:, :1]
    each: Tensor = (said - bare).norm(dim=2) / bare.norm(dim=2)
    return each.mean(0)


def equal_feel(weights: Sequence[float], effects: Sequence[float], reference: float) -> float | None:
    """The positive weight with the reference effect: linear between the points, from (0, 0) on while effects rise."""
    points = sorted({(0.0, 0.0)} | {(w, e) for w, e in zip(weights, effects, strict=True) if w > 0})
    for (w0, e0), (w1, e1) in pairwise(points):
        if e1 <= e0:
            return None
        if e0 < reference <= e1:
            return w0 + (w1 - w0) * (reference - e0) / (e1 - e0)
    return None


def pictures_of(
    family: StableDiffusion, rack: Rack, cells: Sequence[Gains], prompt: str, seed: int = 0
) -> list[Image.Image]:
    """The same picture in every cell, in batches of MOST_AT_ONCE: what the numbers look like."""
    made: list[Image.Image] = []
    for first in range(0, len(cells), MOST_AT_ONCE):
        part = cells[first : first + MOST_AT_ONCE]
        rack.set(part)
        made += family.sample([prompt] * len(part), [seed] * len(part), steps=PICTURE_STEPS)
    return made


# --- disturbance -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Disturbance:
    """Two adapters together on the base: how far the effect of both is from the sum of their effects."""

    share: float  # ||f(both) - f(one) - f(other) + f(0)|| / ||f(both) - f(0)|| over all probes; 0: they just add up
    alone: tuple[float, float]  # the same of each adapter and itself, both at half weight: how much it bends alone
    agreement: float  # cosine of the two effects: 1 they push the same way, 0 apart, -1 against each other
    effects: tuple[float, float, float]  # of one, the other, both, relative to f(0)
    by_timestep: dict[int, float]  # timestep -> share

    @property
    def verdict(self) -> str:
        """In words: against ADDS_UP, then against what the two do to themselves."""
        if self.share <= ADDS_UP:
            return "they add up: each looks as it does alone"
        if self.share <= max(self.alone):
            return "they bend each other, no more than one of them bends itself as its weight grows"
        return "they disturb each other more than either bends itself"


def disturbance(
    family: StableDiffusion, rack: Rack, asked: Probes, one: tuple[str, Gain], other: tuple[str, Gain]
) -> Disturbance:
    """Two different adapters (key, gain), measured as six cells of one batch: none, each, both, and each at half."""
    gains = dict([one, other])
    if len(gains) < 2:
        raise ValueError("one adapter twice")
    each = [{key: gain} for key, gain in gains.items()]
    half = [{key: halved(gain)} for key, gain in gains.items()]
    said = predictions(family, rack, asked, [{}, *each, gains, *half])
    bare, *changed = said.unbind(1)
    a, b, both, half_a, half_b = (value - bare for value in changed)  # effects, each (P * K, C * h * w)
    times = [int(t) for t in asked.timesteps]
    rest, size = both - a - b, float(a.norm() * b.norm())
    return Disturbance(
        _ratio(rest, both),
        (_ratio(a - 2 * half_a, a), _ratio(b - 2 * half_b, b)),
        float((a * b).sum()) / size if size else 0.0,
        (*_effects(said)[1:4].tolist(),),
        {t: _ratio(rest[k :: len(times)], both[k :: len(times)]) for k, t in enumerate(times)},
    )


def halved(gain: Gain) -> Gain:
    encoder = None if gain.text_encoder is None else gain.text_encoder / 2
    return replace(gain, weight=gain.weight / 2, text_encoder=encoder)


def _ratio(part: Tensor, whole: Tensor) -> float:
    """||part|| / ||whole||; 0 where both are nothing, infinite where only the whole is."""
    if bool(whole.any()):
        return float(part.norm() / whole.norm())
    return math.inf if bool(part.any()) else 0.0


# --- words and files -------------------------------------------------------------------------------------------------


def read_prompts(path: Path | None) -> tuple[str, ...]:
    """A text file's lines that aren't empty; PROMPTS without one. Raises ConfigError."""
    if path is None:
        return PROMPTS
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
    """Put entries into a safetensors file's header; every other byte stays. AdapterError: nothing was written."""
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
