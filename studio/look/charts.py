"""Numbers as pictures with Pillow alone, in the style of trainers.plot: bars, curves, a matrix of blocks, side by side.

Try it: python -c "from studio.look.charts import bars; bars(['IN01', 'MID'], [3, 4], 'norm').save('norm.png')"
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from PIL import Image, ImageColor, ImageDraw, ImageFont

from trainers.plot import GRID, INK, PAPER, THICK, WIDTH, enlarged, wrapped

COLOURS = (THICK, "#e0803a", "#3f9e77", "#9a5fb5", "#c94f5d", "#8a7a4c")  # of series, in turn
FAINT, COLD, HOT = "#8a8f98", "#f4f6f9", "#15508a"
LEFT, RIGHT, TOP, BOTTOM = 76, 28, 84, 46
SMOOTH = 3  # shapes are drawn so many times too large, then shrunk: Pillow's own have hard edges

Values = Sequence[float] | Mapping[str, Sequence[float]]
Point = tuple[float, float]
Place = Callable[[float, float], Point]


def bars(
    labels: Sequence[str], values: Values, title: str, note: str = "", form: str = "", height: int = 300
) -> Image.Image:
    """One bar per label, 960 pixels wide; several named series stand beside each other, with a legend.

    `note` is a line under the title, `form` a format for the number over each bar ("" for none; drawn where it fits).
    Values may be negative; what is no finite number is left out.
    """
    series = dict(values) if isinstance(values, Mapping) else {"": values}
    image, draw = _sheet(height, title, note, list(series))
    finite = [value for row in series.values() for value in row if math.isfinite(value)]
    ticks = _ticks(min([0.0, *finite]), max([0.0, *finite]))
    at = _frame(draw, (0, max(1, len(labels))), ticks, height)
    wide = min(0.8, 0.12 * len(labels)) / len(series)  # few bars needn't be fat
    font = _font(13 if len(labels) < 17 else 11)
    widest = max((font.getlength(label) for label in labels), default=0) + 2
    every = math.ceil(widest * len(labels) / (WIDTH - LEFT - RIGHT)) if len(labels) > 28 else 1  # a name at each n-th
    for k, label in enumerate(labels):
        if k % every == 0:
            draw.text((at(k + 0.5, 0)[0], height - BOTTOM + 8), label, INK, font, anchor="mt")
        for s, row in enumerate(series.values()):
            if math.isfinite(row[k]):
                middle = k + 0.5 + (s - (len(series) - 1) / 2) * wide
                _bar(draw, at, middle, wide * 0.92, row[k], COLOURS[s % len(COLOURS)], form)
    draw.line([at(0, 0), at(max(1, len(labels)), 0)], FAINT)
    return image


def _bar(
    draw: ImageDraw.ImageDraw, at: Place, middle: float, wide: float, value: float, colour: str, form: str
) -> None:
    (left, top), (right, bottom) = at(middle - wide / 2, max(value, 0)), at(middle + wide / 2, min(value, 0))
    draw.rectangle((round(left), round(top), round(right), round(bottom)), colour)
    text, font = format(value, form) if form else "", _font(12)
    if text and font.getlength(text) < (right - left) * 1.5 + 6:
        y, anchor = (top - 4, "mb") if value >= 0 else (bottom + 4, "mt")
        draw.text(((left + right) / 2, y), text, INK, font, anchor=anchor)


def curves(
    series: Mapping[str, Sequence[Point]],
    title: str,
    note: str = "",
    x_name: str = "",
    level: tuple[float, str] | None = None,
    marks: Mapping[str, Point] = {},
    height: int = 380,
) -> Image.Image:
    """Lines through points with a legend; `level` is a dashed line and its name, `marks` rings on a series."""
    image, draw = _sheet(height, title, note, list(series))
    points = [point for row in series.values() for point in row]
    xs = [x for x, _ in points] or [0.0, 1.0]
    ys = [y for _, y in points] + ([level[0]] if level else [])
    across = (min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1)
    at = _frame(draw, across, _ticks(min([0.0, *ys]), max([0.0, *ys])), height)
    for tick in (tick for tick in _ticks(*across, 8) if across[0] - 1e-9 <= tick <= across[1] + 1e-9):
        draw.text((at(tick, 0)[0], height - BOTTOM + 8), f"{tick:g}", INK, _font(13), anchor="mt")
    draw.text(((LEFT + WIDTH - RIGHT) / 2, height - 4), x_name, INK, _font(13), anchor="mb")
    if level:
        _dashed(draw, at(across[0], level[0]), at(across[1], level[0]))
        draw.text((at(across[0], 0)[0] + 6, at(0, level[0])[1] - 4), level[1], FAINT, _font(13), anchor="lb")
    _smoothly(image, lambda pen, k: _lines(pen, k, series, marks, at))
    return image


def _lines(
    pen: ImageDraw.ImageDraw, k: int, series: Mapping[str, Sequence[Point]], marks: Mapping[str, Point], at: Place
) -> None:
    for number, (name, row) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [(x * k, y * k) for x, y in (at(*point) for point in row)]
        pen.line(places, colour, 3 * k, joint="curve")
        for place in places:
            pen.circle(place, 4 * k, colour)
        if name in marks:
            x, y = at(*marks[name])
            pen.circle((x * k, y * k), 8 * k, PAPER, colour, 3 * k)


def matrix(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    title: str,
    note: str = "",
    form: str = ".2f",
    shade: Callable[[float], float] = lambda value: value,
) -> Image.Image:
    """A table of cells, each with its number and pale (its shade 0) to deep blue (1); what isn't finite is blank."""
    font, line = _font(14), 26
    left = round(40 + max((font.getlength(name) for name in rows), default=0))
    widest = max((font.getlength(name) for name in columns), default=0)
    cell = min(110.0, (WIDTH - left - RIGHT) / max(1, len(columns)))
    slanted = widest > cell - 8
    top = TOP + (round(widest * 0.6) + 18 if slanted else 22)
    image, draw = _sheet(top + line * len(rows) + 16, title, note, [])
    for c, name in enumerate(columns):
        x = left + (c + 0.5) * cell
        if slanted:
            _slanted(image, name, (round(x), top - 8))
        else:
            draw.text((x, top - 8), name, INK, font, anchor="mb")
    small = _font(13 if cell >= 40 else 10)
    for r, name in enumerate(rows):
        y = top + r * line
        draw.text((left - 10, y + line / 2), name, INK, font, anchor="rm")
        for c, value in enumerate(values[r]):
            if not math.isfinite(value):
                continue
            share = min(1.0, max(0.0, shade(value)))
            box = (round(left + c * cell), y, round(left + (c + 1) * cell) - 2, y + line - 2)
            draw.rectangle(box, _between(COLD, HOT, share))
            ink = PAPER if share > 0.55 else INK
            draw.text(((box[0] + box[2]) / 2, y + line / 2 - 1), format(value, form), ink, small, anchor="mm")
    return image


def stacked(images: Sequence[Image.Image]) -> Image.Image:
    """The pictures under each other, left edges in line."""
    sheet = Image.new("RGB", (max(one.width for one in images), sum(one.height for one in images)), PAPER)
    y = 0
    for one in images:
        sheet.paste(one, (0, y))
        y += one.height
    return sheet


def strip(pictures: Sequence[Image.Image], names: Sequence[str], title: str, most: int = 160) -> Image.Image:
    """Small pictures in one row with their names below; small ones are enlarged without smoothing."""
    gap, left, top = 8, 24, 48
    side = min(most, (WIDTH - left - RIGHT - gap * (len(pictures) - 1)) // max(1, len(pictures)))
    image, draw = _sheet(top + side + 32, title, "", [])
    for k, (picture, name) in enumerate(zip(pictures, names, strict=True)):
        x = left + k * (side + gap)
        image.paste(enlarged(picture, side), (x, top))
        draw.text((x + side / 2, top + side + 6), name, INK, _font(13), anchor="mt")
    return image


def lines(texts: Sequence[str], names: Sequence[str], title: str) -> Image.Image:
    """Texts below each other, each beside its name and broken at words to the width of the paper."""
    font, gap, top = _font(14), 10, 54
    left = round(48 + max((font.getlength(name) for name in names), default=0))
    broken = [wrapped(text, font, WIDTH - left - RIGHT) for text in texts]
    image, draw = _sheet(top + sum(19 * len(rows) + gap for rows in broken) + 8, title, "", [])
    y = top
    for name, rows in zip(names, broken, strict=True):
        draw.text((left - 16, y), name, FAINT, font, anchor="ra")
        for row in rows:
            draw.text((left, y), row, INK, font)
            y += 19
        y += gap
    return image


# --- parts -----------------------------------------------------------------------------------------------------------


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _sheet(height: int, title: str, note: str, legend: Sequence[str]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """White paper with the title, the note under it and, at the right of the title, the names of the series."""
    image = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((24, 14), title, INK, _font(20))
    draw.text((24, 42), note, FAINT, _font(13))
    x = WIDTH - RIGHT
    for k, name in reversed([(k, name) for k, name in enumerate(legend) if name]):
        draw.text((x, 25), name, INK, _font(14), anchor="rm")
        x -= round(_font(14).getlength(name)) + 20
        draw.rectangle((x, 19, x + 12, 31), COLOURS[k % len(COLOURS)])
        x -= 18
    return image, draw


def _frame(draw: ImageDraw.ImageDraw, across: Point, ticks: Sequence[float], height: int) -> Place:
    """Draw the grid lines with their numbers; returns where a value lies on the paper."""

    def at(x: float, y: float) -> Point:
        share = (x - across[0]) / (across[1] - across[0])
        up = (y - ticks[0]) / (ticks[-1] - ticks[0])
        return LEFT + (WIDTH - LEFT - RIGHT) * share, height - BOTTOM - (height - TOP - BOTTOM) * up

    for tick in ticks:
        y = at(across[0], tick)[1]
        draw.line([(LEFT, y), (WIDTH - RIGHT, y)], GRID)
        draw.text((LEFT - 10, y), f"{tick:g}", INK, _font(13), anchor="rm")
    return at


def _ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that enclose low … high."""
    if high <= low:
        high = low + 1
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


def _dashed(draw: ImageDraw.ImageDraw, start: Point, end: Point) -> None:
    for x in range(round(start[0]), round(end[0]), 10):
        draw.line([(x, start[1]), (min(x + 5, end[0]), start[1])], FAINT, 1)


def _smoothly(image: Image.Image, paint: Callable[[ImageDraw.ImageDraw, int], None]) -> None:
    """Let `paint` draw on a larger copy of the paper, and shrink it: edges come out smooth."""
    large = image.resize((image.width * SMOOTH, image.height * SMOOTH), Image.Resampling.NEAREST)
    paint(ImageDraw.Draw(large), SMOOTH)
    image.paste(large.resize(image.size, Image.Resampling.BOX))


def _slanted(image: Image.Image, text: str, at: tuple[int, int]) -> None:
    """Text that rises to the right from `at`."""
    font = _font(14)
    patch = Image.new("L", (round(font.getlength(text)) + 4, 20), 0)
    ImageDraw.Draw(patch).text((0, 10), text, 255, font, anchor="lm")
    turned = patch.rotate(35, Image.Resampling.BICUBIC, expand=True)
    image.paste(INK, (at[0] - 6, at[1] - turned.height + 6), turned)


def _between(low: str, high: str, share: float) -> tuple[int, int, int]:
    one, other = ImageColor.getrgb(low), ImageColor.getrgb(high)
    r, g, b = (round(p + (q - p) * share) for p, q in zip(one[:3], other[:3], strict=True))
    return r, g, b
