"""What a blend kept and what it lost, layer by layer: rows, sums per block, and the JSON in the file's header.

Energies are squared Frobenius norms of deltas. `kept + discarded` is all that the method asked for; `missed` is how far
the numbers in the file are from that, truncation and rounding together.

Try it: python -c "from studio.blend.certificate import *; print(Row(4, 9.0, 1.0, 1.1).in_file)"
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from studio.look.charts import bars
from trainers.checkpoint import write_atomically
from trainers.errors import AdapterError, RunError
from trainers.lora.blocks import block_of, order

KEY = "stylora.blend"  # the header's entry
DIGITS = 12  # significant, so that the last bits of a sum don't change the file


@dataclass(frozen=True)
class Row:
    """One layer, or several added up."""

    rank: int  # the largest
    kept: float
    discarded: float
    missed: float  # ||asked for - in the file||^2
    modules: int = 1
    lowest: int = 0  # the smallest rank; 0: as `rank`

    @property
    def energy(self) -> float:
        return self.kept + self.discarded

    @property
    def share(self) -> float:
        """Of the energy, kept by the truncation."""
        return self.kept / self.energy if self.energy else 1.0

    @property
    def in_file(self) -> float:
        """1 - missed / energy: what the file really holds, rounded as it is."""
        return 1 - self.missed / self.energy if self.energy else 1.0

    @property
    def ranks(self) -> str:
        low = self.lowest or self.rank
        return f"{self.rank}" if low == self.rank else f"{low} to {self.rank}"


def summed(rows: Iterable[Row]) -> Row:
    """Several rows as one."""
    rows = list(rows)
    return Row(
        max(row.rank for row in rows),
        sum(row.kept for row in rows),
        sum(row.discarded for row in rows),
        sum(row.missed for row in rows),
        sum(row.modules for row in rows),
        min(row.lowest or row.rank for row in rows),
    )


@dataclass(frozen=True)
class Certificate:
    """How a file was made, and what became of each layer."""

    facts: Mapping[str, Any]  # method, its parameters, dtype, adapters
    layers: Mapping[str, Row]

    @property
    def total(self) -> Row:
        return summed(self.layers.values())

    @property
    def parts(self) -> str:
        """0.6 ink - 0.4 neon."""
        terms = [(float(adapter["weight"]), str(adapter["name"])) for adapter in self.facts["adapters"]]
        text = "".join(f" {'-' if weight < 0 else '+'} {abs(weight):g} {name}" for weight, name in terms)
        return text.removeprefix(" + ").lstrip()

    def blocks(self) -> dict[str, Row]:
        """{block's label: row}, in the order in which a picture passes through them."""
        parts: dict[str, list[Row]] = defaultdict(list)
        for path, row in self.layers.items():
            parts[block_of(path)].append(row)
        return {label: summed(parts[label]) for label in sorted(parts, key=order)}

    def table(self) -> dict[str, Any]:
        """As JSON has it; a layer is [rank, kept, discarded, missed]."""
        total = self.total
        sums = {"kept": total.kept, "discarded": total.discarded, "missed": total.missed, "in_file": total.in_file}
        layers = {path: [row.rank, *map(_short, (row.kept, row.discarded, row.missed))]
                  for path, row in self.layers.items()}  # fmt: skip
        return {**self.facts, "total": {name: _short(value) for name, value in sums.items()}, "layers": layers}

    def text(self) -> str:
        return json.dumps(self.table(), sort_keys=True, separators=(",", ":"))


def of_header(metadata: Mapping[str, str]) -> Certificate:
    """The certificate in a file's header. Raises AdapterError: there is none, or none of ours."""
    try:
        table = json.loads(metadata[KEY])
        layers = {path: Row(*row) for path, row in table.pop("layers").items()}
        del table["total"]
    except KeyError as error:
        raise AdapterError(
            f"no certificate: the header has no {error}", next_step="blend or resize writes one"
        ) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise AdapterError(f"the header's {KEY} is no certificate: {error}") from None
    return Certificate(table, layers)


def chart(certificate: Certificate) -> Image.Image:
    """Per block, the share of the energy that the file doesn't hold: cut off or rounded away."""
    blocks, total = certificate.blocks(), certificate.total
    lost = [100 * (1 - row.in_file) for row in blocks.values()]
    title = f"{certificate.facts['method']} of {certificate.parts}: energy lost per block, %"
    note = f"{total.modules} modules, rank {total.ranks}; the file holds {total.in_file:.4%} of what was asked for"
    return bars(list(blocks), lost, title, note, ".2g")


def save_chart(certificate: Certificate, path: Path) -> None:
    """The chart as a PNG file, whole or not at all. Raises RunError."""
    stream = io.BytesIO()
    chart(certificate).save(stream, "PNG")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, stream.getvalue())
    except OSError as error:
        raise RunError(f"{path} can't be written: {error.strerror or error}", next_step="name another PNG") from None


def _short(number: float) -> float:
    return float(f"{number:.{DIGITS}g}")
