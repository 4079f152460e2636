"""Plots and sheets: the right size, the right places, and no number of losses or names that breaks them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from PIL import Image, ImageColor

from trainers import plot

THICK = ImageColor.getrgb(plot.THICK)


def heights(image: Image.Image, colour: tuple[int, ...] = THICK) -> dict[int, float]:
    """Mean y of a colour's pixels, by x."""
    found: dict[int, list[int]] = {}
    for y in range(image.height):
        for x in range(image.width):
            if image.getpixel((x, y)) == colour:
                found.setdefault(x, []).append(y)
    return {x: sum(ys) / len(ys) for x, ys in found.items()}


@pytest.mark.parametrize("losses", [[], [0.5], [0.0, 0.0], [0.3, 0.2], [1e-9] * 5, [1e6, 1.0] * 600], ids=len)
def test_any_number_of_losses_can_be_drawn(losses: Sequence[float]) -> None:
    image = plot.loss_plot(losses, "ink: loss over 300 steps")
    assert image.size == (plot.WIDTH, plot.HEIGHT)
    assert image.mode == "RGB"


def test_a_falling_loss_falls_from_the_left_edge_to_the_right() -> None:
    line = heights(plot.loss_plot([1.0 - k / 100 for k in range(100)], "falling"))
    assert min(line) <= plot.LEFT + 1
    assert max(line) >= plot.WIDTH - plot.RIGHT - 1
    assert line[plot.LEFT + 50] < line[plot.WIDTH // 2] < line[plot.WIDTH - plot.RIGHT - 50]
    assert all(plot.TOP <= y <= plot.HEIGHT - plot.BOTTOM for y in line.values())


def test_the_height_is_in_proportion() -> None:
    losses = [0.5] * 100 + [1.0] * 100
    line = heights(plot.loss_plot(losses, "a step up"))
    floor = plot.HEIGHT - plot.BOTTOM
    low, high = floor - line[plot.LEFT + 100], floor - line[plot.WIDTH - plot.RIGHT - 100]
    assert low / high == pytest.approx(0.5, abs=0.02)


def test_running_mean() -> None:
    assert plot.running_mean([]) == []
    assert plot.running_mean([3.0, 1.0, 2.0], reach=0) == [3.0, 1.0, 2.0]
    assert plot.running_mean([0.0, 3.0, 6.0, 0.0], reach=1) == [1.5, 3.0, 3.0, 3.0]
    assert plot.running_mean([2.0] * 40) == [2.0] * 40
    line = [float(k) for k in range(100)]
    assert plot.running_mean(line)[20:80] == line[20:80]


def test_a_sheet_shows_every_picture_in_its_row_and_column() -> None:
    colours = [[(200, 10 * r, 40 * c) for c in range(3)] for r in range(2)]
    rows = [[Image.new("RGB", (16, 16), colour) for colour in row] for row in colours]
    sheet = plot.grid(rows, ["base", "with adapter"], ["a", "b", "c"], side=40)
    found = {colour for row in colours for colour in row if heights(sheet, colour)}
    assert len(found) == 6
    for r, row in enumerate(colours):
        xs = [min(heights(sheet, colour)) for colour in row]
        assert xs == sorted(xs)
        for colour in row:
            assert len(heights(sheet, colour)) == 40
        if r:
            above, below = heights(sheet, colours[r - 1][0]), heights(sheet, row[0])
            assert max(above.values()) + 40 <= max(below.values())


def test_names_of_any_length_fit() -> None:
    picture = Image.new("RGB", (16, 16), "red")
    short = plot.grid([[picture]], ["base"], ["a boat"])
    long = plot.grid([[picture]], ["with a rather long name"], ["a red house by the sea at night in a meadow " * 2])
    assert long.width > short.width
    assert long.height > short.height + 19
    for names in ([""], ["unbreakable" * 9], ["ein grünes Haus ☾"]):
        assert plot.grid([[picture]], [""], names).width == 16 + 12 + 168 + 8
    assert plot.grid([], [], []).width > 0


@pytest.mark.parametrize(("size", "inside"), [((16, 16), (64, 64)), ((8, 16), (32, 64)), ((400, 100), (64, 16))])
def test_enlarging_keeps_proportions_in_the_middle_of_a_square(size: tuple[int, int], inside: tuple[int, int]) -> None:
    square = plot.enlarged(Image.new("RGB", size, "#102030"), 64)
    assert square.size == (64, 64)
    left, top, right, bottom = Image.eval(square.convert("L"), lambda value: 255 if value < 200 else 0).getbbox() or ()
    assert (right - left, bottom - top) == inside
    assert (left, top) == ((64 - inside[0]) // 2, (64 - inside[1]) // 2)


def test_pixels_stay_hard_when_they_grow() -> None:
    picture = Image.new("RGB", (2, 1), "black")
    picture.putpixel((1, 0), (255, 255, 255))
    assert len(plot.enlarged(picture, 64).getcolors() or []) == 2
