"""Buckets: bounds that hold for every size, and placements that never leave the picture."""

from __future__ import annotations

import random

import pytest

from trainers.buckets import bucket_sizes, place, plan
from trainers.errors import ConfigError

SHAPES = [(64, 8), (96, 8), (100, 64), (512, 64), (768, 64), (1024, 64), (8, 8)]
SIZES = [(random.Random(n).randint(1, 3000), random.Random(n + 999).randint(1, 3000)) for n in range(200)]


@pytest.mark.parametrize(("resolution", "multiple"), SHAPES)
def test_buckets_keep_area_multiple_and_aspect(resolution: int, multiple: int) -> None:
    sizes = bucket_sizes(resolution, multiple)
    assert all(width * height <= resolution**2 for width, height in sizes)
    assert all(side % multiple == 0 and side > 0 for size in sizes for side in size)
    assert all(max(size) <= 2 * min(size) for size in sizes)
    assert {(height, width) for width, height in sizes} == set(sizes), "landscape and portrait mirror each other"
    assert len(set(sizes)) == len(sizes)
    assert sizes == sorted(sizes)


def test_known_buckets_of_sd15() -> None:
    wanted = [(320, 640), (384, 640), (448, 576), (512, 512), (576, 448), (640, 320), (640, 384)]
    assert bucket_sizes(512, 64) == wanted


def test_a_resolution_under_the_multiple_is_refused() -> None:
    with pytest.raises(ConfigError, match="got 32, wanted at least 64"):
        bucket_sizes(32, 64)


@pytest.mark.parametrize(("resolution", "multiple"), SHAPES)
def test_the_crop_lies_inside_the_resized_picture_and_touches_two_of_its_sides(resolution: int, multiple: int) -> None:
    for placement in plan(SIZES, resolution, multiple):
        (x, y), bucket, resize = placement.crop, placement.bucket, placement.resize
        assert x >= 0
        assert y >= 0
        assert x + bucket[0] <= resize[0]
        assert y + bucket[1] <= resize[1]
        assert bucket[0] == resize[0] or bucket[1] == resize[1], "nothing is resized to more than it needs"
        assert resize[0] - bucket[0] - 2 * x in (0, 1), "centred"
        assert resize[1] - bucket[1] - 2 * y in (0, 1), "centred"
        assert bucket in bucket_sizes(resolution, multiple)


def test_resizing_keeps_the_aspect_up_to_rounding() -> None:
    for (width, height), placement in zip(SIZES, plan(SIZES, 512, 64), strict=True):
        scale = max(placement.bucket[0] / width, placement.bucket[1] / height)
        assert placement.resize == pytest.approx((width * scale, height * scale), abs=0.5 + 1e-6)


@pytest.mark.parametrize(("resolution", "multiple"), SHAPES)
@pytest.mark.parametrize("side", [1, 63, 64, 500, 4000])
def test_a_square_goes_into_the_square_bucket_uncropped(side: int, resolution: int, multiple: int) -> None:
    placement, square = place((side, side), resolution, multiple), resolution // multiple * multiple
    assert placement.bucket == placement.resize == (square, square)
    assert placement.crop == (0, 0)


def test_a_picture_of_a_buckets_own_size_is_left_as_it_is() -> None:
    for size in bucket_sizes(512, 64):
        placement = place(size, 512, 64)
        assert placement.bucket == placement.resize == size
        assert placement.crop == (0, 0)


def test_turning_the_picture_turns_its_placement() -> None:
    for width, height in SIZES:
        upright, turned = place((width, height), 512, 64), place((height, width), 512, 64)
        assert turned.bucket == upright.bucket[::-1]
        assert turned.crop == upright.crop[::-1]


def test_longer_than_two_to_one_is_cropped_and_the_rest_is_deterministic() -> None:
    assert place((3000, 300), 512, 64).bucket == (640, 320)
    assert plan(SIZES, 512, 64) == [place(size, 512, 64) for size in SIZES]
