"""The facts of an adapter file: what it is, whom it is for, how large and how strong it is, what its header says.

Try it: python -c "from studio.look.card import read_card; print(read_card('ink.safetensors').data()['family'])"
"""

from __future__ import annotations

import io
import math
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from trainers.checkpoint import write_atomically
from trainers.errors import AdapterError
from trainers.lora import blocks
from trainers.lora.adapter import Adapter, content_digest, digest, refusals
from trainers.lora.algebra import energy
from trainers.lora.family import family_of, shapes_of
from trainers.lora.files import parts_on_disk
from trainers.lora.kinds import Entry
from trainers.lora.ledger import read
from trainers.lora.metadata import tag_counts

TAGS = 10  # the most frequent tags that are told


@dataclass(frozen=True)
class Card:
    """An adapter file's facts. `norms` are Frobenius norms of the change, per component, in units of the weights."""

    path: str
    name: str
    format: str
    family: str  # sd1, sd2, sdxl, lm; "" unknown
    base: str  # the name of what it was trained on; "" unknown
    trigger: str
    tags: dict[str, int]  # the most frequent of its training captions
    ranks: dict[int, int]  # rank -> modules
    alphas: dict[float, int]  # alpha -> modules
    dtypes: dict[str, int]  # kind of number -> modules
    modules: dict[str, dict[str, int]]  # component -> block -> modules
    norms: dict[str, float]
    parameters: int
    size: int  # bytes
    sha256: str
    content: str  # digest of the numbers alone
    converted: list[str]  # what isn't plain LoRA
    refused: list[str]
    metadata: dict[str, str]
    thumbnail: bytes | None

    def data(self) -> dict[str, Any]:
        """What JSON can say; the thumbnail by its size in bytes, and not once more among the metadata."""
        kept = {key: text for key, text in self.metadata.items() if key != "modelspec.thumbnail"}
        return {**vars(self), "metadata": kept, "thumbnail": len(self.thumbnail or b"")}


def read_card(path: str | os.PathLike[str]) -> Card:
    """Read a file or PEFT folder. AdapterError: it can't be read at all; what of it can't be is in `refused`."""
    reading = read(path)
    adapter, info = reading.adapter, reading.adapter.info
    pairs = adapter.pairs
    return Card(
        path=str(path),
        name=info.title or Path(path).stem,
        format=info.format,
        family=family_of(shapes_of(pairs), info.metadata),
        base=info.base_name or info.metadata.get("ss_sd_model_name", ""),
        trigger=info.trigger,
        tags=dict(tag_counts(info.metadata).most_common(TAGS)),
        ranks=_counted(pair.rank for pair in pairs.values()),
        alphas=_counted(pair.alpha for pair in pairs.values()),
        dtypes=_counted(str(pair.down.dtype).removeprefix("torch.") for pair in pairs.values()),
        modules=_by_block(adapter),
        norms=_norms(adapter),
        parameters=sum(pair.down.numel() + pair.up.numel() for pair in pairs.values()),
        size=sum(file.stat().st_size for file in parts_on_disk(Path(path))),
        sha256=digest(path),
        content=content_digest(adapter),
        converted=_conversions(reading.entries),
        refused=refusals(reading.entries),
        metadata=dict(sorted(info.metadata.items())),
        thumbnail=info.thumbnail,
    )


def _counted(values: Iterable[Any]) -> dict[Any, int]:
    """Most frequent first."""
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def _by_block(adapter: Adapter) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {}
    for path in adapter.pairs:
        found.setdefault(path.partition(".")[0], Counter())[blocks.block_of(path)] += 1
    return {
        part: {label: found[part][label] for label in sorted(found[part], key=blocks.order)} for part in sorted(found)
    }


def _norms(adapter: Adapter) -> dict[str, float]:
    sums: dict[str, float] = {}
    for path, pair in adapter.pairs.items():
        part = path.partition(".")[0]
        sums[part] = sums.get(part, 0.0) + energy(pair)
    return {part: math.sqrt(total) for part, total in sorted(sums.items())}


def _conversions(entries: Iterable[Entry]) -> list[str]:
    counts = Counter(entry.reason for entry in entries if entry.verdict == "converted")
    return [f"{count} modules: {reason}" for reason, count in sorted(counts.items())]


def save_thumbnail(card: Card, out: Path, overwrite: bool = False) -> None:
    """Write the header's picture as it is (.jpg, .jpeg) or as .png. AdapterError: there is none, or `out` is taken."""
    if not card.thumbnail:
        raise AdapterError(f"{card.path}: no thumbnail in its header")
    if out.suffix.lower() not in (".jpg", ".jpeg", ".png"):
        raise AdapterError(f"{out}: the thumbnail is saved as .jpg or .png")
    if out.exists() and not overwrite:
        raise AdapterError(f"{out} exists", next_step="name another --thumbnail, or add --overwrite")
    data = card.thumbnail
    try:
        if out.suffix.lower() == ".png":
            drawn = io.BytesIO()
            Image.open(io.BytesIO(data)).save(drawn, "PNG")
            data = drawn.getvalue()
        write_atomically(out, data)
    except OSError as error:  # a broken picture too: PIL's UnidentifiedImageError is one
        raise AdapterError(f"{out}: can't be written", [str(error)]) from None
