"""The run as a picture: the loss over the steps (thin: each step, thick: running mean), drawn with Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
WIDTH, HEIGHT = 960, 420
LEFT, RIGHT, TOP, BOTTOM = 76, 24, 48, 52
FAINT = "#7a808a"
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
    lines = [wrapped(name, font, side) for name in column_names]
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


@dataclass(frozen=True)
class Names:
    """What varies along one way of a sheet, and what stands at each place."""

    title: str
    labels: Sequence[str]


def sheet(
    rows: Sequence[Sequence[Image.Image]], x: Names, y: Names, title: str = "", note: str = "", side: int = 160
) -> Image.Image:
    """Pictures in a table as on an artist's contact sheet: title and note on top, both ways named, on cells of `side`.

    Letters grow with the cells; long names are wrapped.
    """
    large, middle, gap = max(20, side // 10), max(15, side // 14), max(6, side // 40)
    big, font = ImageFont.load_default(large), ImageFont.load_default(middle)
    line, pad = round(middle * 1.35), 2 * middle
    columns = [wrapped(name, font, side) for name in x.labels]
    names = [wrapped(name, font, max(side, 160)) for name in y.labels]
    wide = max((int(font.getlength(text)) for name in names for text in name), default=0)
    left = pad + (line + gap if y.title else 0) + (wide + middle if wide else 0)
    across, down = len(x.labels) * (side + gap) - gap, len(rows) * (side + gap) - gap
    headlines = wrapped(title, big, max(across, 2 * side)) if title else []
    notes = wrapped(note, font, max(across, 2 * side)) if note else []
    head = pad + round(len(headlines) * large * 1.3) + len(notes) * line + (middle if title or note else 0)
    top = head + (line + gap if x.title else 0) + line * max(map(len, columns), default=0) + gap
    widest = max((*(int(big.getlength(text)) for text in headlines), *(int(font.getlength(text)) for text in notes), 0))
    page = Image.new("RGB", (left + max(across, widest) + pad, top + down + pad), PAPER)
    draw = ImageDraw.Draw(page)
    draw.multiline_text((left, pad), "\n".join(headlines), INK, big, spacing=large * 0.3)
    draw.multiline_text((left, head - middle), "\n".join(notes), FAINT, font, anchor="ld", spacing=middle * 0.3)
    draw.text((left + across / 2, head), x.title, FAINT, font, anchor="ma")
    for c, text in enumerate(columns):
        above = (left + c * (side + gap) + side / 2, top - gap)
        draw.multiline_text(above, "\n".join(text), INK, font, anchor="md", align="center", spacing=middle * 0.3)
    for r, text in enumerate(names):
        beside = (left - middle, top + r * (side + gap) + side / 2)
        draw.multiline_text(beside, "\n".join(text), INK, font, anchor="rm", align="right", spacing=middle * 0.3)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            page.paste(enlarged(picture, side), (left + c * (side + gap), top + r * (side + gap)))
    if y.title:
        _upright(page, (pad, top + down // 2), y.title, font)
    return page


def _upright(page: Image.Image, place: tuple[int, int], text: str, font: Font) -> None:
    """Text that reads from below, its left edge and middle at `place`."""
    left, top, right, bottom = ImageDraw.Draw(page).textbbox((0, 0), text, font)
    strip = Image.new("RGB", (int(right - left) + 2, int(bottom - top) + 2), PAPER)
    ImageDraw.Draw(strip).text((1 - left, 1 - top), text, FAINT, font)
    strip = strip.rotate(90, expand=True)
    page.paste(strip, (place[0], place[1] - strip.height // 2))


def enlarged(picture: Image.Image, side: int) -> Image.Image:
    """The picture in a square of `side`, proportions kept; hard pixels when it grows, smooth when it shrinks."""
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    method = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    square = Image.new("RGB", (side, side), PAPER)
    square.paste(picture.convert("RGB").resize(size, method), ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def wrapped(text: str, font: Font, width: int) -> list[str]:
    """The text as lines of at most `width` pixels, broken between words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
