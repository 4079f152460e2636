"""The question to a model of pictures: text states and UNet predictions on seeded latents.

Try it: python -c "from studio.merge.probe_pictures import *; print(PictureProbe(torch.zeros(1, 77), (9,)).latents(4))"
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainers.batches import generator_for

if TYPE_CHECKING:
    from trainers.families.stable_diffusion import StableDiffusion

PROMPT = "a red house by the sea at night"
PLACES = (0.9, 0.5, 0.1)  # of the noise schedule: nearly all noise, half way, nearly none
SIDE = 16  # of the latents; the UNet is convolutional, so a small side asks every weight too


@dataclass(frozen=True)
class PictureProbe:
    """Token ids, timesteps, and the seed of the latents. It is asked in float32 on the CPU."""

    ids: Tensor  # (P, T) int64
    timesteps: tuple[int, ...]
    seed: int = 0

    def latents(self, channels: int) -> Tensor:
        """(C, SIDE, SIDE) of standard noise for each (prompt, timestep): (P * len(timesteps), C, SIDE, SIDE)."""
        shape = (len(self.ids) * len(self.timesteps), channels, SIDE, SIDE)
        return torch.randn(shape, generator=generator_for(self.seed, 0, 0, "probe"))

    def data(self) -> dict[str, Any]:
        """What JSON can say; `from_data` reads it."""
        return {"ids": self.ids.tolist(), "timesteps": list(self.timesteps), "seed": self.seed}

    def ask(self, family: StableDiffusion) -> dict[str, Tensor]:
        """{"text": (P, T, width), "unet": (P * places, C, side, side)}."""
        unet = family.part("unet")
        text: Tensor = family.part("text_encoder")(self.ids).last_hidden_state
        latents = self.latents(unet.config.in_channels)
        steps = torch.tensor(self.timesteps).repeat(len(text))
        context = text.repeat_interleave(len(self.timesteps), 0)
        return {"text": text, "unet": unet(latents, steps, context).sample}


def from_data(data: dict[str, Any]) -> PictureProbe:
    """The reverse of `data`. KeyError, TypeError, ValueError: it is none."""
    return PictureProbe(torch.tensor(data["ids"]), tuple(data["timesteps"]), data["seed"])


def probe_for(family: StableDiffusion, words: str = "") -> PictureProbe:
    """Two prompts (one with the adapters' trigger words, and the empty one) at three timesteps."""
    most = family.noise.config.num_train_timesteps
    prompts = [f"{PROMPT}, {words}" if words else PROMPT, ""]
    return PictureProbe(family.tokens(prompts), tuple(int(place * most) for place in PLACES))
