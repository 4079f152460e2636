"""The sheets hold what they were given, however many adapters and ranks there are."""

from __future__ import annotations

import math

from PIL import Image

from studio.look.anatomy import Overlap, Part
from studio.look.charts import COLOURS, WIDTH
from studio.look.figures import anatomy_sheet, conflict_sheet, ranks_shown, strength_sheet
from studio.look.measure import Disturbance, Strength

RED = Image.new("RGB", (8, 8), "red")


def reds(sheet: Image.Image) -> int:
    return sum(count for count, colour in sheet.getcolors(1 << 20) or [] if colour == (255, 0, 0))


def part(block: str, rank: int, relative: float | None = None) -> Part:
    kept = tuple((k + 1) / rank for k in range(rank))
    return Part(block, 4, rank, 2.0, relative, rank / 2, kept, {0.95: 1, 0.99: rank}, {0.95: 1, 0.99: rank})


def test_ranks_are_thinned_out() -> None:
    assert ranks_shown(1) == [1]
    assert ranks_shown(16) == list(range(1, 17))
    for rank in (17, 64, 320):
        shown = ranks_shown(rank)
        assert shown[0] == 1
        assert shown[-1] == rank
        assert shown == sorted(set(shown))
        assert len(shown) <= 16


def test_anatomy_of_any_rank() -> None:
    few = anatomy_sheet("ink", [part("MID", 2), part("TOTAL", 2)])
    many = anatomy_sheet("ink", [*(part(f"IN{k:02}", 128 - k, 0.1) for k in range(12)), part("TOTAL", 128, 0.1)])
    assert few.width == many.width == WIDTH
    assert many.height > few.height


def test_anatomy_by_kind_of_module() -> None:
    parts = [*(part(f"L{k:02}", 8) for k in range(80)), part("TOTAL", 8)]
    sizes = {"attention q": {p.block: 1.0 for p in parts}, "TOTAL": {p.block: 2.0 for p in parts}}
    assert anatomy_sheet("pirate", parts, sizes).height > anatomy_sheet("pirate", parts).height + 80 * 26


def test_lines_of_text_are_shown_like_pictures() -> None:
    found = {"pirate": Strength((0.0, 1.0), (0.0, 0.3), 0.2, None, (0.0, 0.1))}
    short, long = (strength_sheet(found, {"pirate": ["a", "word " * n]}) for n in (1, 200))
    assert strength_sheet(found, {}).height < short.height < long.height


def test_conflict_of_two_and_of_three() -> None:
    overlaps = [Overlap("MID", 0.5, 0.1, 0.2, 0.1), Overlap("TOTAL", 0.5, 0.1, 0.2, 0.1)]
    found = Disturbance(0.4, (0.5, 0.5), 0.1, (0.2, 0.3, 0.4), {799: 0.4})
    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    bare = conflict_sheet(["a", "b"], {pairs[0]: overlaps}, {}, {})
    whole = conflict_sheet(["a", "b"], {pairs[0]: overlaps}, {pairs[0]: found}, {pairs[0]: [RED] * 4})
    assert reds(whole) == 4 * 160 * 160
    assert whole.height > bare.height
    three = dict.fromkeys(pairs, found)
    several = conflict_sheet(["a", "b", "c"], dict.fromkeys(pairs, overlaps), three, {})
    assert several.height > conflict_sheet(["a", "b", "c"], dict.fromkeys(pairs, overlaps), {}, {}).height
    endless = conflict_sheet(
        ["a", "b"], {pairs[0]: overlaps}, {pairs[0]: Disturbance(math.inf, (0, 0), 0, (0, 0, 0), {})}, {}
    )
    assert endless.width == WIDTH


def test_strength_shows_every_curve_and_picture() -> None:
    found = {name: Strength((0.0, 1.0), (0.0, 0.3), 0.2, feel) for name, feel in (("ink", 0.67), ("neon", None))}
    plain = strength_sheet(found, {})
    colours = {colour for _, colour in plain.getcolors(1 << 20) or []}
    assert {tuple(bytes.fromhex(colour[1:])) for colour in COLOURS[:2]} <= colours
    shown = strength_sheet(found, {"ink": [RED] * 3, "neon": [RED] * 2})
    assert reds(shown) == 5 * 160 * 160
