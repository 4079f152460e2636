"""What was found out about adapters as sheets to look at: anatomy, conflict, strength; each one PNG.

Try it: `stylora anatomy ink.safetensors --out anatomy.png`
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from PIL import Image

from studio.look.anatomy import SHARES, TOTAL, Overlap, Part
from studio.look.charts import bars, curves, matrix, stacked, strip
from trainers.lora.blocks import order

if TYPE_CHECKING:  # who draws an anatomy need not wait for diffusers
    from studio.look.measure import Disturbance, Strength

MOST_COLUMNS = 16  # of the energy table
Pair = tuple[str, str]


def anatomy_sheet(name: str, parts: Sequence[Part]) -> Image.Image:
    """Size of the change, needed rank and kept energy, block by block."""
    blocks = [part for part in parts if part.block != TOTAL]
    labels, total = [part.block for part in blocks], parts[-1]
    relative = total.relative is not None
    sizes = [100 * (part.relative or 0) if relative else part.norm for part in blocks]
    what = "per cent of the base's weights in the same modules" if relative else "Frobenius norm of the deltas"
    ranks = ranks_shown(total.rank)
    return stacked(
        [
            bars(labels, sizes, f"{name}: how much it changes each block", what, ".1f" if relative else ".2f"),
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
    pictures: Mapping[Pair, Sequence[Image.Image]],
) -> Image.Image:
    """What was measured on the base, what it looks like (bare, each alone, both), then the overlap per block."""
    several = len(overlaps) > 1
    sheets = [_pairs_sheet(names, measured)] if several and measured else []
    sheets += [] if several else [_pair_sheet(pair, found) for pair, found in measured.items()]
    for pair, made in pictures.items():
        labels = ["bare base", f"{pair[0]} alone", f"{pair[1]} alone", "both"]
        sheets.append(strip(made, labels, f"{pair[0]} and {pair[1]}: {measured[pair].verdict}"))
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


def strength_sheet(found: Mapping[str, Strength], pictures: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
    """Effect by weight with the equal-feel weights ringed; below it what the adapters draw at these weights.

    `pictures` has one for each weight and, where there is an equal-feel weight, one more for that.
    """
    reference = next(iter(found.values())).reference
    chart = curves(
        {name: list(zip(one.weights, one.effects, strict=True)) for name, one in found.items()},
        "How strongly a weight acts",
        "change of the base's prediction, relative to the bare base; mean over prompts and timesteps",
        "weight",
        (reference, f"equal feel: effect {reference:g}"),
        {name: (one.equal_feel, reference) for name, one in found.items() if one.equal_feel is not None},
    )
    return stacked([chart, *(_weights_strip(name, found[name], made) for name, made in pictures.items())])


def _weights_strip(name: str, found: Strength, pictures: Sequence[Image.Image]) -> Image.Image:
    labels = [f"{weight:g}" for weight in found.weights]
    if found.equal_feel is None:
        return strip(pictures, labels, f"{name} by weight")
    return strip(pictures, [*labels, f"equal feel: {found.equal_feel:.2f}"], f"{name} by weight")
