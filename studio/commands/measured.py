"""What was measured of adapters on a base, as tables: overlap, disturbance, strength, and the lines that are written.

Try it: `stylora strength runs/pirate runs/herald --base tiny-lm`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainers.console import escape, say, table

if TYPE_CHECKING:
    from studio.look.anatomy import Overlap
    from studio.look.measure import Disturbance, Strength

Pair = tuple[str, str]
Shown = Sequence[Any]  # pictures, or lines of text
NATS = "KL divergence from the base, nats per token"


def show_overlaps(overlaps: Mapping[Pair, Sequence[Overlap]]) -> None:
    rows = [
        [
            f"{a} + {b}",
            o.block,
            f"{o.writes:.3f}",
            f"{o.writes_by_chance:.3f}",
            f"{o.reads:.3f}",
            f"{o.reads_by_chance:.3f}",
        ]
        for (a, b), found in overlaps.items()
        for o in found
    ]
    columns = ("pair", "block", "writes", "by chance", "reads", "by chance")
    table("overlap: share of directions in common, 0 none, 1 all", columns, rows)


def show_measured(measured: Mapping[Pair, Disturbance]) -> None:
    """Effects, agreement and disturbance of each pair, then the verdicts."""
    from studio.look.measure import ADDS_UP

    rows = [
        [f"{a} + {b}", *(f"{effect:.3f}" for effect in d.effects), f"{d.agreement:+.2f}", f"{d.share:.2f}",
         " and ".join(f"{own:.2f}" for own in d.alone)]
        for (a, b), d in measured.items()
    ]  # fmt: skip
    columns = ("pair", "effect of one", "of the other", "of both", "agreement", "disturbance", "of each alone")
    table("measured on the base", columns, rows)
    if nats := [[f"{a} + {b}", *(f"{one:.2f}" for one in d.nats)] for (a, b), d in measured.items() if d.nats]:
        table(NATS, ("pair", "one", "the other", "both"), nats)
    for (a, b), found in measured.items():
        say(f"[bold]{escape(f'{a} + {b}')}[/]: {found.verdict}")
    if any(found.share > ADDS_UP for found in measured.values()):
        say("The disturbance falls with the weights. Next: try lower ones, such as [bold]FILE:0.6[/]")


def show_strength(found: Mapping[str, Strength]) -> None:
    """Effects by weight with the equal-feel weights, and of text the divergences."""
    one = next(iter(found.values()))
    weights = [f"{w:g}" for w in one.weights]
    rows = [
        [name, *(f"{effect:.3f}" for effect in s.effects), "–" if s.equal_feel is None else f"{s.equal_feel:.2f}"]
        for name, s in found.items()
    ]
    table("effect on the base by weight", ("adapter", *weights, "equal-feel weight"), rows)
    if nats := [[name, *(f"{value:.2f}" for value in s.nats)] for name, s in found.items() if s.nats]:
        table(NATS, ("adapter", *weights), nats)
    say(f"Equal feel: the weight whose effect is {one.reference:g}; there the adapters act equally strongly.")
    for name, s in found.items():
        if s.equal_feel is None:
            say(f"{escape(name)} does not reach it with these weights. Next: widen [bold]--weights[/] or --reference")


def show_lines(made: Mapping[str, tuple[Sequence[str], Shown]], what: str = "weight") -> None:
    """{whose: (labels, what was made)}: lines of text as a table; pictures aren't for it."""
    texts = {name: (labels, lines) for name, (labels, lines) in made.items() if texts_of(lines)}
    rows = [[name, *row] for name, (labels, lines) in texts.items() for row in zip(labels, lines, strict=True)]
    if rows:
        table("what is likeliest to be written", ("adapter", what, "text"), rows)


def texts_of(made: Shown) -> dict[str, list[str]]:
    """As JSON has it; nothing where there are pictures, or nothing."""
    return {"texts": list(made)} if any(isinstance(one, str) for one in made) else {}
