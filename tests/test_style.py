"""The style distance: identities it must keep, and what it must tell apart on drawn pictures whose style is known.

A style counts as itself whatever it shows; paint over a plain picture doesn't count as a texture.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from studio.style import (
    FILTERS,
    Parts,
    Statistics,
    colour,
    describe,
    distance,
    filters,
    parts,
    root,
    style_gain,
    texture,
    unbiased,
)
from studio.style import gain as gained
from trainers.errors import StyloraError

ROOT = Path(__file__).resolve().parents[1]
COUNT = 12
NAMES = ("ink", "halftone", "neon", "blueprint", "linocut", "watercolour")
TEXTURED = ("ink", "halftone", "linocut")
HELD_OUT = 11_000_000

Drawn = Callable[[str, bool], list[Image.Image]]
Gain = Callable[[str | list[Image.Image], str], float]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The pictures are too small to share out: two threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def drawn() -> Iterator[Drawn]:
    """drawn(style, seen): COUNT pictures; `seen` ones show the first six things, the others the rest."""
    sys.path.insert(0, str(ROOT / "sample_data" / "make"))
    from scenes import SETTINGS, THINGS, draw_scene, random_scene, reduce
    from styles import SAMPLES

    @cache
    def pictures(style: str, seen: bool) -> list[Image.Image]:
        things = tuple(THINGS)[:6] if seen else tuple(THINGS)[6:]
        found = []
        for k in range(COUNT):
            wanted = SETTINGS[k % len(SETTINGS)]  # the settings in turn: twelve pictures are few for chance to even out
            seeds = range(HELD_OUT + 100_000 * seen + 1000 * k, HELD_OUT + 100_000 * seen + 1000 * (k + 1))
            seed = next(s for s in seeds if random_scene(s, things).setting == wanted)
            scene = draw_scene(random_scene(seed, things))
            found.append(SAMPLES[style](scene, np.random.default_rng(seed)) if style else reduce(scene))
        return found

    yield pictures
    sys.path.remove(str(ROOT / "sample_data" / "make"))


@pytest.fixture(scope="module")
def gain(drawn: Drawn) -> Gain:
    """gain(given, style): style_gain with `given` (a drawn style, or pictures) for the adapter, plain as base."""

    @cache
    def known(name: str, seen: bool) -> Statistics:
        return describe(pictures=drawn(name, seen))[0]

    def found(given: str | list[Image.Image], style: str) -> float:
        there = known(given, False) if isinstance(given, str) else describe(pictures=given)[0]
        return gained(parts(there, known(style, True)), parts(known("", False), known(style, True)))

    return found


def noise(count: int, side: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def recoloured(pictures: list[Image.Image], like: list[Image.Image]) -> list[Image.Image]:
    """Each picture's mean colour moved to that of the style."""
    wanted = np.mean([np.asarray(picture) for picture in like], axis=(0, 1, 2))
    arrays = [np.asarray(picture, dtype=float) for picture in pictures]
    return [Image.fromarray(np.clip(a - a.mean((0, 1)) + wanted, 0, 255).astype(np.uint8)) for a in arrays]


@pytest.mark.parametrize("style", NAMES)
def test_a_style_on_other_objects_is_the_same_style(gain: Gain, style: str) -> None:
    """Of twelve pictures chance and content leave some distance: see the ceiling in docs/methods.md."""
    assert gain(style, style) >= 0.7


def test_no_change_gains_nothing(drawn: Drawn) -> None:
    assert style_gain(drawn("", False), drawn("", False), drawn("ink", True)) == 0


def test_gain_is_the_share_of_the_distance_that_is_gone(drawn: Drawn, gain: Gain) -> None:
    assert style_gain(drawn("neon", False), drawn("", False), drawn("ink", True)) == gain("neon", "ink")


@pytest.mark.parametrize("style", NAMES)
def test_half_of_the_pictures_in_style_is_about_half_a_gain(drawn: Drawn, gain: Gain, style: str) -> None:
    mixed = drawn("", False)[: COUNT // 2] + drawn(style, False)[COUNT // 2 :]
    assert 0.3 <= gain(mixed, style) <= 0.7


@pytest.mark.parametrize("style", NAMES)
def test_another_style_is_no_gain(gain: Gain, style: str) -> None:
    gains = {other: gain(other, style) for other in NAMES if other != style}
    assert max(gains.values()) < 0.4, gains


@pytest.mark.parametrize("style", TEXTURED)
def test_the_right_paint_is_not_the_style(drawn: Drawn, gain: Gain, style: str) -> None:
    assert gain(recoloured(drawn("", False), drawn(style, True)), style) < 0.2


@pytest.mark.parametrize("style", TEXTURED)
def test_a_faded_style_lies_between(drawn: Drawn, gain: Gain, style: str) -> None:
    plain, styled = drawn("", False), drawn(style, False)
    gains = [
        gain([Image.blend(p, q, share) for p, q in zip(plain, styled, strict=True)], style)
        for share in (0, 0.5, 0.75, 1)
    ]
    assert gains == sorted(gains)
    assert 0.1 < gains[1] < gains[2] < 0.85


def test_objects_are_not_style(drawn: Drawn) -> None:
    nearest = min(distance(drawn("", False), drawn(style, True)) for style in NAMES)
    assert distance(drawn("", False), drawn("", True)) < 0.5 * nearest


def test_distance_is_symmetric_and_blind_to_order(drawn: Drawn) -> None:
    a, b = drawn("ink", True), drawn("neon", True)
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-9)
    assert distance(a[::-1], b) == pytest.approx(distance(a, b), rel=1e-9)


def test_pictures_and_tensors_are_the_same(drawn: Drawn) -> None:
    a, b = drawn("ink", True), drawn("", True)
    as_tensor = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in a])
    assert distance(as_tensor, b) == distance(a, b)


def test_chance_alone_is_no_distance_on_average() -> None:
    """Two draws of one population: the plain difference of means would never average 0."""
    generator = torch.Generator().manual_seed(3)
    draws = [torch.randn(2, 6, 4, 5, generator=generator) for _ in range(400)]
    found = torch.tensor([unbiased(a, b) for a, b in draws])
    biased = torch.tensor([float((a.mean(0) - b.mean(0)).square().sum()) for a, b in draws])
    assert abs(found.mean()) < 4 * found.std() / math.sqrt(len(found))
    assert biased.mean() > 6


def test_unbiased_finds_a_true_difference() -> None:
    exact = torch.ones(3, 4)
    assert unbiased(exact * 2, exact) == pytest.approx(4.0)


def test_parts_add_up_to_the_distance() -> None:
    a, b = noise(3, 40, 0), noise(4, 64, 1) // 2
    found = parts(*describe(a=a, b=b))
    assert distance(a, b) == pytest.approx(math.sqrt(0.75 * found.texture + 0.25 * found.colour))
    assert Parts(texture=-1.0, colour=0.5).distance == 0
    assert Parts(texture=2.0, colour=2.0).total == pytest.approx(2.0)


def test_filters_are_the_same_everywhere_and_blind_to_flat_colour() -> None:
    assert filters().shape[0] == FILTERS
    assert filters()[0, 0, 0, :3].tolist() == pytest.approx(FIRST_VALUES, abs=1e-6)
    assert filters().sum((2, 3)).abs().max() < 1e-5
    assert filters().flatten(1).norm(dim=1).tolist() == pytest.approx([1.0] * FILTERS, abs=1e-5)
    flat = torch.full((3, 64, 64), 0.7)
    assert texture(flat).abs().max() < 1e-5
    assert colour(flat)[0].tolist() == pytest.approx([0.7] * 3)
    assert colour(flat)[1:].abs().max() < 1e-5


def test_texture_is_linear_in_contrast() -> None:
    picture = noise(1, 64, 5)[0].float() / 255
    assert torch.allclose(texture(picture * 0.5), texture(picture) * 0.5, atol=1e-5)


def test_root_is_the_root() -> None:
    half = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).double()
    matrices = half @ half.mT  # of rank 3
    assert torch.allclose(root(matrices) @ root(matrices), matrices)


def test_no_gain_where_the_base_is_there_already() -> None:
    same = noise(4, 64, 0)
    assert math.isnan(style_gain(noise(4, 64, 1), same, same))


def test_every_fault_of_the_sets_is_named() -> None:
    with pytest.raises(StyloraError) as caught:
        distance(noise(1, 64, 0), [Image.new("RGB", (64, 64)), Image.new("RGB", (64, 20))])
    assert caught.value.faults == (
        "first set: got 1 picture(s), wanted 2 or more",
        "second set, picture 1: got 64 x 20, wanted sides of 32 or more",
    )
    with pytest.raises(StyloraError, match="uint8"):
        distance(torch.zeros(2, 3, 64, 64), noise(2, 64, 0))


FIRST_VALUES = [-0.079557017, 0.036374576, -0.224578425]
