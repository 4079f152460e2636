"""diffusers' names: `pytorch_lora_weights.safetensors`, in the four spellings of its history.

Try it: python -c "from trainers.lora.formats.diffusers import *; print(diffusers_path('unet.mid_block.x.to_q_lora'))"
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from trainers.errors import AdapterError
from trainers.lora.formats.grouped import Grouped, Tensors, alpha_is_rank
from trainers.lora.formats.grouped import group as group_by
from trainers.lora.formats.loraconfig import alphas, fields_of
from trainers.lora.formats.names import (
    COMPONENTS,
    TEXT_ROOT,
    canonical,
    live_names,
    split_suffix,
    text_only,
)
from trainers.lora.pair import LoraPair

DIFFUSERS_HEADER = "lora_adapter_metadata"  # JSON: "<component>.<field of peft's LoraConfig>"
SUFFIXES = {
    ".lora_A.weight": "down", ".lora_B.weight": "up",
    ".lora.down.weight": "down", ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down", ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down", "_lora.up.weight": "up",
    ".alpha": "alpha",
    ".lora_magnitude_vector": "dora_scale", ".lora_magnitude_vector.weight": "dora_scale",
}  # fmt: skip
# Text encoders get the spelling of diffusers' own training scripts: load_lora_weights (0.42) refuses `lora_A` in a text
# encoder that has none on its attention ("Could not automatically infer state dict type").
HALVES = {"unet": (".lora_A.weight", ".lora_B.weight")}
HALVES |= dict.fromkeys(COMPONENTS[1:], (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"))
OLD_TEXT = {".to_q": ".q_proj", ".to_k": ".k_proj", ".to_v": ".v_proj", ".to_out": ".out_proj"}
UNET_ROOTS = ("down_blocks.", "mid_block.", "up_blocks.")  # the oldest files have no "unet." in front


def diffusers_path(stem: str) -> str | None:
    """The canonical path of a diffusers key without its suffix; None where it names no component of ours."""
    if stem.startswith(UNET_ROOTS):
        stem = f"unet.{stem}"
    component, _, path = stem.partition(".")
    if component not in COMPONENTS or not path:
        return None
    path = path.replace(".processor.", ".").removesuffix("_lora")
    if component == "unet":
        return f"unet.{path}.0" if path.endswith(".to_out") else f"unet.{path}"
    path = next((path.removesuffix(old) + new for old, new in OLD_TEXT.items() if path.endswith(old)), path)
    return canonical(component, path)


def place(key: str) -> tuple[str, str] | None:
    """(canonical module path, role) of a key."""
    stem, role = split_suffix(key, SUFFIXES)
    path = diffusers_path(stem)
    return (path, role) if path else None


def detect(keys: Iterable[str]) -> bool:
    return any((found := place(key)) and found[1] != "alpha" for key in keys)


def group(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Grouped:
    """A file's tensors by module and role; its scales stand in the header entry DIFFUSERS_HEADER."""
    grouped = group_by(tensors, place)
    grouped.alpha_of = _header_alphas(metadata.get(DIFFUSERS_HEADER), grouped.faults)
    return grouped


def _header_alphas(text: str | None, faults: list[str]) -> Callable[[str, int], float]:
    """alpha by module path as the header's LoraConfig fields give it; alpha = rank where they are silent."""
    try:
        fields = dict(json.loads(text)) if text else {}
        of_component = {name: alphas(_of_component(fields, name)) for name in COMPONENTS}
    except (ValueError, TypeError, RecursionError, re.error) as error:
        faults.append(f"header entry {DIFFUSERS_HEADER} isn't the JSON of LoraConfig fields: {error}")
        return alpha_is_rank

    def alpha_of(path: str, rank: int) -> float:
        component, _, inner = path.partition(".")
        return of_component[component](live_names(inner), rank)

    return alpha_of


def _of_component(fields: Mapping[str, Any], component: str) -> dict[str, Any]:
    start = f"{component}."
    return {key.removeprefix(start): value for key, value in fields.items() if key.startswith(start)}


def write(pairs: Mapping[str, LoraPair], dtype: torch.dtype) -> tuple[Tensors, dict[str, str]]:
    """The newest spelling that diffusers loads, with every module's rank and alpha in the header."""
    if why := text_only(pairs, "diffusers"):
        raise AdapterError(why, next_step="save it as peft, a folder")
    tensors: Tensors = {}
    header: dict[str, Any] = {}
    if faults := [f"{path}: its component is none of {', '.join(COMPONENTS)}" for path in sorted(pairs)
                  if diffusers_path(path) != path]:  # fmt: skip
        raise AdapterError("this adapter can't be written with diffusers' names", faults)
    for component in COMPONENTS:
        inner = {p.removeprefix(f"{component}."): pair for p, pair in pairs.items() if p.startswith(f"{component}.")}
        for path, pair in inner.items():
            down, up = (f"{component}.{path}{half}" for half in HALVES[component])
            tensors[down], tensors[up] = pair.down.to(dtype), pair.up.to(dtype)
        # A header that speaks of one component only would give the other peft's defaults: all or none.
        if inner:
            header |= {f"{component}.{field}": value for field, value in _header_fields(component, inner).items()}
    return tensors, {DIFFUSERS_HEADER: json.dumps(header, sort_keys=True)}


def _header_fields(component: str, pairs: Mapping[str, LoraPair]) -> dict[str, Any]:
    """LoraConfig's fields; a text encoder's paths without the level `text_model.` and without "^".

    diffusers strips the level from the tensors' names (transformers 5 has none) but not from the fields. peft matches
    whole tails of paths, so names without it fit with and without the level.
    """
    scales = {path.removeprefix(TEXT_ROOT): (pair.rank, pair.alpha) for path, pair in pairs.items()}
    return fields_of(scales, anchored=component == "unet")
