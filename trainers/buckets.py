"""Picture sizes -> buckets -> how to resize and crop each picture. Pure: numbers in, numbers out.

A bucket is a size all pictures of a micro-batch share. Try it:
`python -c "from trainers.buckets import place; print(place((1200, 800), resolution=512, multiple=64))"`
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from trainers.errors import ConfigError

Size = tuple[int, int]  # (width, height) in pixels

MAX_ASPECT = 2  # longer pictures are cropped to 2:1


@dataclass(frozen=True)
class Placement:
    """How a picture gets into its bucket: resize it to `resize`, then cut `bucket` out at offset `crop`."""

    bucket: Size
    resize: Size
    crop: tuple[int, int]  # (x, y) of the upper left corner, in the resized picture


def bucket_sizes(resolution: int, multiple: int) -> list[Size]:
    """All buckets: area <= resolution^2, sides multiples of `multiple`, aspect up to 2:1; sorted."""
    if multiple < 1 or resolution < multiple:
        fault = f"resolution: got {resolution}, wanted at least {multiple} (sides are multiples of {multiple})"
        raise ConfigError("No bucket fits this resolution", [fault], f"set the resolution to {multiple} or more")
    area, square = resolution * resolution, resolution // multiple * multiple
    sizes = {(square, square)}
    for short in range(multiple, square + 1, multiple):
        long = min(area // short, MAX_ASPECT * short) // multiple * multiple
        sizes |= {(short, long), (long, short)}
    return sorted(size for size in sizes if not _inside_another(size, sizes))


def place(size: Size, resolution: int, multiple: int) -> Placement:
    """The bucket nearest in aspect (least |log ratio|), the picture resized to cover it, the middle cut out."""
    width, height = size
    if width < 1 or height < 1:
        raise ValueError(f"a picture has at least 1 x 1 pixels, got {width} x {height}")
    bucket = min(_buckets(resolution, multiple), key=lambda one: (_stretch(size, one), -one[0] * one[1], one))
    resize = _cover(size, bucket)
    return Placement(bucket, resize, ((resize[0] - bucket[0]) // 2, (resize[1] - bucket[1]) // 2))


def plan(sizes: Iterable[Size], resolution: int, multiple: int) -> list[Placement]:
    """One placement for each picture size, in the same order."""
    return [place(size, resolution, multiple) for size in sizes]


@lru_cache(maxsize=8)
def _buckets(resolution: int, multiple: int) -> tuple[Size, ...]:
    return tuple(bucket_sizes(resolution, multiple))


def _inside_another(size: Size, sizes: set[Size]) -> bool:
    """Whether a bucket of the very same aspect is larger: then this one would only lose detail."""
    return any(other[0] * size[1] == other[1] * size[0] and other[0] > size[0] for other in sizes)


def _stretch(size: Size, bucket: Size) -> Fraction:
    """exp |log ratio of the aspects|, exactly: no rounding decides between two buckets."""
    across, down = size[0] * bucket[1], size[1] * bucket[0]
    return Fraction(max(across, down), min(across, down))


def _cover(size: Size, bucket: Size) -> Size:
    """The least size of the picture's aspect that covers the bucket; one side fits exactly."""
    (width, height), (bucket_width, bucket_height) = size, bucket
    if bucket_width * height >= bucket_height * width:
        return bucket_width, max(bucket_height, _divide(height * bucket_width, width))
    return max(bucket_width, _divide(width * bucket_height, height)), bucket_height


def _divide(numerator: int, denominator: int) -> int:
    """Division rounded to nearest, halves up; integers, so the same everywhere."""
    return (2 * numerator + denominator) // (2 * denominator)
