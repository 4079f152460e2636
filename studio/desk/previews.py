"""Latents on their way to a picture -> a small JPEG of each, so cheaply that drawing hardly gets slower.

Two ways. A linear map from a latent to the mean colour of its pixels, fitted once to what the base's own VAE makes of
random latents: next to nothing, but a pixel for each latent. And the VAE itself, which takes time: it is asked only at
every few steps, so that it takes SHARE of their time, and not at all where these would be too few.

Try it: python -c "import torch; from studio.desk.previews import jpeg; print(len(jpeg(torch.rand(3, 64, 64))))"
"""

from __future__ import annotations

import io
import math
import time
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

SHARE = 0.1  # of the time that the steps take
RAREST = 6  # steps between two previews by the VAE; rarer ones aren't worth waiting for
CARD = 16  # latents along a side of what the map is fitted to
SIDE = 256  # pixels: larger previews are made smaller
MOST = 4  # previews of one batch: as many as a page shows side by side


class Painter:
    """Makes previews for one base, and learns how long its VAE takes."""

    def __init__(self, family: Any) -> None:
        self.family, self.seconds = family, 0.0  # of the VAE, for each latent
        self._map = torch.empty(0)  # (C + 1, 3): from a latent and 1 to a colour
        self._fit()

    def start(self) -> Turn:
        """For one batch, as its drawing begins."""
        return Turn(self)

    @torch.no_grad()
    def plain(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, h, w) colours in 0..1, by the linear map."""
        each = latents.float().cpu().permute(0, 2, 3, 1)
        return (F.pad(each, (0, 1), value=1.0) @ self._map).permute(0, 3, 1, 2)

    @torch.no_grad()
    def fine(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, H, W) colours in 0..1, by the VAE."""
        begun, vae = time.perf_counter(), self.family.part("vae")
        made: Tensor = vae.decode(latents.to(vae.dtype) / self.family.latent_scale).sample.float().cpu()
        self.seconds = (time.perf_counter() - begun) / latents[:, 0].numel()
        return made / 2 + 0.5

    def _fit(self) -> None:
        """Least squares over latents of all sorts, soft and rough: their own numbers, and the colours the VAE gives."""
        channels = int(self.family.part("vae").config.latent_channels)
        g = torch.Generator().manual_seed(0)
        rough, coarse = (torch.randn(1, channels, side, side, generator=g) for side in (CARD, CARD // 4))
        soft = F.interpolate(coarse, (CARD, CARD), mode="bicubic", align_corners=False)
        latents = torch.cat([soft, soft + rough]).to(self.family.device)
        self.fine(latents)  # which takes longer the first time
        colours = F.adaptive_avg_pool2d(self.fine(latents), CARD).permute(0, 2, 3, 1).flatten(0, 2)
        inputs = F.pad(latents.float().cpu().permute(0, 2, 3, 1).flatten(0, 2), (0, 1), value=1.0)  # (B h w, C + 1)
        self._map = torch.linalg.lstsq(inputs, colours).solution


class Turn:
    """The previews of one batch: by the VAE at every few steps, the first among them, or by the map at each."""

    def __init__(self, painter: Painter) -> None:
        self.painter, self.last, self.next = painter, time.perf_counter(), 0

    def look(self, done: int, latents: Tensor) -> tuple[bytes, ...]:
        """JPEGs after a step; () where it isn't time for others than those that were made."""
        step, latents = max(time.perf_counter() - self.last, 1e-6), latents[:MOST]
        every = math.ceil(self.painter.seconds * latents[:, 0].numel() / (SHARE * step))
        found: tuple[bytes, ...] = ()
        if every > RAREST:
            found = tuple(map(jpeg, self.painter.plain(latents)))
        elif done >= self.next:
            found, self.next = tuple(map(jpeg, self.painter.fine(latents))), done + every
        self.last = time.perf_counter()
        return found


def jpeg(colours: Tensor) -> bytes:
    """(3, H, W) in 0..1 as a JPEG of at most SIDE pixels a side."""
    numbers = (colours.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous()
    picture = Image.frombytes("RGB", (numbers.shape[1], numbers.shape[0]), numbers.numpy().tobytes())
    picture.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    picture.save(stream, format="JPEG", quality=80)
    return stream.getvalue()
