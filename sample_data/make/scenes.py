"""Draw small illustrated scenes: one object, one colour, one setting, and the caption that says so.

The pictures that the embedded base is trained on. Everything is a pure function of the seed; try it with
`python sample_data/make/scenes.py sheet.png`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIZE = 64  # side of a finished picture, in pixels
CANVAS = 256  # drawn at four times the size, then reduced: smooth edges

Colour = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, Colour] = {
    "red": (214, 40, 44),
    "orange": (246, 132, 30),
    "yellow": (250, 214, 54),
    "green": (56, 158, 70),
    "blue": (46, 92, 208),
    "purple": (132, 62, 178),
    "pink": (246, 146, 190),
    "white": (246, 245, 240),
}
SETTINGS = ("by the sea", "in a meadow", "in the snow", "in the desert", "at night")
DARK: Colour = (38, 34, 44)
CREAM: Colour = (250, 238, 206)
WOOD: Colour = (122, 82, 50)
GLASS: Colour = (206, 232, 246)


@dataclass(frozen=True)
class Scene:
    """What a picture shows; `x`, `y` (centre) and `size` (half the object's height) are shares of the picture."""

    thing: str
    colour: str
    setting: str
    x: float
    y: float
    size: float
    light: float  # 0.85 .. 1.12, brightness of the whole picture
    warmth: float  # -1 .. 1, cold to warm light
    mirrored: bool
    seed: int  # of the small details: waves, stars, hills

    @property
    def caption(self) -> str:
        """`an orange boat at night`."""
        article = "an" if self.colour[0] in "aeiou" else "a"
        return f"{article} {self.colour} {self.thing} {self.setting}"


def shade(colour: Colour, factor: float) -> Colour:
    """The colour made darker (< 1) or lighter (> 1)."""
    if factor <= 1:
        return tuple(int(c * factor) for c in colour)  # type: ignore[return-value]
    return tuple(int(c + (255 - c) * (factor - 1)) for c in colour)  # type: ignore[return-value]


class Pen:
    """Draws in a box from -1 to 1 around (x, y), y downwards, whatever the picture's size."""

    def __init__(self, image: Image.Image, scene: Scene) -> None:
        self.draw = ImageDraw.Draw(image)
        self.x, self.y, self.r = scene.x * CANVAS, scene.y * CANVAS, scene.size * CANVAS
        self.flip = -1 if scene.mirrored else 1

    def at(self, x: float, y: float) -> Point:
        return self.x + self.flip * x * self.r, self.y + y * self.r

    def poly(self, points: list[Point], fill: Colour) -> None:
        self.draw.polygon([self.at(*p) for p in points], fill=fill)

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        cx, cy = self.at(x, y)
        self.draw.ellipse((cx - rx * self.r, cy - ry * self.r, cx + rx * self.r, cy + ry * self.r), fill=fill)

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: Colour) -> None:
        self.poly([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill)

    def line(self, points: list[Point], fill: Colour, width: float) -> None:
        self.draw.line([self.at(*p) for p in points], fill=fill, width=max(1, int(width * self.r)), joint="curve")


def house(pen: Pen, c: Colour) -> None:
    pen.rect(0.32, -0.95, 0.55, -0.3, shade(c, 0.5))
    pen.rect(-0.72, -0.2, 0.72, 0.98, c)
    pen.poly([(-0.98, -0.15), (0, -0.98), (0.98, -0.15)], shade(c, 0.6))
    pen.rect(-0.16, 0.38, 0.2, 0.98, WOOD)
    for x in (-0.56, 0.34):
        pen.rect(x, 0.05, x + 0.24, 0.36, CREAM)


def tree(pen: Pen, c: Colour) -> None:
    pen.rect(-0.14, 0.2, 0.14, 1.0, WOOD)
    pen.oval(-0.34, -0.1, 0.48, 0.46, shade(c, 0.8))
    pen.oval(0.36, -0.06, 0.46, 0.44, shade(c, 0.9))
    pen.oval(0.0, -0.46, 0.56, 0.52, c)
    pen.oval(-0.12, -0.58, 0.24, 0.2, shade(c, 1.3))


def fish(pen: Pen, c: Colour) -> None:
    pen.poly([(0.5, 0), (1.08, -0.5), (0.94, 0), (1.08, 0.5)], shade(c, 0.75))
    pen.poly([(-0.25, -0.4), (0.3, -0.82), (0.35, -0.25)], shade(c, 0.75))
    pen.oval(-0.18, 0, 0.82, 0.52, c)
    pen.oval(-0.2, 0.2, 0.5, 0.26, shade(c, 1.35))
    pen.oval(-0.6, -0.12, 0.16, 0.16, (255, 255, 255))
    pen.oval(-0.62, -0.12, 0.08, 0.08, DARK)


def boat(pen: Pen, c: Colour) -> None:
    pen.rect(-0.05, -0.98, 0.05, 0.5, WOOD)
    pen.poly([(0.1, -0.9), (0.1, 0.3), (0.82, 0.3)], shade(c, 1.55))
    pen.poly([(-0.1, -0.7), (-0.1, 0.3), (-0.66, 0.3)], shade(c, 1.3))
    pen.poly([(-1.0, 0.42), (1.0, 0.42), (0.66, 0.95), (-0.66, 0.95)], c)
    pen.poly([(-0.84, 0.66), (0.84, 0.66), (0.66, 0.95), (-0.66, 0.95)], shade(c, 0.7))


def mushroom(pen: Pen, c: Colour) -> None:
    pen.poly([(-0.24, 0.0), (0.24, 0.0), (0.34, 1.0), (-0.34, 1.0)], CREAM)
    dome = [(math.cos(a) * 0.98, 0.1 - math.sin(a) * 0.98) for a in np.linspace(0, math.pi, 24)]
    pen.poly(dome, c)
    for x, y, r in ((-0.5, -0.2, 0.15), (0.08, -0.5, 0.18), (0.56, -0.14, 0.13)):
        pen.oval(x, y, r, r * 0.85, (255, 255, 255))


def cat(pen: Pen, c: Colour) -> None:
    for side in (-1, 1):
        pen.poly([(side * 0.82, -0.98), (side * 0.12, -0.5), (side * 0.78, 0.0)], c)
        pen.poly([(side * 0.7, -0.74), (side * 0.36, -0.5), (side * 0.68, -0.26)], (240, 170, 170))
    pen.oval(0, 0.15, 0.86, 0.78, c)
    for side in (-1, 1):
        pen.oval(side * 0.34, 0.02, 0.16, 0.2, (255, 255, 255))
        pen.oval(side * 0.34, 0.04, 0.09, 0.16, DARK)
        pen.line([(side * 0.3, 0.42), (side * 0.98, 0.34)], DARK, 0.05)
    pen.poly([(-0.12, 0.3), (0.12, 0.3), (0, 0.44)], (220, 90, 110))


def star(pen: Pen, c: Colour) -> None:
    def points(scale: float) -> list[Point]:
        angles = [math.pi * k / 5 - math.pi / 2 for k in range(10)]
        radii = [scale * (1.05 if k % 2 == 0 else 0.45) for k in range(10)]
        return [(r * math.cos(a), 0.05 + r * math.sin(a)) for a, r in zip(angles, radii, strict=True)]

    pen.poly(points(1.0), c)
    pen.poly(points(0.5), shade(c, 1.4))


def flower(pen: Pen, c: Colour) -> None:
    pen.rect(-0.06, 0.0, 0.06, 1.0, (46, 124, 56))
    pen.poly([(0.0, 0.82), (0.52, 0.4), (0.36, 0.8)], (60, 150, 66))
    for k in range(6):
        a = k * math.pi / 3
        pen.oval(0.42 * math.cos(a), -0.36 + 0.42 * math.sin(a), 0.29, 0.29, c if k % 2 else shade(c, 0.88))
    pen.oval(0, -0.36, 0.24, 0.24, (252, 220, 90) if c != COLOURS["yellow"] else (170, 96, 40))


def car(pen: Pen, c: Colour) -> None:
    pen.poly([(-0.55, 0.0), (-0.34, -0.5), (0.32, -0.5), (0.62, 0.0)], shade(c, 0.8))
    pen.poly([(-0.4, -0.04), (-0.26, -0.38), (-0.04, -0.38), (-0.04, -0.04)], GLASS)
    pen.poly([(0.06, -0.04), (0.06, -0.38), (0.26, -0.38), (0.46, -0.04)], GLASS)
    pen.poly([(-1.05, 0.0), (0.98, -0.04), (1.08, 0.2), (1.08, 0.5), (-1.08, 0.5)], c)
    for x in (-0.56, 0.58):
        pen.oval(x, 0.5, 0.28, 0.28, DARK)
        pen.oval(x, 0.5, 0.12, 0.12, (200, 200, 204))


def cup(pen: Pen, c: Colour) -> None:
    pen.oval(0.66, 0.1, 0.42, 0.46, shade(c, 0.8))
    pen.oval(0.66, 0.1, 0.22, 0.26, (128, 128, 128))
    pen.poly([(-0.74, -0.62), (0.64, -0.62), (0.5, 0.95), (-0.58, 0.95)], c)
    pen.oval(-0.05, -0.62, 0.69, 0.2, shade(c, 0.7))
    pen.oval(-0.05, -0.58, 0.54, 0.13, (92, 54, 36))
    pen.rect(-0.5, -0.2, -0.34, 0.7, shade(c, 1.35))


def balloon(pen: Pen, c: Colour) -> None:
    pen.line([(-0.4, 0.3), (-0.17, 0.74)], DARK, 0.05)
    pen.line([(0.4, 0.3), (0.17, 0.74)], DARK, 0.05)
    pen.poly([(-0.62, 0.05), (0.62, 0.05), (0.22, 0.56), (-0.22, 0.56)], shade(c, 0.8))
    pen.oval(0, -0.28, 0.76, 0.72, c)
    pen.oval(0, -0.28, 0.42, 0.72, shade(c, 1.4))
    pen.oval(0, -0.28, 0.16, 0.72, c)
    pen.rect(-0.22, 0.72, 0.22, 1.02, WOOD)


def bird(pen: Pen, c: Colour) -> None:
    pen.line([(-0.1, 0.5), (-0.14, 0.98)], (220, 130, 30), 0.07)
    pen.line([(0.2, 0.5), (0.2, 0.98)], (220, 130, 30), 0.07)
    pen.poly([(0.5, 0.1), (1.12, -0.16), (1.04, 0.26)], shade(c, 0.7))
    pen.oval(0.1, 0.14, 0.66, 0.5, c)
    pen.oval(-0.46, -0.36, 0.38, 0.36, c)
    pen.poly([(-0.78, -0.46), (-1.14, -0.28), (-0.78, -0.2)], (246, 160, 40))
    pen.poly([(-0.1, 0.02), (0.6, -0.02), (0.24, 0.48)], shade(c, 0.66))
    pen.oval(-0.54, -0.42, 0.09, 0.09, DARK)


THINGS: dict[str, Callable[[Pen, Colour], None]] = {
    f.__name__: f for f in (house, tree, fish, boat, mushroom, cat, star, flower, car, cup, balloon, bird)
}


def gradient(top: Colour, bottom: Colour) -> Image.Image:
    """A vertical run of colour over the whole canvas."""
    rows = np.linspace(0, 1, CANVAS)[:, None, None]
    blend = np.array(top) * (1 - rows) + np.array(bottom) * rows
    return Image.fromarray(np.broadcast_to(blend, (CANVAS, CANVAS, 3)).astype(np.uint8))


def hills(draw: ImageDraw.ImageDraw, rng: np.random.Generator, level: float, swell: float, fill: Colour) -> None:
    """Ground from `level` (share of the height) down, its edge a slow wave."""
    phase, waves = rng.uniform(0, 6.28), rng.uniform(0.8, 1.8)
    xs = np.linspace(0, CANVAS, 33)
    edge = [(x, CANVAS * (level + swell * math.sin(phase + waves * 6.28 * x / CANVAS))) for x in xs]
    draw.polygon([*edge, (CANVAS, CANVAS), (0, CANVAS)], fill=fill)


def specks(draw: ImageDraw.ImageDraw, rng: np.random.Generator, count: int, floor: float, fill: Colour) -> None:
    for x, y, r in zip(rng.random(count), rng.random(count) * floor, rng.uniform(2.5, 4.5, count), strict=True):
        draw.ellipse((x * CANVAS - r, y * CANVAS - r, x * CANVAS + r, y * CANVAS + r), fill=fill)


def sun(draw: ImageDraw.ImageDraw, rng: np.random.Generator, fill: Colour) -> None:
    x, y, r = rng.choice([0.14, 0.86]) * CANVAS, 0.15 * CANVAS, rng.uniform(0.07, 0.1) * CANVAS
    draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def backdrop(scene: Scene) -> Image.Image:
    """The setting without its object, CANVAS x CANVAS."""
    rng = np.random.default_rng(scene.seed)
    ground = rng.uniform(0.6, 0.72)
    if scene.setting == "by the sea":
        image = gradient((112, 188, 236), (206, 236, 250))
        draw = ImageDraw.Draw(image)
        sun(draw, rng, (255, 244, 190))
        draw.rectangle((0, CANVAS * (ground - 0.14), CANVAS, CANVAS), fill=(34, 112, 176))
        for y in (ground - 0.08, ground + 0.0):
            x = rng.uniform(-0.1, 0.5) * CANVAS
            draw.rectangle((x, y * CANVAS, x + 0.4 * CANVAS, y * CANVAS + 5), fill=(120, 186, 226))
        hills(draw, rng, ground + 0.1, 0.01, (238, 212, 156))
    elif scene.setting == "in a meadow":
        image = gradient((134, 202, 244), (224, 244, 252))
        draw = ImageDraw.Draw(image)
        sun(draw, rng, (255, 236, 140))
        hills(draw, rng, ground - 0.08, 0.05, (142, 196, 104))
        hills(draw, rng, ground + 0.06, 0.03, (104, 172, 76))
    elif scene.setting == "in the snow":
        image = gradient((168, 182, 204), (220, 226, 236))
        draw = ImageDraw.Draw(image)
        hills(draw, rng, ground - 0.06, 0.05, (200, 212, 228))
        hills(draw, rng, ground + 0.06, 0.02, (240, 244, 250))
        specks(draw, rng, 26, 1.0, (255, 255, 255))
    elif scene.setting == "in the desert":
        image = gradient((246, 184, 112), (254, 232, 180))
        draw = ImageDraw.Draw(image)
        sun(draw, rng, (255, 250, 224))
        hills(draw, rng, ground - 0.05, 0.05, (222, 160, 92))
        hills(draw, rng, ground + 0.08, 0.03, (196, 130, 72))
    else:
        image = gradient((12, 14, 46), (44, 48, 98))
        draw = ImageDraw.Draw(image)
        specks(draw, rng, 22, 0.55, (250, 246, 214))
        hills(draw, rng, ground, 0.03, (24, 38, 56))
    return image


def lit(image: Image.Image, scene: Scene) -> Image.Image:
    """The light of the hour: brightness and warmth over the whole picture."""
    gain = scene.light * (1 + 0.07 * scene.warmth * np.array([1.0, 0.0, -1.0]))
    return Image.fromarray(np.clip(np.asarray(image, dtype=np.float32) * gain, 0, 255).astype(np.uint8))


def draw_scene(scene: Scene) -> Image.Image:
    """The scene at CANVAS size: backdrop, shadow, outlined object, light."""
    image = backdrop(scene)
    layer = Image.new("RGBA", image.size, (128, 128, 128, 0))
    THINGS[scene.thing](Pen(layer, scene), COLOURS[scene.colour])
    if scene.thing == "cup":  # the handle's hole
        hole = layer.getchannel("A").point(lambda a: a)
        grey = np.all(np.asarray(layer)[..., :3] == 128, axis=-1)
        layer.putalpha(ImageChops.subtract(hole, Image.fromarray((grey * 255).astype(np.uint8))))
    body = layer.getchannel("A")
    rim = body.filter(ImageFilter.MaxFilter(7))
    shadow = Image.new("L", image.size, 0)
    x, y, r = scene.x * CANVAS, (scene.y + scene.size * 1.02) * CANVAS, scene.size * CANVAS
    ImageDraw.Draw(shadow).ellipse((x - r, y - r * 0.14, x + r, y + r * 0.18), fill=90)
    image.paste((20, 20, 40), mask=shadow)
    image.paste(shade(COLOURS[scene.colour], 0.3), mask=rim)
    image.paste(layer.convert("RGB"), mask=body)
    return lit(image, scene)


def random_scene(seed: int, things: tuple[str, ...] = tuple(THINGS)) -> Scene:
    """A scene drawn uniformly from everything that can vary."""
    rng = np.random.default_rng(seed)
    return Scene(
        thing=str(rng.choice(things)),
        colour=str(rng.choice(list(COLOURS))),
        setting=str(rng.choice(SETTINGS)),
        x=rng.uniform(0.4, 0.6),
        y=rng.uniform(0.52, 0.62),
        size=rng.uniform(0.24, 0.33),
        light=rng.uniform(0.88, 1.08),
        warmth=rng.uniform(-1, 1),
        mirrored=bool(rng.random() < 0.5),
        seed=int(rng.integers(2**31)),
    )


def reduce(image: Image.Image) -> Image.Image:
    """CANVAS -> SIZE."""
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)


def sheet(pictures: list[Image.Image], columns: int, zoom: int = 2, gap: int = 2) -> Image.Image:
    """A contact sheet, nearest-neighbour zoomed."""
    w, h = pictures[0].width * zoom, pictures[0].height * zoom
    rows = -(-len(pictures) // columns)
    out = Image.new("RGB", (columns * (w + gap) + gap, rows * (h + gap) + gap), (255, 255, 255))
    for k, picture in enumerate(pictures):
        place = (gap + (k % columns) * (w + gap), gap + (k // columns) * (h + gap))
        out.paste(picture.convert("RGB").resize((w, h), Image.Resampling.NEAREST), place)
    return out


if __name__ == "__main__":
    drawn = [reduce(draw_scene(random_scene(k, (thing,)))) for k, thing in enumerate(list(THINGS) * 4)]
    sheet(drawn, 12).save(sys.argv[1])
