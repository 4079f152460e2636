"""How far apart two sets of pictures are in style, whatever they show: texture and colour statistics.

`style_gain(with_adapter, base, style)` is what the demo reports; formulas and their checks are in docs/methods.md.
Pure functions: pictures in, numbers out. The filters come from a seed of their own, so every machine has the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from trainers.errors import StyloraError

Pictures = Sequence[Image.Image] | Tensor  # pictures of any size, or uint8 (N, 3, H, W)

FILTERS = 32
WIDTH = 7  # a filter's side, pixels
OCTAVES = 2  # the same filters at full and half size: 7 and 14 pixels; wider ones see objects
SMALLEST = 4 * WIDTH + 4  # a picture's side: room for 10 x 10 places of a filter at half size
TEXTURE_SHARE = 3 / 4  # of the squared distance; the colour has the rest (why: docs/methods.md)


@dataclass(frozen=True)
class Parts:
    """The two parts of a squared distance; unbiased, so below 0 by chance where there is no difference."""

    texture: float
    colour: float

    @property
    def total(self) -> float:
        return TEXTURE_SHARE * self.texture + (1 - TEXTURE_SHARE) * self.colour

    @property
    def distance(self) -> float:
        return math.sqrt(max(0.0, self.total))


@dataclass(frozen=True, eq=False)
class Statistics:
    """What is known of a set of N pictures: `texture` (N, OCTAVES, FILTERS, FILTERS), `colour` (N, 4, 3)."""

    texture: Tensor
    colour: Tensor


def tensors(pictures: Pictures) -> list[Tensor]:
    """Each picture as (3, H, W) float32 in 0..1."""
    if isinstance(pictures, Tensor):
        if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[1] != 3:
            fault = f"got {pictures.dtype} {list(pictures.shape)}, wanted torch.uint8 [N, 3, H, W]"
            raise StyloraError("These are not pictures.", [fault], "Give a list of PIL pictures or a uint8 tensor.")
        return list(pictures.contiguous().float() / 255)
    arrays = [np.array(picture.convert("RGB")) for picture in pictures]
    return [torch.from_numpy(array).permute(2, 0, 1).contiguous().float() / 255 for array in arrays]


@cache
def filters() -> Tensor:
    """Random filters (FILTERS, 3, WIDTH, WIDTH), each colour plane of mean 0, each filter of norm 1."""
    drawn = np.random.RandomState(20161101).standard_normal((FILTERS, 3, WIDTH, WIDTH))  # frozen stream: numpy's NEP 19
    drawn -= drawn.mean((2, 3), keepdims=True)
    drawn /= np.linalg.norm(drawn.reshape(FILTERS, -1), axis=1)[:, None, None, None]
    return torch.from_numpy(drawn).float()


def root(matrices: Tensor) -> Tensor:
    """Square root of positive semi-definite (…, n, n) matrices, which brings squares back to amplitudes."""
    values, vectors = torch.linalg.eigh(matrices.double())
    amplitudes: Tensor = (vectors * values.clamp(min=0).sqrt()[..., None, :]) @ vectors.mT
    return amplitudes


def texture(picture: Tensor) -> Tensor:
    """(3, H, W) -> (OCTAVES, FILTERS, FILTERS): roots of the Gram matrices of rectified random-filter responses.

    Gatys, Ecker, Bethge 2015 (Gram matrices); Ustyuzhaninov et al. 2016 (one layer of random filters is enough).
    """
    grams = []
    for octave in range(OCTAVES):
        small = F.avg_pool2d(picture[None], 2**octave)
        responses = F.conv2d(small, filters()).relu()[0].flatten(1)  # (FILTERS, places)
        grams.append(responses @ responses.T / responses.shape[1])
    return root(torch.stack(grams))


def colour(picture: Tensor) -> Tensor:
    """(3, H, W) -> (4, 3): the mean colour, and the root of the colours' covariance."""
    pixels = picture.flatten(1).double()
    mean = pixels.mean(1, keepdim=True)
    spread = root((pixels - mean) @ (pixels - mean).T / pixels.shape[1])
    return torch.cat([mean.T, spread])


def unbiased(a: Tensor, b: Tensor) -> float:
    """Squared distance of two means, (N, …) and (M, …), less what sampling alone adds: var(a)/N + var(b)/M.

    MMD's unbiased estimate (Gretton et al. 2012, lemma 6) with the linear kernel: two draws of one style average 0.
    """
    a, b = a.flatten(1), b.flatten(1)
    sampling = a.var(0).sum() / len(a) + b.var(0).sum() / len(b)
    return float((a.mean(0) - b.mean(0)).square().sum() - sampling)


@torch.no_grad()
def describe(**sets: Pictures) -> list[Statistics]:
    """The statistics of each named set, in order; StyloraError with everything wrong with any of them."""
    read = {name: tensors(pictures) for name, pictures in sets.items()}
    check(read)
    return [
        Statistics(torch.stack([texture(p) for p in found]), torch.stack([colour(p) for p in found]))
        for found in read.values()
    ]


def parts(a: Statistics, b: Statistics) -> Parts:
    """Texture and colour parts of the squared distance between two sets."""
    return Parts(unbiased(a.texture, b.texture), unbiased(a.colour, b.colour))


def distance(a: Pictures, b: Pictures) -> float:
    """How far apart two sets are in style: 0 for the same style; up to about 1 for pictures in 0..1."""
    return parts(*describe(first=a, second=b)).distance


def style_gain(with_adapter: Pictures, base: Pictures, style: Pictures) -> float:
    """1 - d(with, style) / d(base, style): 1 arrived, 0 no nearer, negative further; NaN if base is there already."""
    after, before, wanted = describe(with_adapter=with_adapter, base=base, style=style)
    return gain(parts(after, wanted), parts(before, wanted))


def gain(after: Parts, before: Parts) -> float:
    """The share of the distance that is gone; NaN where there was none."""
    return 1 - after.distance / before.distance if before.distance else math.nan


def check(sets: dict[str, list[Tensor]]) -> None:
    """At least two pictures a set (one has no variance), none too small; else all faults at once."""
    faults = [
        f"{name} set: got {len(pictures)} picture(s), wanted 2 or more"
        for name, pictures in sets.items()
        if len(pictures) < 2
    ]
    faults += [
        f"{name} set, picture {k}: got {p.shape[2]} x {p.shape[1]}, wanted sides of {SMALLEST} or more"
        for name, pictures in sets.items()
        for k, p in enumerate(pictures)
        if min(p.shape[1:]) < SMALLEST
    ]
    if faults:
        raise StyloraError("These sets of pictures can't be compared.", faults, "Give more, or larger, pictures.")
