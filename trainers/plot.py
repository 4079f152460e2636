"""The run as a picture: the loss over the steps (thin: each step, thick: running mean), drawn with Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 960, 420
LEFT, RIGHT, TOP, BOTTOM = 76, 24, 48, 52
INK, GRID, THIN, THICK, PAPER = "#30343b", "#e4e6ea", "#b9d3ee", "#1f6fb5", "#ffffff"


def loss_plot(losses: Sequence[float], title: str, first_step: int = 1, every: int = 1, reach: int = 15) -> Image.Image:
    """A line plot of one loss every so many steps, 960 x 420 pixels; the mean is over `reach` losses to both sides."""
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(image)
    font, small = ImageFont.load_default(20), ImageFont.load_default(14)
    draw.text((LEFT, 14), title, INK, font)
    if not losses:
        return image
    top = max(losses) * 1.05 or 1.0

    def at(k: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * (k / max(len(losses) - 1, 1))
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / top

    for part in range(5):
        value = top * part / 4
        y = at(0, value)[1]
        draw.line([(LEFT, y), (WIDTH - RIGHT, y)], GRID)
        draw.text((LEFT - 10, y), f"{value:.3f}", INK, small, anchor="rm")
        k = (len(losses) - 1) * part / 4
        draw.text((at(k, 0)[0], HEIGHT - BOTTOM + 8), str(round(k) * every + first_step), INK, small, anchor="mt")
    draw.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 22), "step", INK, small, anchor="mt")
    draw.line([at(k, value) for k, value in enumerate(losses)], THIN, 1)
    draw.line([at(k, value) for k, value in enumerate(running_mean(losses, reach))], THICK, 3, joint="curve")
    return image


def running_mean(values: Sequence[float], reach: int = 15) -> list[float]:
    """Mean over `reach` values to both sides, fewer at the ends."""
    means = []
    for k in range(len(values)):
        near = values[max(0, k - reach) : k + reach + 1]
        means.append(sum(near) / len(near))
    return means


def grid(
    rows: Sequence[Sequence[Image.Image]], row_names: Sequence[str], column_names: Sequence[str], side: int = 160
) -> Image.Image:
    """Pictures in rows and columns with their names around; small pictures are enlarged without smoothing."""
    font = ImageFont.load_default(15)
    left = 16 + max((int(font.getlength(name)) for name in row_names), default=0) + 12
    lines = [_wrapped(name, font, side) for name in column_names]
    top = 12 + 19 * max((len(text) for text in lines), default=0)
    image = Image.new("RGB", (left + len(column_names) * (side + 8) + 8, top + len(rows) * (side + 8) + 8), PAPER)
    draw = ImageDraw.Draw(image)
    for c, text in enumerate(lines):
        draw.multiline_text(
            (left + c * (side + 8) + side / 2, top - 6), "\n".join(text), INK, font, anchor="md", align="center"
        )
    for r, row in enumerate(rows):
        y = top + r * (side + 8)
        draw.text((left - 12, y + side / 2), row_names[r], INK, font, anchor="rm")
        for c, picture in enumerate(row):
            image.paste(enlarged(picture, side), (left + c * (side + 8), y))
    return image


def enlarged(picture: Image.Image, side: int) -> Image.Image:
    """The picture in a square of `side`, proportions kept; hard pixels when it grows, smooth when it shrinks."""
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    method = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    square = Image.new("RGB", (side, side), PAPER)
    square.paste(picture.convert("RGB").resize(size, method), ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
