"""The load ledger: what became of every tensor of a file on one base (applied, converted or refused, and why).

Try it: python -c "from trainers.lora.ledger import *; print(read('ink.safetensors').entries[0])"
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from trainers.errors import AdapterError
from trainers.lora.adapter import Adapter, Reading, cure, read, refusals
from trainers.lora.family import FAMILIES, family_of, shapes_of
from trainers.lora.fit import Shape, fitting, misfits
from trainers.lora.kinds import Entry, WeightOf

__all__ = ["Entry", "Ledger", "Reading", "fitted", "ledger_of", "objection", "read"]


@dataclass(frozen=True)
class Ledger:
    """Entries for every tensor of a file, once its modules were compared with a base's."""

    entries: tuple[Entry, ...]

    @property
    def whole(self) -> bool:
        """Nothing is refused. (What a cut to a rank took is no refusal: `share` tells it.)"""
        return all(entry.verdict != "refused" for entry in self.entries)

    @property
    def share(self) -> float:
        """Energy applied over the energy that is known, 0..1: an upper bound where `unknown` isn't 0."""
        known = sum(entry.energy or 0.0 for entry in self.entries)
        applied = sum((e.energy or 0.0) - e.lost for e in self.entries if e.verdict in ("applied", "converted"))
        return applied / known if known else float(self.whole)

    @property
    def unknown(self) -> int:
        """How many tensors are refused whose energy can't be known: broken, of no known kind, DoRA without a base."""
        return sum(max(1, len(e.keys)) for e in self.entries if e.verdict == "refused" and e.energy is None)

    def data(self) -> dict[str, Any]:
        """What JSON can say."""
        counts: Counter[str] = Counter()
        for entry in self.entries:
            counts[entry.verdict] += len(entry.keys)
        facts = {"whole": self.whole, "share": self.share, "unknown": self.unknown, "tensors": dict(counts)}
        return {**facts, "entries": [asdict(entry) for entry in self.entries]}


def ledger_of(reading: Reading, shapes: Mapping[str, Shape]) -> Ledger:
    """The ledger of a file on a base with these weight shapes by canonical path."""
    wrong = misfits(reading.adapter.pairs, shapes)
    return Ledger(
        tuple(
            replace(entry, verdict="refused", reason=wrong[entry.path], lost=0.0)
            if entry.path in wrong and entry.verdict in ("applied", "converted")
            else entry
            for entry in reading.entries
        )
    )


def fitted(
    path: str | os.PathLike[str],
    shapes: Mapping[str, Shape],
    *,
    partial: bool = False,
    rank: int | None = None,
    weight_of: WeightOf | None = None,
) -> tuple[Adapter, Ledger]:
    """The adapter as it acts on a base with these shapes, and its ledger.

    AdapterError unless every tensor can be applied or `partial` says that what can is enough; also if nothing can.
    """
    reading = read(path, rank, weight_of)
    ledger = ledger_of(reading, shapes)
    if error := objection(path, reading, ledger, shapes, partial=partial):
        raise error
    return replace(reading.adapter, pairs=fitting(reading.adapter.pairs, shapes)), ledger


def objection(
    path: str | os.PathLike[str], reading: Reading, ledger: Ledger, shapes: Mapping[str, Shape], *, partial: bool
) -> AdapterError | None:
    """Why the adapter isn't to be used on this base: nothing of it fits, or not all does and `partial` isn't asked."""
    faults, pairs = refusals(ledger.entries), reading.adapter.pairs
    if not pairs:
        return AdapterError(f"{path}: nothing of this adapter can be applied", faults, cure(ledger.entries))
    if not fitting(pairs, shapes):
        made, base = family_of(shapes_of(pairs), reading.adapter.info.metadata), family_of(shapes)
        told = f", {FAMILIES[made]}" if made else ""
        against = f"; this one is {FAMILIES[base]}" if base and base != made else ""
        name = reading.adapter.info.base_name
        step = f"use the base it is for, {name}" if name else f"use the base it is for{told}"
        return AdapterError(f"{path}: made for another base{told}{against}", faults, step)
    if ledger.whole or partial:
        return None
    what = f"{path}: only part of this adapter can be applied to this base"
    return AdapterError(what, faults, f"use that part with `--partial`, or {cure(ledger.entries)}")
