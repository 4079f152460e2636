"""Put LoRA into a model and take the adapter out again. The one door to peft.

LoRA (Hu et al. 2021): y = W x + scale * up (down x), scale = alpha / rank.
rsLoRA (Kalajdzievski 2023): scale = alpha / sqrt(rank).
DoRA (Liu et al. 2024): the weight is m (W + scale * up down) / ||W + scale * up down||, a norm and an m per output.
`down` starts random (Kaiming uniform), `up` at zero, m at the norm of W's rows, so a fresh injection changes nothing.

Try it: python -c "from trainers.lora.inject import *; print(Shape(16, rslora=True).scale, *PRESETS['model'])"
"""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from trainers.errors import ConfigError
from trainers.lora.fit import candidates, canonical, is_transposed
from trainers.lora.joint import joint
from trainers.lora.pair import LoraPair

# Within a language model's decoder layers, whatever their words are: Llama's self_attn.q_proj, GPT-2's attn.c_attn,
# GPT-NeoX' attention.query_key_value, Falcon's self_attention.dense; mlp.up_proj, mlp.c_fc, OPT's fc1.
_LAYER = r"\.(layers|h|blocks)\.\d+\."
_ATTENTION = r"[\w.]*(attn|attention)\.[\w.]+$"
_FEED_FORWARD = r"([\w.]*(mlp|feed_forward|ffn|moe)\.[\w.]+|fc[12])$"
_NO_ROUTER = r"(?!([\w.]+\.)?(\w+_)?(gate|router)$)"  # what chooses among experts

PRESETS: dict[str, dict[str, str]] = {
    "unet": {
        "attention": r"\.attn[12]\.(to_q|to_k|to_v|to_out\.0)$",
        "attention+ff": r"\.(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2))$",
        "all-linear": r"\.transformer_blocks\..*|\.(proj_in|proj_out|time_emb_proj)$",
    },
    "text_encoder": {
        "attention": r"\.self_attn\.(q_proj|k_proj|v_proj|out_proj)$",
        "attention+ff": r"\.(self_attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.fc[12])$",
        "all-linear": r"\.layers\..*",
    },
    "model": {
        "attention": rf"{_LAYER}{_ATTENTION}",
        "attention+ff": rf"{_LAYER}{_NO_ROUTER}({_ATTENTION}|{_FEED_FORWARD})",
        "all-linear": rf"{_LAYER}{_NO_ROUTER}.*",
    },
}


@dataclass(frozen=True)
class Shape:
    """How LoRA goes into one component. `alpha` None means equal to the rank, so that the scale is 1."""

    rank: int
    alpha: float | None = None
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False

    @property
    def scale(self) -> float:
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def targets(component: str, model: nn.Module, choice: str | Sequence[str]) -> list[str]:
    """Paths in `model` that a preset or a list of regular expressions chooses.

    Raises ConfigError if a pattern is broken or matches nothing: a target that isn't there must not pass in silence;
    also for an output layer that shares its weight with the embedding, which LoRA can't change apart from it.
    """
    presets, there = PRESETS[component], candidates(model)
    if isinstance(choice, str) and choice in presets:
        linear = {path for path, module in there.items() if not isinstance(module, nn.Conv2d) or "proj_" in path}
        if preset := sorted(path for path in linear if re.search(presets[choice], f".{path}")):
            return preset
    patterns = [choice] if isinstance(choice, str) else list(choice)
    paths, faults, chosen = list(there), [], set()
    for pattern in patterns:
        try:
            found = {path for path in paths if re.search(pattern, f"{component}.{path}")}
        except re.error as error:
            faults.append(f"{pattern!r} is no regular expression: {error}")
            continue
        if not found:
            faults.append(f"{pattern!r} matches no linear layer or convolution of the {component}")
        chosen |= found
    faults += [f"{path} is the embedding's own weight: LoRA can't change one apart from the other"
               for path in sorted(chosen & _tied(model))]  # fmt: skip
    if faults:
        example = f"{component}.{paths[len(paths) // 2]}"
        raise ConfigError(
            f"LoRA can't be put into the {component} as asked",
            faults,
            f"use one of {', '.join(presets)}, or patterns that match paths such as {example}",
        )
    return sorted(chosen)


def _tied(model: nn.Module) -> set[str]:
    """The linear layers whose weight is an embedding's."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return {path for path, module in candidates(model).items() if id(module.weight) in embeddings}


def inject(component: str, model: nn.Module, paths: Sequence[str], shape: Shape, seed: int) -> None:
    """Put fresh, trainable float32 LoRA into `model` at `paths`; everything else of it is frozen.

    Each `down` is drawn from a generator seeded by (seed, path), so one target more changes no other's start.
    """
    model.requires_grad_(False)
    alpha = shape.scale * shape.rank  # peft is told plain LoRA's alpha: one meaning of scale everywhere
    config = LoraConfig(
        r=shape.rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=shape.dropout,
        use_dora=shape.dora,
        target_modules=list(paths),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set")  # peft sees by itself which are GPT-2's
        inject_adapter_in_model(config, model)
    for path, layer in layers(model):
        down, up = _halves(layer, "default")
        seed_bytes = hashlib.sha256(f"{seed}/{canonical(component, path)}".encode()).digest()[:8]
        generator = torch.Generator().manual_seed(int.from_bytes(seed_bytes, "little"))
        start = torch.empty(down.shape)
        nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
        down.data, up.data = start.to(down.device), torch.zeros(up.shape, device=up.device)
        if shape.dora:  # peft took the norm of W in the base's number format
            m: Any = layer.lora_magnitude_vector["default"]
            m.update_layer(base_layer=layer.get_base_layer(), lora_A=down, lora_B=up, scaling=shape.scale)
        elif not isinstance(layer.get_base_layer(), nn.Conv2d):
            layer.lora_variant["default"] = _Fused  # type: ignore[assignment]
            layer.cast_input_dtype_enabled = False  # peft would cast each input to float32: a pass over memory
            if component == "model" and not shape.dropout and _is_plain(layer.get_base_layer()):
                layer.forward = partial(_joined, layer)  # type: ignore[attr-defined]


def _is_plain(base: nn.Module) -> bool:
    """Whether a layer does nothing but x W^T + b, its weight being in no packed form."""
    return type(base) is nn.Linear or is_transposed(base)


def _joined(layer: Any, x: Tensor, *args: object, **kwargs: object) -> Tensor:
    """A plain layer's forward in peft's place, unless somebody else has a say in it."""
    base = layer.get_base_layer()
    if layer.disable_adapters or base._forward_hooks:
        out: Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return out
    weight = base.weight.T if is_transposed(base) else base.weight
    return joint(x, weight, base.bias, *_halves(layer, "default"), layer.scaling["default"])


class _Fused:
    """The LoRA sum of a linear layer with the base's output as addmm's summand: two passes over memory fewer.

    In peft's place for variants of LoRA. A training step on a small base takes 6% less than with peft's own sum.
    """

    @staticmethod
    def forward(module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **_: object) -> Tensor:
        """Input (…, in) and the base's output (…, out) -> (…, out), in the output's number format."""
        down, up = _halves(module, active_adapter)
        low = F.linear(module.lora_dropout[active_adapter](x).flatten(0, -2), down.to(x.dtype))
        add, factor = up.T.to(result.dtype), module.scaling[active_adapter]
        return torch.addmm(result.flatten(0, -2), low.to(result.dtype), add, alpha=factor).view(result.shape)


def layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """(path, peft layer) of every module that carries LoRA."""
    for path, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield path, module


def _halves(layer: LoraLayer, name: str) -> tuple[nn.Parameter, nn.Parameter]:
    """The (down, up) weights of one of a layer's adapters."""
    down, up = (getattr(side[name], "weight") for side in (layer.lora_A, layer.lora_B))  # noqa: B009
    return down, up


def _magnitude(layer: LoraLayer) -> list[nn.Parameter]:
    """DoRA's m of a layer, (out,); nothing where it has plain LoRA."""
    held = layer.lora_magnitude_vector
    return [held["default"].get_parameter("weight")] if "default" in held else []


def trainable(component: str, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Named LoRA parameters: `<canonical path>.down`, `.up`, of DoRA also `.magnitude`."""
    found = []
    for path, layer in layers(model):
        name, (down, up) = canonical(component, path), _halves(layer, "default")
        found += [(f"{name}.down", down), (f"{name}.up", up)]
        found += [(f"{name}.magnitude", own) for own in _magnitude(layer)]
    return found


def widths(component: str, model: nn.Module) -> list[int]:
    """Input width of each module that carries LoRA; a kernel's places count."""
    return [down[0].numel() for name, down in trainable(component, model) if name.endswith(".down")]


def extract(component: str, model: nn.Module) -> dict[str, LoraPair]:
    """Copies of the LoRA factors on the CPU in float32, alpha so that alpha / rank is the scale in use."""
    pairs = {}
    for path, layer in layers(model):
        down, up = (_copy(half) for half in _halves(layer, "default"))
        pairs[canonical(component, path)] = LoraPair(down, up, layer.scaling["default"] * down.shape[0])
    return pairs


def magnitudes(component: str, model: nn.Module) -> dict[str, Tensor]:
    """Copies of DoRA's magnitudes by canonical path, (out,), on the CPU in float32; empty for plain LoRA."""
    return {canonical(component, path): _copy(own) for path, layer in layers(model) for own in _magnitude(layer)}


def _copy(weight: Tensor) -> Tensor:
    return weight.detach().to("cpu", torch.float32, copy=True).contiguous()


def remove(model: nn.Module) -> None:
    """Take all LoRA off: every module is again the very one that was there before."""
    for path, layer in list(layers(model)):
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
    model._hf_peft_config_loaded = False  # type: ignore[assignment]
