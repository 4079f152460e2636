"""PEFT's names: a folder with `adapter_model.safetensors` and `adapter_config.json`, as PeftModel reads and writes it.

A PEFT folder is of one model. An adapter of several components is a folder of such folders, one per component (`unet/`,
`text_encoder/`, …), each loadable by `PeftModel.from_pretrained(unet, folder / "unet")`. As data that is
`{subfolder: (tensors, config)}`, `config` being the parsed adapter_config.json and "" the subfolder of a folder that is
itself PEFT's:

    group_folder(parts) -> Grouped       write_folder(pairs, dtype) -> parts

Language models have the component "model" ("model.model.layers.0.self_attn.q_proj") and are written to "". GPT-2 keeps
its weights transposed (fan_in_fan_out), but its adapters have lora_A and lora_B as all others.

Try it: python -c "from trainers.lora.formats.peft import *; print(component_of(['mid_block.attentions.0.proj_in']))"
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trainers.errors import AdapterError
from trainers.lora.formats.grouped import Grouped, Tensors
from trainers.lora.formats.loraconfig import alphas, fields_of
from trainers.lora.formats.names import COMPONENTS, MODEL, TEXT_ROOT, canonical, live_names, split_suffix
from trainers.lora.formats.names import CONFIG_FILE as CONFIG_FILE
from trainers.lora.formats.names import TENSORS_FILE as TENSORS_FILE
from trainers.lora.pair import LoraPair

Config = dict[str, Any]
Parts = dict[str, tuple[Tensors, Config]]  # subfolder ("" for the folder itself) -> its tensors, its config

START = "base_model.model."
SUFFIXES = {
    ".lora_A.weight": "down", ".lora_B.weight": "up",
    ".lora_A.default.weight": "down", ".lora_B.default.weight": "up",  # a bare state_dict keeps the adapter's name
    ".lora_magnitude_vector": "dora_scale", ".lora_magnitude_vector.weight": "dora_scale",
    ".lora_magnitude_vector.default.weight": "dora_scale",
}  # fmt: skip

# component -> (class of the model, its module), as PEFT notes them in the config
CLASSES = {
    "unet": ("UNet2DConditionModel", "diffusers.models.unets.unet_2d_condition"),
    "text_encoder": ("CLIPTextModel", "transformers.models.clip.modeling_clip"),
    "text_encoder_2": ("CLIPTextModelWithProjection", "transformers.models.clip.modeling_clip"),
}
ROOTS = {
    "unet": ("down_blocks.", "mid_block.", "up_blocks.", "conv_in", "conv_out", "time_embedding.", "add_embedding."),
    "text_encoder": (TEXT_ROOT, "encoder.layers.", "text_projection"),
}


def component_of(paths: Iterable[str], config: Mapping[str, Any] | None = None) -> str:
    """Whose adapter a PEFT folder is, by the model's class or task in its config, else by the paths in the model."""
    if (config or {}).get("task_type") == "CAUSAL_LM":
        return MODEL
    said = (config or {}).get("auto_mapping")
    name = said.get("base_model_class") if isinstance(said, Mapping) else None
    by_class = next((component for component, (kind, _) in CLASSES.items() if kind == name), None)
    if by_class:
        return by_class
    paths = list(paths)
    return next((component for component, roots in ROOTS.items() if any(p.startswith(roots) for p in paths)), MODEL)


def detect(keys: Iterable[str]) -> bool:
    return any(key.startswith(START) and split_suffix(key, SUFFIXES)[1] for key in keys)


def group(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Grouped:
    """A tensors' file that lost its folder: its scales can't be known, which is a fault."""
    grouped = _grouped({"": (dict(tensors), {})})
    grouped.faults.append(f"its alphas stand in {CONFIG_FILE}: give the folder that holds both files")
    return grouped


def group_folder(parts: Mapping[str, tuple[Tensors, Config]]) -> Grouped:
    """The tensors of a folder's parts by module and role, scales by each part's own config.

    A subfolder's name is its component where it is one of COMPONENTS; else the module paths tell. `Grouped.keys` are
    "subfolder/key". Faults: everything in a config that plain LoRA and DoRA don't cover.
    """
    grouped = _grouped(parts)
    for folder, (_, config) in parts.items():
        where = f"{folder}/{CONFIG_FILE}" if folder else CONFIG_FILE
        grouped.faults += [f"{where}: {fault}" for fault in config_faults(config)]
    return grouped


def write_folder(
    pairs: Mapping[str, LoraPair], dtype: torch.dtype, magnitudes: Mapping[str, Tensor] | None = None, base: str = ""
) -> Parts:
    """One part per component, every module's rank and alpha exact by rank_pattern and alpha_pattern.

    With `magnitudes` (canonical path -> (out,)), of all pairs, it is DoRA. `base` is the hub id or name of the base;
    a path of this machine isn't written. AdapterError: modules without a name, or without a magnitude.
    """
    magnitudes = magnitudes or {}
    inner: dict[str, dict[str, LoraPair]] = {}
    faults = []
    for path, pair in sorted(pairs.items()):
        component, _, name = path.partition(".")
        name = _live(component, name)
        inner.setdefault(component, {})[name] = pair
        if component not in (*COMPONENTS, MODEL) or canonical(component, name) != path:
            faults.append(f"{path}: has no PEFT name that could be read back")
        if magnitudes and (path not in magnitudes or magnitudes[path].shape != pair.up.shape[:1]):
            faults.append(f"{path}: wants a magnitude for each of its {len(pair.up)} outputs")
    if MODEL in inner and len(inner) > 1:
        faults.append(f"a language model's adapter is a folder of its own, without {', '.join(inner.keys() - {MODEL})}")
    if faults:
        raise AdapterError("this adapter can't be written as a PEFT folder", faults)
    parts = {}
    for component, found in inner.items():
        own = {path: magnitudes[canonical(component, path)] for path in found} if magnitudes else {}
        config = _config(component, found) | {"use_dora": bool(magnitudes), "base_model_name_or_path": _public(base)}
        parts["" if component == MODEL else component] = (_tensors(found, own, dtype), config)
    return parts


def _public(base: str) -> str | None:
    """A base's hub id (`owner/name`) or plain name as it is; None for a path, which only this machine knows."""
    return base if re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", base) else None


def _tensors(pairs: Mapping[str, LoraPair], magnitudes: Mapping[str, Tensor], dtype: torch.dtype) -> Tensors:
    tensors = {f"{START}{path}.lora_magnitude_vector": own.to(dtype) for path, own in magnitudes.items()}
    for path, pair in pairs.items():
        tensors[f"{START}{path}.lora_A.weight"] = pair.down.to(dtype)
        tensors[f"{START}{path}.lora_B.weight"] = pair.up.to(dtype)
    return tensors


def _config(component: str, pairs: Mapping[str, LoraPair]) -> Config:
    """What PEFT itself writes to adapter_config.json, without what stands at its default anyway.

    fan_in_fan_out is GPT-2's, told by its c_attn of three times the width. (peft only warns where it is wrong.)
    """
    kind, module = CLASSES.get(component, (None, None))
    return {
        "peft_type": "LORA",
        "task_type": None if component in COMPONENTS else "CAUSAL_LM",
        "auto_mapping": {"base_model_class": kind, "parent_library": module} if kind else None,
        "inference_mode": True,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(
            p.endswith(".attn.c_attn") and len(q.up) == 3 * q.down.shape[1] for p, q in pairs.items()
        ),
        "modules_to_save": None,
        "use_rslora": False,
        **fields_of({path: (pair.rank, pair.alpha) for path, pair in pairs.items()}),
    }


def _live(component: str, path: str) -> str:
    """The path within the model as transformers 5 has it: of the two text encoders the first lost a level."""
    return path.removeprefix(TEXT_ROOT) if component == "text_encoder" else path


def write(pairs: Mapping[str, LoraPair], dtype: torch.dtype) -> tuple[Tensors, dict[str, str]]:
    """No single file can hold what PEFT wants: AdapterError always; see `write_folder`."""
    raise AdapterError("a PEFT adapter is a folder, not one file", [], "give a folder's name")


# field of the config -> (the values that stylora honours, what any other means)
HONOURED: dict[str, tuple[tuple[Any, ...], str]] = {
    "peft_type": (("LORA",), "another method than LoRA"),
    "bias": (("none", None), "trained biases"),
    "modules_to_save": ((None, []), "whole modules beside the LoRA"),
    "lora_bias": ((False, None), "a bias in the LoRA"),
    "init_lora_weights": (
        (True, False, None, "gaussian", "eva", "orthogonal"),
        "a start that changes the base's own weights",
    ),
    "trainable_token_indices": ((None, {}, []), "trained token embeddings"),
    "target_parameters": ((None, []), "LoRA of bare parameters"),
    "layer_replication": ((None, []), "a base with repeated layers"),
    "alora_invocation_tokens": ((None, []), "LoRA that waits for a token"),
    "use_qalora": ((False, None), "QALoRA"),
    "use_bdlora": ((False, None), "block-diagonal LoRA"),
    "arrow_config": ((None, {}), "routing between adapters"),
    "velora_config": ((None, {}), "VeLoRA"),
    "monteclora_config": ((None, {}), "MonteCLoRA"),
    "kasa_config": ((None, {}), "KaSA"),
}


def config_faults(config: Mapping[str, Any]) -> list[str]:
    """Everything in an adapter_config.json that would be lost or misread, one fault a field."""
    faults = [
        f"{name} is {config[name]!r}: {meaning}, which can't be read"
        for name, (values, meaning) in HONOURED.items()
        if name in config and config[name] not in values
    ]
    return faults + [f"{name} is missing" for name in ("peft_type", "lora_alpha") if config.get(name) is None]


def _grouped(parts: Mapping[str, tuple[Tensors, Config]]) -> Grouped:
    grouped = Grouped()
    of_component: dict[str, Callable[[Iterable[str], int], float]] = {}
    for folder, (tensors, config) in parts.items():
        placed = (_inner(key) for key in tensors)
        component = folder if folder in COMPONENTS else component_of((path for path, _ in placed), config)
        if component in of_component:
            grouped.faults.append(f"{folder}/: a second adapter of the {component}, give one of the folders")
        grouped.add(tensors, partial(_place, component), folder)
        try:
            of_component[component] = alphas(config)
        except (ValueError, TypeError, re.error) as error:
            grouped.faults.append(f"{f'{folder}/' if folder else ''}{CONFIG_FILE}: alphas can't be read: {error}")

    def alpha_of(path: str, rank: int) -> float:
        component, _, inner = path.partition(".")
        return of_component[component](live_names(inner), rank) if component in of_component else float(rank)

    grouped.alpha_of = alpha_of
    return grouped


def _inner(key: str) -> tuple[str, str]:
    """(path within the model, role) of a key, ("", "") where it isn't PEFT's."""
    stem, role = split_suffix(key, SUFFIXES)
    return (stem.removeprefix(START), role) if stem.startswith(START) else ("", "")


def _place(component: str, key: str) -> tuple[str, str] | None:
    path, role = _inner(key)
    return (canonical(component, path), role) if path else None
