"""What was found out about adapters as sheets to look at: anatomy, conflict, strength; each one PNG.

What a base makes with them is shown as pictures side by side, or as lines of text below each other.

Try it: `stylora anatomy ink.safetensors --out anatomy.png`
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from PIL import Image

from studio.look.anatomy import SHARES, TOTAL, Overlap, Part
from studio.look.charts import bars, curves, lines, matrix, stacked, strip
from trainers.lora.blocks import order

if TYPE_CHECKING:  # who draws an anatomy need not wait for diffusers
    from studio.look.measure import Disturbance, Strength

MOST_COLUMNS = 16  # of the energy table
Pair = tuple[str, str]
Made = Sequence[Image.Image | str]  # pictures, or lines of text


def anatomy_sheet(name: str, parts: Sequence[Part], sizes: Mapping[str, Mapping[str, float]] = {}) -> Image.Image:
    """Size of the change, needed rank and kept energy, block by block; and `sizes` by kind of module, if there are."""
    blocks = [part for part in parts if part.block != TOTAL]
    labels, total = [part.block for part in blocks], parts[-1]
    relative = total.relative is not None
    changes = [100 * (part.relative or 0) if relative else part.norm for part in blocks]
    what = "per cent of the base's weights in the same modules" if relative else "Frobenius norm of the deltas"
    ranks = ranks_shown(total.rank)
    return stacked(
        [
            bars(labels, changes, f"{name}: how much it changes each block", what, ".1f" if relative else ".2f"),
            *([_kinds_matrix(sizes, what, relative)] if sizes else []),
            bars(
                labels,
                {f"{share:.0%} of the energy": [part.needed[share] for part in blocks] for share in SHARES},
                "The rank each block needs",
                f"smallest rank that keeps the share when each module of the block is cut to it; it has {total.rank}",
                ".0f",
            ),
            matrix(
                [part.block for part in parts],
                [str(rank) for rank in ranks],
                [[100 * part.kept[min(rank, part.rank) - 1] for rank in ranks] for part in parts],
                "Energy kept at each rank",
                "per cent of the squared norm; the darker, the less is lost",
                ".1f",
                lambda kept: 1 - math.sqrt(max(0.0, 1 - kept / 100)),
            ),
        ]
    )


def _kinds_matrix(sizes: Mapping[str, Mapping[str, float]], what: str, relative: bool) -> Image.Image:
    """Blocks down, kinds of modules across; the shade is relative to the largest cell that is no sum."""
    factor = 100 if relative else 1
    labels = list(sizes[TOTAL])
    largest = max(size for kind, row in sizes.items() for block, size in row.items() if TOTAL not in (kind, block))
    return matrix(
        labels,
        list(sizes),
        [[factor * row.get(label, math.nan) for row in sizes.values()] for label in labels],
        "By kind of module",
        f"{what}: attention's q, k, v, out, the feed-forward's gate, up, down",
        ".1f" if relative else ".2f",
        lambda size: size / (factor * largest or 1),
    )


def ranks_shown(rank: int) -> list[int]:
    """1 … rank, thinned out upwards where these are too many columns."""
    if rank <= MOST_COLUMNS:
        return list(range(1, rank + 1))
    grown = {round(rank ** (k / (MOST_COLUMNS - 1))) for k in range(MOST_COLUMNS)}
    return sorted(grown)


def conflict_sheet(
    names: Sequence[str],
    overlaps: Mapping[Pair, Sequence[Overlap]],
    measured: Mapping[Pair, Disturbance],
    made: Mapping[Pair, Made],
) -> Image.Image:
    """What was measured on the base, what it looks like (bare, each alone, both), then the overlap per block."""
    several = len(overlaps) > 1
    sheets = [_pairs_sheet(names, measured)] if several and measured else []
    sheets += [] if several else [_pair_sheet(pair, found) for pair, found in measured.items()]
    for pair, shown in made.items():
        labels = ["bare base", f"{pair[0]} alone", f"{pair[1]} alone", "both"]
        sheets.append(_made(shown, labels, f"{pair[0]} and {pair[1]}: {measured[pair].verdict}"))
    sheets += [_overlaps_sheet(overlaps)] if several else [_overlap_sheet(*pair) for pair in overlaps.items()]
    return stacked(sheets)


def _pair_sheet(pair: Pair, found: Disturbance) -> Image.Image:
    one, other, both = found.effects
    labels = [f"{pair[0]} alone", f"{pair[1]} alone", "both", "what doesn't add up"]
    note = (
        f"change of the base's prediction, relative to the bare base; disturbance {found.share:.2f}: the last over both"
    )
    return bars(labels, [one, other, both, found.share * both], f"{pair[0]} and {pair[1]} on the base", note, ".3f")


def _pairs_sheet(names: Sequence[str], measured: Mapping[Pair, Disturbance]) -> Image.Image:
    def cell(one: str, other: str) -> float:
        found = measured.get((one, other)) or measured.get((other, one))
        return found.share if found else math.nan

    return matrix(
        names,
        names,
        [[cell(one, other) for other in names] for one in names],
        "How much each pair disturbs each other on the base",
        "distance of the joint effect from the sum of the single ones, relative to it; 0: they just add up",
    )


def _overlap_sheet(pair: Pair, found: Sequence[Overlap]) -> Image.Image:
    series = {"writes": [o.writes for o in found], "reads": [o.reads for o in found]}
    total = found[-1]
    chance = f"by chance {total.writes_by_chance:.3f} and {total.reads_by_chance:.3f} in all"
    note = f"share of directions in common: 0 none, 1 all; {chance}"
    return bars([o.block for o in found], series, f"Overlap of {pair[0]} and {pair[1]} per block", note, ".2f")


def _overlaps_sheet(overlaps: Mapping[Pair, Sequence[Overlap]]) -> Image.Image:
    there = {o.block for found in overlaps.values() for o in found if o.block != TOTAL}
    blocks = [*sorted(there, key=order), TOTAL]
    sheets = []
    for side, what in (("writes", "outputs they change"), ("reads", "inputs they listen to")):
        columns = [{o.block: float(getattr(o, side)) for o in found} for found in overlaps.values()]
        rows = [[column.get(block, math.nan) for column in columns] for block in blocks]
        note = "share of directions in common: 0 none, 1 all"
        names = [" + ".join(pair) for pair in overlaps]
        sheets.append(matrix(blocks, names, rows, f"Overlap per block: the {what}", note))
    return stacked(sheets)


def strength_sheet(found: Mapping[str, Strength], made: Mapping[str, Made]) -> Image.Image:
    """Effect by weight with the equal-feel weights ringed; below it what is made with the adapters at these weights.

    `made` has one for each weight and, where there is an equal-feel weight, one more for that.
    """
    one = next(iter(found.values()))
    over = "the places of the texts" if one.nats else "prompts and timesteps"
    chart = curves(
        {name: list(zip(s.weights, s.effects, strict=True)) for name, s in found.items()},
        "How strongly a weight acts",
        f"change of the base's prediction, relative to the bare base; mean over {over}",
        "weight",
        (one.reference, f"equal feel: effect {one.reference:g}"),
        {name: (s.equal_feel, one.reference) for name, s in found.items() if s.equal_feel is not None},
    )
    return stacked([chart, *(_made(shown, found[name].labels, f"{name} by weight") for name, shown in made.items())])


def _made(shown: Made, labels: Sequence[str], title: str) -> Image.Image:
    texts = [one for one in shown if isinstance(one, str)]
    pictures = [one for one in shown if not isinstance(one, str)]
    return lines(texts, labels, title) if texts else strip(pictures, labels, title)
