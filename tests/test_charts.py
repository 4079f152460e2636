"""Numbers as pictures: what is larger is drawn larger, in its place, and odd numbers break nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image, ImageColor

from studio.look.charts import BOTTOM, COLD, COLOURS, HOT, _ticks, bars, curves, lines, matrix, stacked, strip


def count(image: Image.Image, colour: str) -> int:
    return int((np.asarray(image) == ImageColor.getrgb(colour)).all(2).sum())


def rows(image: Image.Image, colour: str) -> tuple[int, int]:
    """The first and last row in which the colour stands, below the legend."""
    found = np.flatnonzero((np.asarray(image)[40:] == ImageColor.getrgb(colour)).all(2).any(1)) + 40
    return int(found[0]), int(found[-1])


def test_a_bar_is_as_high_as_its_number() -> None:
    areas = [count(bars(["a", "b"], [4, value], "t"), COLOURS[0]) for value in (0, 1, 2, 4)]
    heights = np.diff([areas[0], *areas[1:]])
    assert heights == pytest.approx([areas[0] / 4, areas[0] / 4, areas[0] / 2], rel=0.1)


def test_bars_below_zero_and_bars_that_are_none() -> None:
    down, up = bars(["a"], [-2], "t"), bars(["a"], [2], "t")
    assert rows(down, COLOURS[0])[0] < rows(down, COLOURS[0])[1] <= down.height - BOTTOM
    assert rows(up, COLOURS[0])[1] == pytest.approx(up.height - BOTTOM, abs=1)
    assert count(bars(["a", "b"], [math.nan, math.inf], "t"), COLOURS[0]) == 0
    assert bars([], [], "none").size == bars(["a"], [0], "zero").size


def test_series_have_their_own_colours_and_a_legend() -> None:
    image = bars(["a", "b"], {"95 %": [1, 2], "99 %": [3, 4]}, "t", form=".0f")
    assert count(image, COLOURS[1]) > count(image, COLOURS[0]) > 0
    assert count(image, COLOURS[2]) == 0


def test_a_curve_rises_and_its_mark_stands_on_it() -> None:
    line = [(0.0, 0.0), (0.5, 0.1), (1.0, 0.4)]
    plain = curves({"ink": line}, "t", x_name="weight")
    marked = curves({"ink": line}, "t", x_name="weight", level=(0.2, "equal"), marks={"ink": (0.667, 0.2)})
    top, bottom = rows(plain, COLOURS[0])
    assert bottom - top > 150
    assert plain.size == marked.size
    assert plain.tobytes() != marked.tobytes()
    assert curves({}, "empty").size == curves({"one": [(1.0, 1.0)]}, "point").size


def test_cells_go_from_pale_to_deep() -> None:
    image = matrix(["r"], ["zero", "one", "more", "none"], [[0, 1, 7, math.nan]], "t")
    assert count(image, COLD) > 0
    assert count(image, HOT) > 1.5 * count(image, COLD)  # 7 is shown as 1 is
    wide = matrix(["r"] * 3, ["a name longer than its cell is wide"] * 20, [[0.5] * 20] * 3, "t")
    assert wide.height > matrix(["r"] * 3, ["a"] * 20, [[0.5] * 20] * 3, "t").height


def test_under_each_other_and_side_by_side() -> None:
    one, other = bars(["a"], [1], "t"), bars(["a"], [1], "t", height=200)
    assert stacked([one, other]).size == (one.width, one.height + 200)
    red = strip([Image.new("RGB", (8, 8), "red")] * 3, ["a", "b", "c"], "t", most=40)
    assert count(red, "red") == 3 * 40 * 40
    assert strip([Image.new("RGB", (8, 8))] * 30, ["a"] * 30, "t").width == one.width


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.037), (-2, 3), (0, 0), (0, 12345), (5, 5)])
def test_ticks_are_round_and_enclose(low: float, high: float) -> None:
    ticks = _ticks(low, high)
    assert ticks[0] <= low <= high <= ticks[-1]
    assert 2 <= len(ticks) <= 8
    steps = np.diff(ticks)
    assert steps == pytest.approx([steps[0]] * len(steps))
    assert float(f"{steps[0]:.0e}") == pytest.approx(steps[0])


def test_lines_are_broken_at_the_papers_edge() -> None:
    short, long = lines(["the sea"], ["bare"], "texts"), lines(["the sea " * 60], ["bare"], "texts")
    assert long.width == short.width
    assert (long.height - short.height) % 19 == 0 < long.height - short.height
    right = np.asarray(long)[:, -20:]
    assert (right == 255).all()


def test_names_of_many_bars_do_not_run_into_each_other() -> None:
    def ink(labels: list[str]) -> int:
        """Columns with ink where the names stand."""
        foot = np.asarray(bars(labels, [1.0] * len(labels), "norm").convert("L"))[-BOTTOM + 6 :]
        return int((foot < 128).any(0).sum())

    assert ink([f"L{k:02}" for k in range(120)]) < ink([f"L{k:02}" for k in range(28)]) * 2


def test_tiny_values_have_ticks_too() -> None:
    """What a lossless blend loses is rounding alone."""
    assert curves({"lost": [(0.0, 1e-13), (1.0, 2e-13), (2.0, 1.5e-13)]}, "lost").width > 0
