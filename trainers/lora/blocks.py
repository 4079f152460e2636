"""Which block of a model a module belongs to. UNets, in the words people's tools use: IN00 … IN11, MID, OUT00 … OUT11.

The numbers are those of the original (CompVis) layout, which has one input block per residual block and downsampler:
`down_blocks.i.*.j` is IN(1 + 3 i + j), `up_blocks.i.*.j` is OUT(3 i + j). Text encoders are BASE and BASE2 (SDXL).
A language model's decoder layers are L00 … L127.

Try it: python -c "from trainers.lora.blocks import *; print(parse_blocks('IN=0.5, MID=0, OUT03-OUT05=1.2'))"
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise

from trainers.errors import AdapterError

PER_LEVEL = 3  # two residual blocks and a sampler on the way down, three residual blocks on the way up
ENCODERS = {"text_encoder": "BASE", "text_encoder_2": "BASE2"}
GROUPS = {head: tuple(f"{head}{n:02}" for n in range(many)) for head, many in (("IN", 12), ("OUT", 12), ("L", 128))}
PICTURES = (*ENCODERS.values(), *GROUPS["IN"], "MID", *GROUPS["OUT"], "OTHER")  # the data's way through the model
TEXTS = (*GROUPS["L"], "OTHER")
LABELS = (*PICTURES[:-1], *TEXTS)
KNOWN = "BASE, BASE2, IN00 to IN11, MID, OUT00 to OUT11, OTHER; of language models L00 to L127, OTHER"
_LEVEL = re.compile(r"^(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)")
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")  # Llama's, GPT-2's, MPT's word for the decoder layers


def block_of(path: str) -> str:
    """The label of the block a canonical module path lies in; OTHER for those of no block (time embedding, …)."""
    component, _, inner = path.partition(".")
    if component in ENCODERS:
        return ENCODERS[component]
    if component == "model":
        layer = _LAYER.search(inner)
        return GROUPS["L"][int(layer[1])] if layer and int(layer[1]) < len(GROUPS["L"]) else "OTHER"
    if inner.startswith("mid_block."):
        return "MID"
    if inner.startswith("conv_in"):
        return "IN00"
    found = _LEVEL.match(inner)
    if not found:
        return "OTHER"
    way, level, kind, index = found[1], int(found[2]), found[3], int(found[4])
    number = PER_LEVEL * level + (2 if kind.endswith("samplers") else index)
    label = f"IN{1 + number:02}" if way == "down" else f"OUT{number:02}"
    return label if label in LABELS else "OTHER"


def order(label: str) -> tuple[int, str]:
    """A sort key: text encoders, the way down, the middle, the way up; decoder layers; the rest."""
    return LABELS.index(label) if label in LABELS else len(LABELS), label


# --- lists of factors -------------------------------------------------------------------------------------------------


def parse_blocks(text: str) -> dict[str, float]:
    """ "IN00-IN05=0.5, MID=0, OUT=1" -> {label: factor}, in the order of LABELS.

    An entry names a label, a range of labels or a group (IN, OUT, L); a later entry overrides what an earlier one says
    of the same label, so that "IN=0.5, IN03=1" works. Raises AdapterError with every entry that can't be read.
    """
    faults: list[str] = []
    entries = [entry.strip() for entry in text.split(",")] if text.strip() else []
    factors: dict[str, tuple[str, float]] = {}
    for entry in entries:
        name, _, number = entry.partition("=")
        labels, factor = _labels(name.strip().upper()), to_number(number)
        if not labels:
            faults.append(f"{entry!r}: {name.strip()!r} is no block, nor a range of blocks in their order")
        if factor is None:
            faults.append(f"{entry!r}: {number.strip()!r} is no factor")
        factors |= dict.fromkeys(labels, (entry, factor or 0.0))
    if not faults:
        acting = {entry for entry, _ in factors.values()}
        faults = [f"{entry!r}: later entries override all of it" for entry in entries if entry not in acting]
    if faults:
        raise AdapterError(f"blocks {text!r} can't be read", faults, f"blocks are {KNOWN}; write IN=0.5,MID=0,OUT03=1")
    return {label: factors[label][1] for label in LABELS if label in factors}


def format_blocks(blocks: Mapping[str, float]) -> str:
    """The shortest list that `parse_blocks` reads back as the same factors: "IN=0.5,MID=0,OUT03-OUT05=1.2"."""
    return ",".join(f"{name}={number_text(factor)}" for name, factor in _runs(blocks))


def _labels(name: str) -> tuple[str, ...]:
    if name in GROUPS:
        return GROUPS[name]
    first, dash, last = (part.strip() for part in name.partition("-"))
    last = last if dash else first
    way = next((way for way in (PICTURES, TEXTS) if {first, last} <= set(way)), ())
    return way[way.index(first) : way.index(last) + 1] if way else ()


def _runs(blocks: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """(label, group or range of one group, its factor): neighbours in one group with equal factors are one."""
    there = [label for label in LABELS if label in blocks]
    starts = [0, *(k for k, pair in enumerate(pairwise(there), 1) if not _neighbours(*pair, blocks)), len(there)]
    for start, end in pairwise(starts):
        if run := tuple(there[start:end]):
            group = next((head for head, labels in GROUPS.items() if labels == run), "")
            yield group or (run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}"), blocks[run[0]]


def _neighbours(one: str, two: str, blocks: Mapping[str, float]) -> bool:
    together = any({one, two} <= set(labels) for labels in GROUPS.values())
    return together and LABELS.index(two) == LABELS.index(one) + 1 and blocks[one] == blocks[two]


def to_number(text: str) -> float | None:
    """A finite number, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def number_text(number: float) -> str:
    """The shortest text that reads back as the same number: 1, 0.5, -0.25."""
    short = f"{number:g}"
    return short if float(short) == number else repr(float(number))
