"""How a Stable Diffusion base is asked: noisy latents from its own way to a picture; it answers with its prediction.

The text encoder's part of an adapter is asked along.

Try it: `stylora strength ink.safetensors --base tiny-sd`
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from trainers.bases import Kind
from trainers.families.stable_diffusion import StableDiffusion
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
REFERENCE = 0.2  # the effect at which weights feel equal, see docs/methods.md


class Pictures:
    """A measure.Base of pictures."""

    kind: Kind = "pictures"
    prompts: tuple[str, ...] = PROMPTS
    reference = REFERENCE

    def __init__(self, family: StableDiffusion) -> None:
        self.family, self.rack = family, Rack(family.parts())

    def digest(self) -> str:
        return self.family.digest("unet")

    @torch.no_grad()
    def probes(self, prompts: Sequence[str], seed: int = 0) -> Latents:
        """Latents on the bare base's own DDIM path (Song et al. 2021, eq. 12, no noise), prompt k from seed + k."""
        family = self.family
        self.rack.set([{}])
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
        return Latents(self, ids, tuple(stops[k] for k in PLACES), torch.stack(kept, 1))

    def show(self, cells: Sequence[Gains], prompt: str, seed: int = 0) -> list[Image.Image]:
        """The same picture in every cell, in batches of MOST_AT_ONCE: what the numbers look like."""
        made: list[Image.Image] = []
        for first in range(0, len(cells), MOST_AT_ONCE):
            part = cells[first : first + MOST_AT_ONCE]
            self.rack.set(part)
            made += self.family.sample([prompt] * len(part), [seed] * len(part), steps=PICTURE_STEPS)
        return made


def _ddim(x: Tensor, said: Tensor, now: float, then: float, prediction: str) -> Tensor:
    """x at signal power `then` from x at `now` and what the model says of it."""
    signal, spread = math.sqrt(now), math.sqrt(1 - now)
    noise = said if prediction == "epsilon" else signal * said + spread * x
    picture = (x - spread * said) / signal if prediction == "epsilon" else signal * x - spread * said
    return math.sqrt(then) * picture + math.sqrt(1 - then) * noise


@dataclass(frozen=True)
class Latents:
    """P prompts at K timesteps each: measure.Probes of pictures."""

    base: Pictures
    ids: Tensor  # (P, T)
    places: tuple[int, ...]  # K timesteps
    latents: Tensor  # (P, K, C, h, w), noisy
    logits = False

    @torch.no_grad()
    def answers(self, cells: Sequence[Gains]) -> Iterator[Tensor]:
        """(probes, cells, C * h * w): the UNet's predictions; as many probes in a batch as fit."""
        family, n, (p, k) = self.base.family, len(cells), self.latents.shape[:2]
        self.base.rack.set(cells)
        unet = family.part("unet")
        timesteps = torch.tensor(self.places, device=family.device).repeat(p)
        latents = self.latents.flatten(0, 1).to(family.dtype)
        with family.autocast():
            states = family.part("text_encoder")(
                self.ids.repeat_interleave(n, 0)
            ).last_hidden_state  # (P * n, T, width)
            states = states.unflatten(0, (p, 1, n)).expand(p, k, n, *states.shape[1:]).flatten(0, 1)  # (P * K, n, …)
            for rows in torch.arange(p * k).split(max(1, MOST_PLACES // (n * latents[0, 0].numel()))):
                x, t = latents[rows].repeat_interleave(n, 0), timesteps[rows].repeat_interleave(n)
                said = unet(x, t, states[rows].flatten(0, 1)).sample
                yield said.double().cpu().unflatten(0, (-1, n)).flatten(2)
