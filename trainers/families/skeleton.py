"""A language model without its numbers: where each stored tensor goes in the live model, by transformers' own rules.

Files and live models don't always agree: GPT-2's files may lack `transformer.`, some architectures have been renamed
since, and a few are cut or fused when they are loaded. What is fused can be copied, but nothing can be added to it.

Try it: python -c "from trainers.families.skeleton import *; print(skeleton(Path('sample_data/bases/tiny-lm'), []))"
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming, rename_source_key
from transformers.pytorch_utils import Conv1D

from trainers.bases import reading
from trainers.errors import BaseError
from trainers.lora.fit import Shape, candidates, weight_shape


@dataclass(frozen=True)
class Spot:
    """A tensor of the live model that is a stored one, or the `part`-th of `of` equal blocks of its rows."""

    name: str
    part: int = 0
    of: int = 1


@dataclass(frozen=True)
class Skeleton:
    """`tensors`: the files' name -> what it is live (nothing: unused, or fused with others when it is loaded)."""

    tensors: dict[str, list[Spot]]
    layers: dict[str, Shape]  # live path -> (out, in) of all that can carry LoRA
    turned: frozenset[str]  # live paths of Conv1D, which are stored as (in, out)
    tied: frozenset[str]  # live paths whose weight is another module's


def skeleton(folder: Path, keys: Iterable[str]) -> Skeleton:
    """The skeleton of a transformers folder whose weight files hold `keys`. Raises BaseError: it can't be one."""
    model = _empty(folder)
    names = model.state_dict().keys()
    tied = frozenset(name.removesuffix(".weight") for name in model.all_tied_weights_keys)
    turned = frozenset(path for path, module in model.named_modules() if isinstance(module, Conv1D))
    layers = {path: weight_shape(module) for path, module in candidates(model).items()}
    rules = get_model_conversion_mapping(model)
    return Skeleton({key: _spots(key, model, rules, names) for key in keys}, layers, turned, tied)


def _empty(folder: Path) -> Any:
    """The live model with no memory behind its tensors."""
    with reading(folder, "config"):
        if "quantization_config" in json.loads((folder / "config.json").read_text()):
            step = "name the base in 16 bit: what is packed can neither be added to nor read tensor by tensor"
            raise BaseError(f"base {folder}: its weights are stored quantised", next_step=step)
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model


def _spots(key: str, model: Any, rules: list[Any], names: Iterable[str]) -> list[Spot]:
    """What a stored tensor is live: as transformers' loading goes about it."""
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    known, prefix = dict.fromkeys(names, True), model.base_model_prefix
    name, pattern = rename_source_key(key, renamings, converters, prefix, known)
    if name not in known and key in known:
        name, pattern = rename_source_key(key, [], [], prefix, known)
    if pattern is None:
        return [Spot(name)] if name in known else []
    rule = {source: one for one in converters for source in one.source_patterns}[pattern]
    return [spot for spot in _blocks(name, rule) if spot.name in known]


def _blocks(name: str, rule: WeightConverter) -> Iterator[Spot]:
    """Several live tensors where a stored one is cut into blocks of rows; nothing for any other conversion."""
    (step, *more), names = rule.operations, rule.target_patterns
    if isinstance(step, Chunk) and (step.dim, step.num_shards_attribute, more) == (0, None, []):
        yield from (Spot(name.replace(names[0], other), part, len(names)) for part, other in enumerate(names))
