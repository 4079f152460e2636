"""Stable Diffusion's original (CompVis, sgm) names of the UNet's parts, and diffusers' names of the same: both ways.

SDXL adapters for kohya's tools and all single-file checkpoints use the original names. Pure string functions over
module paths or weight names (a tail such as `.weight` is kept), without "unet." or CHECKPOINT_PREFIX in front.

Try it: python -c "from trainers.lora.formats.sgm import *; print(to_original('up_blocks.1.upsamplers.0.conv', SD))"
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

CHECKPOINT_PREFIX = "model.diffusion_model."  # in front of the UNet's names in a single-file checkpoint


@dataclass(frozen=True)
class Layout:
    """What of a UNet's shape its original names depend on."""

    per_level: int = 2  # residual blocks of a level on the way down; one more on the way up
    bare_up: frozenset[int] = frozenset()  # up levels without attention: there the upsampler stands a place earlier


SD = Layout(bare_up=frozenset({0}))  # SD 1.x and 2.x
SDXL = Layout()  # its third up level has no attention either, but no upsampler

# modules outside the blocks: diffusers' name, the original one
OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}

_LEVEL = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_BLOCK = re.compile(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.+)")


def to_original(path: str, layout: Layout = SDXL) -> str | None:
    """ "down_blocks.1.attentions.0.proj_in" -> "input_blocks.4.1.proj_in"; None for what the original UNet lacks."""
    if outside := _swapped(path, OUTSIDE):
        return outside
    if path.startswith("mid_block."):
        kind, inner = _split(path.removeprefix("mid_block."), 2)
        return _joined("middle_block", MIDDLE.get(kind), _swapped(inner, RESNET) if "resnets" in kind else inner)
    if not (found := _LEVEL.fullmatch(path)):
        return None
    way, level, kind, index, inner = found[1], int(found[2]), found[3], int(found[4]), found[5]
    side, first = ("input_blocks", 1) if way == "down" else ("output_blocks", 0)
    first += level * (layout.per_level + 1)
    if index >= layout.per_level + (way == "up"):
        return None
    match kind:
        case "resnets":
            return _joined(f"{side}.{first + index}", "0", _swapped(inner, RESNET))
        case "attentions":
            return _joined(f"{side}.{first + index}", "1", inner)
        case "downsamplers":
            return _joined(f"{side}.{first + layout.per_level}", "0", _swapped(inner, {"conv": "op"}))
        case _:
            return _joined(f"{side}.{first + layout.per_level}", "1" if level in layout.bare_up else "2", inner)


def from_original(path: str, per_level: int = 2) -> str | None:
    """ "input_blocks.4.1.proj_in" -> "down_blocks.1.attentions.0.proj_in"; None for a name of no original kind."""
    if outside := _swapped(path, _turned(OUTSIDE)):
        return outside
    if path.startswith("middle_block."):
        place, inner = _split(path.removeprefix("middle_block."), 1)
        kind = _turned(MIDDLE).get(place)
        return _joined("mid_block", kind, inner if place == "1" else _swapped(inner, _turned(RESNET)))
    if not (found := _BLOCK.fullmatch(path)):
        return None
    way, block, place, inner = found[1], int(found[2]) - (found[1] == "input"), found[3], found[4]
    level, index = divmod(block, per_level + 1)
    side = f"{'down' if way == 'input' else 'up'}_blocks.{level}"
    if level < 0:
        return None
    if way == "input" and index == per_level:  # the last block of a level on the way down is its downsampler
        return _joined(side, "downsamplers.0", _swapped(inner, {"op": "conv"})) if place == "0" else None
    if way == "output" and index == per_level and place in ("1", "2") and _split(inner, 1)[0] == "conv":
        return _joined(side, "upsamplers.0", inner)
    if place == "0":
        return _joined(side, f"resnets.{index}", _swapped(inner, _turned(RESNET)))
    return _joined(side, f"attentions.{index}", inner) if place == "1" else None


def layout_of(names: Iterable[str]) -> Layout:
    """The layout of a UNet whose weight names or module paths, in diffusers' naming, these are."""
    found = [match for name in names if (match := _LEVEL.match(name))]
    residual = [int(match[4]) for match in found if (match[1], match[3]) == ("down", "resnets")]
    levels = {int(match[2]) for match in found if match[1] == "up"}
    attending = {int(match[2]) for match in found if (match[1], match[3]) == ("up", "attentions")}
    return Layout(max(residual, default=1) + 1, frozenset(levels - attending))


def _turned(names: dict[str, str]) -> dict[str, str]:
    return {theirs: ours for ours, theirs in names.items()}


def _split(path: str, words: int) -> tuple[str, str]:
    """The first `words` words of a path, and the rest."""
    parts = path.split(".")
    return ".".join(parts[:words]), ".".join(parts[words:])


def _swapped(path: str, names: dict[str, str]) -> str | None:
    """`path` with the name it starts with replaced; None where it starts with none of `names`."""
    for words in (3, 2, 1):
        head, tail = _split(path, words)
        if head in names:
            return f"{names[head]}.{tail}" if tail else names[head]
    return None


def _joined(*parts: str | None) -> str | None:
    """The parts as one path, None where one of them is."""
    return None if None in parts else ".".join(part for part in parts if part)
