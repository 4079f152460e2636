"""kohya's names: what A1111, Forge, ComfyUI, InvokeAI and Civitai exchange, LyCORIS' kinds among them.

SD 1.x and 2.x keep diffusers' module names, SDXL has the original (sgm) ones; both are read for every base.

Try it: python -c "from trainers.lora.formats.kohya import *; print(kohya_path('lora_unet_input_blocks_4_1_proj_in'))"
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from trainers.errors import AdapterError
from trainers.lora.formats.grouped import LYCORIS, Grouped, Tensors
from trainers.lora.formats.grouped import group as group_by
from trainers.lora.formats.names import canonical, split_suffix, text_only, unflatten
from trainers.lora.formats.sgm import from_original, to_original
from trainers.lora.pair import LoraPair

PREFIXES = {"lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder",
            "lora_te2_": "text_encoder_2"}  # fmt: skip
SUFFIXES = {".lora_down.weight": "down", ".lora_up.weight": "up", ".lora_mid.weight": "mid", ".alpha": "alpha",
            ".dora_scale": "dora_scale"} | {f".{role}": role for role in LYCORIS}  # fmt: skip

# What only SDXL has: a second text encoder, deeper transformers, a second embedding. (B-LoRA's files have the second.)
ONLY_SDXL = re.compile(r"^text_encoder_2\.|\.transformer_blocks\.[1-9]|^unet\.add_embedding\.")
SDXL_WORDS = 2048  # width of both text encoders' words side by side


def kohya_path(name: str) -> str | None:
    """ "lora_te_text_model_encoder_layers_0_mlp_fc1" -> "text_encoder.text_model.encoder.layers.0.mlp.fc1"."""
    for prefix, component in PREFIXES.items():
        if name.startswith(prefix):
            path = unflatten(name.removeprefix(prefix))
            return canonical(component, from_original(path) or path) if path else None
    return None


def kohya_name(path: str, sdxl: bool) -> str | None:
    """The name of a canonical path, None where it has none that could be read back."""
    component, _, inner = path.partition(".")
    prefixes = {
        "unet": "lora_unet_",
        "text_encoder": "lora_te1_" if sdxl else "lora_te_",
        "text_encoder_2": "lora_te2_",
    }
    if sdxl and component == "unet":
        inner = to_original(inner) or ""
    name = prefixes.get(component, "") + inner.replace(".", "_")
    return name if kohya_path(name) == path else None


def is_sdxl(pairs: Mapping[str, LoraPair]) -> bool:
    """Whether these modules can only be SDXL's; its UNet has another naming here."""
    return any(
        ONLY_SDXL.search(path) or (path.endswith(".attn2.to_k") and pair.down.shape[1] == SDXL_WORDS)
        for path, pair in pairs.items()
    )


def place(key: str) -> tuple[str, str] | None:
    """(canonical module path, role) of a key."""
    name, role = split_suffix(key, SUFFIXES)
    path = kohya_path(name)
    return (path, role) if path else None


def detect(keys: Iterable[str]) -> bool:
    return any(key.startswith(tuple(PREFIXES)) for key in keys)


def group(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Grouped:
    """A file's tensors by module and role; its scales stand in alpha tensors, not in the header."""
    return group_by(tensors, place)


def write(pairs: Mapping[str, LoraPair], dtype: torch.dtype) -> tuple[Tensors, dict[str, str]]:
    """Keys as kohya itself writes them, SDXL's UNet by its original names; AdapterError for paths without a name."""
    if why := text_only(pairs, "kohya"):
        raise AdapterError(why, next_step="save it as peft, a folder")
    sdxl = is_sdxl(pairs)
    names = {path: kohya_name(path, sdxl) for path in sorted(pairs)}
    if faults := [f"{path}: has no kohya name that could be read back" for path, name in names.items() if not name]:
        raise AdapterError("this adapter can't be written with kohya's names", faults, "save it as diffusers or peft")
    tensors: Tensors = {}
    for path, name in names.items():
        pair = pairs[path]
        tensors[f"{name}.lora_down.weight"] = pair.down.to(dtype)
        tensors[f"{name}.lora_up.weight"] = pair.up.to(dtype)
        tensors[f"{name}.alpha"] = _alpha_tensor(pair.alpha, dtype)
    return tensors, {}


def _alpha_tensor(alpha: float, dtype: torch.dtype) -> Tensor:
    """alpha in the file's dtype as kohya has it, but in float32 where that would round it (rsLoRA: 8 * sqrt(32))."""
    exact = torch.tensor(alpha, dtype=torch.float32)
    return exact.to(dtype) if exact.to(dtype).float() == exact else exact
