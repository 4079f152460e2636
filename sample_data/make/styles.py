"""The looks a scene can be drawn in: three named ones the base learns, six sample ones it never sees.

Each style is a pure function: scene at CANVAS size + a random generator -> picture of SIZE. Textures are coarse
(4-6 finished pixels a period) because a 64-pixel picture has no room for fine ones.
`python sample_data/make/styles.py sheet.png` draws them all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter
from scenes import CANVAS, SIZE, THINGS, draw_scene, random_scene, reduce, sheet

Array = np.ndarray
PIXEL = CANVAS // SIZE  # canvas pixels in one finished pixel
GRID = np.mgrid[0:CANVAS, 0:CANVAS].astype(np.float32) / PIXEL  # (2, H, W), in finished pixels


def floats(image: Image.Image) -> Array:
    """(H, W, 3) in 0..1."""
    return np.asarray(image.convert("RGB"), dtype=np.float32) / 255


def picture(values: Array) -> Image.Image:
    return Image.fromarray((np.clip(values, 0, 1) * 255).astype(np.uint8))


def tone(image: Image.Image) -> Array:
    """Luminance, contrast stretched to 0..1, (H, W)."""
    grey = floats(image) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    low, high = np.percentile(grey, (2, 98))
    return np.clip((grey - low) / max(high - low, 1e-3), 0, 1)


def edges(image: Image.Image, width: float) -> Array:
    """Contour strength 0..1 (H, W): colour gradient of the lightly smoothed picture; `width` in finished pixels."""
    smooth = floats(image.filter(ImageFilter.GaussianBlur(2)))
    dy, dx = np.gradient(smooth, axis=(0, 1))
    strength = np.clip(np.sqrt((dx**2 + dy**2).sum(-1)) * 9 - 0.3, 0, 1)
    wide = (
        picture(np.repeat(strength[..., None], 3, -1))
        .convert("L")
        .filter(ImageFilter.MaxFilter(int(width * PIXEL) | 1))
    )
    return np.asarray(wide, dtype=np.float32) / 255


def noise(rng: np.random.Generator, scale: int) -> Array:
    """Smooth noise, standard deviation about 1, its blobs about `scale` finished pixels wide."""
    cells = max(2, SIZE // scale)
    field = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype(np.float32))
    return np.asarray(field.resize((CANVAS, CANVAS), Image.Resampling.BICUBIC))


def mix(under: Array | tuple[float, ...], over: Array | tuple[float, ...], share: Array) -> Array:
    """under where share is 0, over where it is 1; colours (3,) or pictures (H, W, 3), share (H, W)."""
    share = share[..., None]
    return np.asarray(under, dtype=np.float32) * (1 - share) + np.asarray(over, dtype=np.float32) * share


def stripes(angle: float, period: float, shift: float = 0.0) -> Array:
    """A ramp 0..1..0 across lines at `angle` degrees, `period` finished pixels apart."""
    a = np.deg2rad(angle)
    phase = (GRID[1] * np.sin(a) + GRID[0] * np.cos(a)) / period + shift
    return np.abs((phase % 1.0) * 2 - 1)


# --- styles the base knows by name -------------------------------------------------------------------------------


def pixel_art(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Blocks of 4 x 4 pixels, few colours."""
    small = image.resize((SIZE // 4, SIZE // 4), Image.Resampling.BOX)
    return picture(np.round(floats(small) * 7) / 7).resize((SIZE, SIZE), Image.Resampling.NEAREST)


def sepia(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """An old brown photograph."""
    return reduce(picture(mix((0.16, 0.09, 0.05), (0.98, 0.86, 0.66), tone(image))))


def pencil_sketch(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Grey contours and a soft tone on white paper."""
    paper = 0.97 - 0.18 * (1 - tone(image))
    return reduce(picture(mix(np.repeat(paper[..., None], 3, -1), (0.25, 0.25, 0.28), edges(image, 0.8))))


# --- the sample styles: what adapters are taught -----------------------------------------------------------------


def ink(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Pen hatching: diagonal lines that thicken with the shade, crossed in the darks, strong contours."""
    dark = 1 - tone(image)
    first = stripes(45, 5.0) < np.clip(dark * 0.75 - 0.08, 0, 0.4)
    second = stripes(-45, 5.0) < np.clip(dark * 1.0 - 0.75, 0, 0.13)
    hatched = np.maximum(first, second) * (1 - edges(image, 2.6))  # contours keep a rim of bare paper
    inked = np.maximum(hatched, edges(image, 0.9))
    return reduce(picture(mix((0.97, 0.94, 0.86), (0.11, 0.10, 0.13), inked)))


def halftone(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Newspaper print: round dots on cream, their size the tone, coloured by what lies under them."""
    dark = 1 - tone(image)
    u, v = GRID / 5.0
    radius = np.sqrt(((u % 1) - 0.5) ** 2 + ((v % 1) - 0.5) ** 2)
    dots = radius < np.sqrt(np.clip(dark * 0.9 + 0.04, 0, 1)) * 0.66
    ink_colour = floats(image.filter(ImageFilter.GaussianBlur(4))) * 0.45
    return reduce(picture(mix((1.0, 0.96, 0.84), ink_colour, dots.astype(np.float32))))


def neon(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Glowing tubes in the dark, their colour the object's own made vivid."""
    vivid = floats(image.filter(ImageFilter.GaussianBlur(6)))
    vivid = (vivid - vivid.min(-1, keepdims=True)) / (np.ptp(vivid, axis=-1, keepdims=True) + 0.08)
    line = edges(image, 1.0)
    glow = (
        np.asarray(picture(np.repeat(line[..., None], 3, -1)).convert("L").filter(ImageFilter.GaussianBlur(10))) / 255
    )
    ground = np.array([0.05, 0.02, 0.10]) + 0.10 * vivid
    lamp = np.clip(vivid * 0.8 + 0.35, 0, 1)
    return reduce(picture(ground + lamp * (line * 0.9 + glow * 0.55)[..., None]))


def blueprint(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """White contours on blue paper with a drawing grid."""
    paper = np.broadcast_to(np.array([0.10, 0.27, 0.60], dtype=np.float32), (CANVAS, CANVAS, 3))
    grid = np.maximum(stripes(0, 8.0) < 0.12, stripes(90, 8.0) < 0.12) * 0.3
    drawn = np.maximum(edges(image, 0.9), 0.14 * tone(image))
    return reduce(picture(mix(mix(paper, (0.62, 0.78, 0.98), grid), (0.95, 0.98, 1.0), drawn)))


def linocut(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Relief print in one rust ink: flat darks, wavy gouge marks where the tone is between, contours in a bare rim."""
    dark = 1 - tone(image)
    wave = np.abs((((GRID[0] + 1.4 * np.sin(GRID[1] / 5.0)) / 6.0) % 1.0) * 2 - 1)
    between = np.where(dark < 0.22, 0.0, (wave < dark * 0.9) * (edges(image, 3.0) < 0.4))
    cut = edges(image, 1.0) > 0.45
    printed = np.where(dark > 0.72, ~cut, np.maximum(between, cut))
    return reduce(picture(mix((0.96, 0.90, 0.80), (0.58, 0.14, 0.09), printed.astype(np.float32))))


def watercolour(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Pale washes that bleed at the edges, darker rims, blotches, white paper at the border."""
    sway = np.stack([noise(rng, 7), noise(rng, 7)]) * 5.0
    rows, columns = np.clip(np.round(GRID * PIXEL + sway), 0, CANVAS - 1).astype(int)
    wash = floats(image.filter(ImageFilter.MedianFilter(9)))[rows, columns]
    wash = floats(picture(wash).filter(ImageFilter.GaussianBlur(4)))
    wash = 1 - (1 - wash) * (0.72 + 0.16 * noise(rng, 8))[..., None]
    wash = wash * (1 - 0.28 * edges(picture(wash), 1.2))[..., None]
    inset = np.minimum(np.minimum(GRID[0], SIZE - GRID[0]), np.minimum(GRID[1], SIZE - GRID[1])) + 1.2 * noise(rng, 6)
    return reduce(picture(mix((0.985, 0.975, 0.95), wash * 0.92 + 0.08, np.clip((inset - 3.0) / 1.5, 0, 1))))


Style = Callable[[Image.Image, np.random.Generator], Image.Image]
KNOWN: dict[str, Style] = {"pixel art": pixel_art, "sepia": sepia, "pencil sketch": pencil_sketch}
SAMPLES: dict[str, Style] = {f.__name__: f for f in (ink, halftone, neon, blueprint, linocut, watercolour)}


def draw(seed: int, style: Style | None = None, things: tuple[str, ...] = tuple(THINGS)) -> tuple[Image.Image, str]:
    """A random scene in a style (None: plain) and its caption, without the style's name."""
    scene = random_scene(seed, things)
    image = draw_scene(scene)
    drawn = style(image, np.random.default_rng(seed + 1)) if style else reduce(image)
    return drawn.convert("RGB"), scene.caption


if __name__ == "__main__":
    rows = [
        [draw(7 * k, style, (thing,))[0] for k, thing in enumerate(THINGS)]
        for style in (None, *KNOWN.values(), *SAMPLES.values())
    ]
    sheet([p for row in rows for p in row], 12).save(sys.argv[1])
