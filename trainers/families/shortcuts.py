"""Two shortcuts past a language model's own code, and the proof that they give what it gives.

One: texts packed into one row (families/packing). Two: logits of supervised tokens only, a chunk at a time, from the
states under the head (objective.token_losses). Both lean on how transformers' models are usually built. A model that is
built otherwise gets padding, or its own logits, and a note. Try: python -m pytest tests/test_shortcuts.py
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.families import packing
from trainers.objective import Head, token_losses, token_losses_of

ENDLESS = 2**31
LONGEST_PROBE = 1024  # tokens; what reaches further back than this is not tried


@dataclass(frozen=True)
class Found:
    """`longest`: texts up to so many tokens may be packed; `head`: the states under the head may be used."""

    longest: int
    head: bool
    notes: list[str]


def losses(model: Any, inputs: Mapping[str, Any], sources: Tensor, targets: Tensor, head: bool) -> Tensor:
    """-log p of `targets` (N,), each said at one of the B T places of the inputs, `sources` (N,); float32."""
    if not head:
        logits = model(**inputs, use_cache=False).logits.flatten(0, 1)[sources].float()
        return F.cross_entropy(logits, targets, reduction="none")
    hidden = states(model, inputs).flatten(0, 1).index_select(0, sources)  # (N, d)
    layer, shape = model.get_output_embeddings(), head_of(model)
    if type(layer) is nn.Linear and not layer.weight.requires_grad:
        return token_losses(hidden, targets, shape)
    return token_losses_of(lambda part: shape.bend(layer(part).float()), hidden, targets)


def states(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """What the head reads, (B, T, d)."""
    made: Tensor = model.base_model(**inputs, use_cache=False).last_hidden_state
    return made


def head_of(model: Any) -> Head:
    """The output layer, and what the model does to its logits, as far as its config says so by a known name."""
    config, layer = model.config.get_text_config(), model.get_output_embeddings()
    divisor = getattr(config, "logits_scaling", None) or 1.0  # Granite's
    factor = (getattr(config, "logit_scale", None) or 1.0) / divisor  # Cohere's
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma's
    return Head(layer.weight, getattr(layer, "bias", None), float(factor), cap)


@torch.no_grad()
def prove(model: Any, context: int, pack: bool, device: torch.device) -> Found:
    """Compare both shortcuts with the model's own logits on two or three short texts; `pack`: packing is asked for.

    Texts longer than a sliding window that is itself too long to be tried are never packed.
    """
    window = window_of(model)
    tried = window + 4 <= LONGEST_PROBE
    lengths = [min(n, context) for n in ([7, 12, window + 4] if tried else [7, 12])]
    texts = [torch.arange(n) * 7919 % model.get_input_embeddings().weight.shape[0] for n in lengths]
    alone = [{"input_ids": text[None].to(device)} for text in texts]
    wanted = [_own(model, inputs) for inputs in alone]
    close = 1e-3 if _exact(model, device) else 0.05  # of the logits' spread; a leak or another head is far off
    notes = []
    head = _gives(lambda: [_by_states(model, inputs) for inputs in alone], wanted, close)
    if not head:
        notes.append("the base's logits aren't those of its states under its head: all are made, which takes memory")
    if not pack:
        return Found(0, head, notes)
    row, forward = packing.packed(lengths, device), _by_states if head else _own
    wanted = [torch.cat([wanted[i][0] for i in row.order])[None]]
    packs = _gives(lambda: [forward(model, {"input_ids": row.lay(texts, device), **row.extras})], wanted, close)
    if not packs:
        notes.append("the base doesn't keep packed texts apart: they are padded instead")
    return Found((ENDLESS if tried else max(window, 12)) if packs else 0, head, notes)


def window_of(model: Any) -> int:
    """How far back some layers look, in tokens; 0: all layers see everything."""
    config = model.config.get_text_config()
    named = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((int(n) for n in named if n), default=0)


def _own(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    made: Tensor = model(**inputs, use_cache=False).logits.float()
    return made


def _by_states(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    return head_of(model).bend(model.get_output_embeddings()(states(model, inputs)).float())


def _exact(model: Any, device: torch.device) -> bool:
    """Whether it computes in float32 throughout, so that other shapes round alike."""
    whole = model.dtype == torch.float32 and not torch.is_autocast_enabled(device.type)
    return whole and not getattr(model, "is_quantized", False)


def _gives(forward: Callable[[], Sequence[Tensor]], wanted: Sequence[Tensor], close: float) -> bool:
    """Whether a shortcut gives these logits; models that were built otherwise raise nearly anything."""
    try:
        got = forward()
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return False
    pairs = list(zip(got, wanted, strict=True))
    return all(g.shape == w.shape and float((g - w).std()) <= close * float(w.std()) for g, w in pairs)
