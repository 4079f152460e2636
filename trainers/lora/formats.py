"""What adapter files call things: the names and scales of each format, as tables.

Data in, data out; nothing here opens a file. Module paths are canonical everywhere else: the component, then the path
that files keep ("unet.mid_block.attentions.0.proj_in", "text_encoder.text_model.encoder.layers.0.self_attn.q_proj").

Try it: python -c "from trainers.lora.formats import FORMATS, unflatten; print(*FORMATS, unflatten('mid_block_ff'))"
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from trainers.errors import AdapterError
from trainers.lora.pair import LoraPair, Pairs, Parts, join_halves, put

Tensors = dict[str, Tensor]
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Format:
    """A row of FORMATS. `write` also gives the header entries without which its tensors would be misread."""

    about: str
    detect: Callable[[Iterable[str]], bool]
    read: Callable[[Mapping[str, Tensor], Mapping[str, str]], Pairs]
    write: Callable[[Mapping[str, LoraPair], torch.dtype], tuple[Tensors, dict[str, str]]]


COMPONENTS = ("unet", "text_encoder", "text_encoder_2")

# Names that are recognised and refused, so that the message can say what they are: (pattern, what it is).
FOREIGN = (
    (r"\.hada_", "LoHa (LyCORIS)"),
    (r"\.lokr_", "LoKr (LyCORIS)"),
    (r"\.lora_mid\.", "LoCon in Tucker form (LyCORIS)"),
    (r"dora_scale|lora_magnitude_vector", "DoRA"),
    (r"\.diff(_b)?$", "full differences (LyCORIS)"),
    (r"^(unet|text_encoder):\d+:", "cloneofsimo's old numbering"),
    (r"^base_model\.model\.", "a PEFT folder's own names"),
    (r"^lora_unet_(input_blocks|middle_block|output_blocks)_", "SDXL's original (sgm) names"),
)
IGNORED = ("bundle_emb.",)  # OneTrainer's embeddings travel in the same file and are no LoRA


def foreign_kind(key: str) -> str:
    return next((kind for pattern, kind in FOREIGN if re.search(pattern, key)), "")


def foreign_faults(keys: Iterable[str]) -> list[str]:
    """One fault per kind of key that isn't understood, with its count and a few names."""
    kinds: dict[str, list[str]] = defaultdict(list)
    for key in sorted(keys):
        kinds[foreign_kind(key) or "unknown names"].append(key)
    return [
        f"{len(names)} tensors are {kind}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
        for kind, names in sorted(kinds.items())
    ]


def _suffix(key: str, suffixes: Mapping[str, str]) -> tuple[str, str]:
    """(the key without its suffix, the suffix's role), or ("", "") for a key with none of them."""
    return next(((key.removesuffix(s), role) for s, role in suffixes.items() if key.endswith(s)), ("", ""))


def _all_or_error(parts: Parts, alpha_of: Callable[[str, int], float], faults: list[str]) -> Pairs:
    pairs = join_halves(parts, alpha_of, faults)
    if faults:
        raise AdapterError("this adapter can't be read", faults, "get a whole plain LoRA file in place of this one")
    return pairs


# --- kohya: what A1111, Forge, ComfyUI, InvokeAI and Civitai exchange ------------------------------------------------

KOHYA_PREFIXES = {"lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder",
                  "lora_te2_": "text_encoder_2"}  # fmt: skip
KOHYA_SUFFIXES = {".lora_down.weight": "down", ".lora_up.weight": "up", ".alpha": "alpha"}

# Every word of a module path of the SD UNet and the CLIP text model. kohya writes "." as "_", so the way back has to
# know which "_" belong to a word.
WORDS = frozenset(
    """
    down_blocks up_blocks mid_block attentions resnets downsamplers upsamplers transformer_blocks
    attn1 attn2 to_q to_k to_v to_out ff net proj proj_in proj_out norm norm1 norm2 norm3 dropout act nonlinearity
    conv conv1 conv2 conv_in conv_out conv_norm_out conv_act conv_shortcut
    time_proj time_embedding time_emb_proj add_time_proj add_embedding class_embedding linear_1 linear_2
    text_model encoder layers self_attn q_proj k_proj v_proj out_proj mlp fc1 fc2 activation_fn
    embeddings token_embedding position_embedding layer_norm1 layer_norm2 final_layer_norm text_projection
    """.split()  # noqa: SIM905
)
_LONGEST = max(word.count("_") + 1 for word in WORDS)


def unflatten(name: str) -> str | None:
    """ "mid_block_attentions_0_proj_in" -> "mid_block.attentions.0.proj_in"; None where a word isn't in WORDS."""
    parts, words = name.split("_"), []
    while parts:
        for n in range(min(_LONGEST, len(parts)), 0, -1):
            word = "_".join(parts[:n])
            if word in WORDS or word.isdecimal():
                words.append(word)
                parts = parts[n:]
                break
        else:
            return None
    return ".".join(words)


def kohya_path(name: str) -> str | None:
    """ "lora_te_text_model_encoder_layers_0_mlp_fc1" -> "text_encoder.text_model.encoder.layers.0.mlp.fc1"."""
    for prefix, component in KOHYA_PREFIXES.items():
        if name.startswith(prefix):
            path = unflatten(name.removeprefix(prefix))
            return f"{component}.{path}" if path else None
    return None


def _detect_kohya(keys: Iterable[str]) -> bool:
    return any(key.startswith(tuple(KOHYA_PREFIXES)) for key in keys)


def _read_kohya(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Pairs:
    parts: Parts = defaultdict(dict)
    unknown: list[str] = []
    faults: list[str] = []
    for key, tensor in tensors.items():
        name, role = _suffix(key, KOHYA_SUFFIXES)
        path = kohya_path(name)
        if path:
            put(parts, path, role, tensor, key, faults)
        elif not key.startswith(IGNORED):
            unknown.append(key)
    return _all_or_error(parts, lambda _, rank: float(rank), foreign_faults(unknown) + faults)


def _alpha_tensor(alpha: float, dtype: torch.dtype) -> Tensor:
    """alpha in the file's dtype as kohya has it, but in float32 where that would round it (rsLoRA: 8 * sqrt(32))."""
    exact = torch.tensor(alpha, dtype=torch.float32)
    return exact.to(dtype) if exact.to(dtype).float() == exact else exact


def _write_kohya(pairs: Mapping[str, LoraPair], dtype: torch.dtype) -> tuple[Tensors, dict[str, str]]:
    two_encoders = any(path.startswith("text_encoder_2.") for path in pairs)
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te1_" if two_encoders else "lora_te_",
                "text_encoder_2": "lora_te2_"}  # fmt: skip
    tensors: Tensors = {}
    faults = []
    for path, pair in sorted(pairs.items()):
        component, _, inner = path.partition(".")
        name = prefixes.get(component, "") + inner.replace(".", "_")
        if kohya_path(name) != path:
            faults.append(f"{path}: has no kohya name that could be read back")
        tensors[f"{name}.lora_down.weight"] = pair.down.to(dtype)
        tensors[f"{name}.lora_up.weight"] = pair.up.to(dtype)
        tensors[f"{name}.alpha"] = _alpha_tensor(pair.alpha, dtype)
    if faults:
        raise AdapterError("this adapter can't be written with kohya's names", faults, "save it as diffusers")
    return tensors, {}


# --- diffusers: `pytorch_lora_weights.safetensors`, in the four spellings of its history -----------------------------

DIFFUSERS_HEADER = "lora_adapter_metadata"  # JSON: "<component>.<field of peft's LoraConfig>"
DIFFUSERS_SUFFIXES = {
    ".lora_A.weight": "down", ".lora_B.weight": "up",
    ".lora.down.weight": "down", ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down", ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down", "_lora.up.weight": "up",
    ".alpha": "alpha",
}  # fmt: skip
# Text encoders get the spelling of diffusers' own training scripts: load_lora_weights (0.42) refuses `lora_A` in a text
# encoder that has none on its attention ("Could not automatically infer state dict type").
DIFFUSERS_HALVES = {"unet": (".lora_A.weight", ".lora_B.weight")}
DIFFUSERS_HALVES |= dict.fromkeys(COMPONENTS[1:], (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"))
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
    level = "" if path.startswith(("text_model.", "text_projection")) else "text_model."
    return f"{component}.{level}{path}"


def _detect_diffusers(keys: Iterable[str]) -> bool:
    found = (_suffix(key, DIFFUSERS_SUFFIXES) for key in keys)
    return any(role in ("down", "up") and diffusers_path(stem) for stem, role in found)


def _read_diffusers(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Pairs:
    parts: Parts = defaultdict(dict)
    unknown: list[str] = []
    faults: list[str] = []
    for key, tensor in tensors.items():
        stem, role = _suffix(key, DIFFUSERS_SUFFIXES)
        path = diffusers_path(stem)
        if path:
            put(parts, path, role, tensor, key, faults)
        elif not key.startswith(IGNORED):
            unknown.append(key)
    alpha_of = _header_alphas(metadata.get(DIFFUSERS_HEADER), faults)
    return _all_or_error(parts, alpha_of, foreign_faults(unknown) + faults)


def _header_alphas(text: str | None, faults: list[str]) -> Callable[[str, int], float]:
    """alpha by module path as the header's LoraConfig fields give it; alpha = rank where they are silent."""
    fields: dict[str, Any] = {}
    try:
        fields = dict(json.loads(text)) if text else {}
        for component in COMPONENTS:
            float(fields.get(f"{component}.lora_alpha") or 0)
            for pattern, alpha in dict(fields.get(f"{component}.alpha_pattern") or {}).items():
                float(alpha)
                re.compile(pattern)
    except (ValueError, TypeError, RecursionError, re.error) as error:
        faults.append(f"header entry {DIFFUSERS_HEADER} isn't the JSON of LoraConfig fields: {error}")
        fields = {}

    def alpha_of(path: str, rank: int) -> float:
        component, _, inner = path.partition(".")
        alpha = _by_pattern(fields.get(f"{component}.alpha_pattern") or {}, inner)
        alpha = fields.get(f"{component}.lora_alpha") if alpha is None else alpha
        factor = math.sqrt(rank) if fields.get(f"{component}.use_rslora") else 1.0  # rsLoRA: scale = alpha / sqrt(r)
        return float(rank if alpha is None else alpha) * factor

    return alpha_of


def _by_pattern(patterns: Mapping[str, Any], inner: str) -> Any:
    """peft's `get_pattern_key` (a pattern matches a whole tail of the path), literal names first as there are many."""
    for name in (f"^{inner}", inner, inner.removeprefix("text_model.")):
        if name in patterns:
            return patterns[name]
    return next((alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", inner)), None)


def _write_diffusers(pairs: Mapping[str, LoraPair], dtype: torch.dtype) -> tuple[Tensors, dict[str, str]]:
    tensors: Tensors = {}
    header: dict[str, Any] = {}
    if faults := [f"{path}: its component is none of {', '.join(COMPONENTS)}" for path in sorted(pairs)
                  if diffusers_path(path) != path]:  # fmt: skip
        raise AdapterError("this adapter can't be written with diffusers' names", faults)
    for component in COMPONENTS:
        inner = {p.removeprefix(f"{component}."): pair for p, pair in pairs.items() if p.startswith(f"{component}.")}
        for path, pair in inner.items():
            down, up = (f"{component}.{path}{half}" for half in DIFFUSERS_HALVES[component])
            tensors[down], tensors[up] = pair.down.to(dtype), pair.up.to(dtype)
        # A header that speaks of one component only would give the other peft's defaults: all or none.
        if inner:
            header |= {f"{component}.{field}": value for field, value in _lora_config(component, inner).items()}
    return tensors, {DIFFUSERS_HEADER: json.dumps(header, sort_keys=True)}


def _lora_config(component: str, pairs: Mapping[str, LoraPair]) -> dict[str, Any]:
    """The fields of peft's LoraConfig that give each module its own rank and alpha.

    diffusers strips `text_model.` from the tensors' names (transformers 5 has no such level) but not from these
    fields; peft matches whole tails of paths, so names without it fit with and without the level.
    """
    names = {path: f"^{path}" if component == "unet" else path.removeprefix("text_model.") for path in sorted(pairs)}
    rank = _most_common(pair.rank for pair in pairs.values())
    alpha = _most_common(pair.alpha for pair in pairs.values())
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: pairs[path].rank for path, name in names.items() if pairs[path].rank != rank},
        "alpha_pattern": {name: pairs[path].alpha for path, name in names.items() if pairs[path].alpha != alpha},
        "target_modules": sorted(name.removeprefix("^") for name in names.values()),
    }


def _most_common(values: Iterable[Number]) -> Number:
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


FORMATS = {
    "kohya": Format("what A1111, Forge, ComfyUI, InvokeAI and Civitai read", _detect_kohya, _read_kohya, _write_kohya),
    "diffusers": Format("pytorch_lora_weights.safetensors", _detect_diffusers, _read_diffusers, _write_diffusers),
}
