"""Words and names that the formats share: path words, components, and names that are recognised but not read.

Try it: python -c "from trainers.lora.formats.names import unflatten; print(unflatten('mid_block_ff_proj_in'))"
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
MODEL = "model"  # the component of a model that is neither a UNet nor CLIP: a language model
TENSORS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"  # of a PEFT folder
TEXT_ROOT = "text_model."  # files keep this level of CLIP's paths, transformers 5 dropped it

# Names that are recognised and refused, so that the message can say what they are: (pattern, what it is).
FOREIGN = (
    (r"^(unet|text_encoder):\d+:", "cloneofsimo's old numbering"),
    (r"^(lora_unet_(double|single|joint)_|lora_transformer_|transformer\.|diffusion_model\.|lora_te3_)",
     "a transformer base's (FLUX, SD 3, …)"),
    (r"\.(oft|boft)_|\.oft_blocks", "OFT"),
    (r"\.[wb]_norm$", "normalisation weights (LyCORIS)"),
    (r"\.on_input$", "IA3 (LyCORIS)"),
    (r"\.lora_embedding_[AB]", "LoRA of an embedding"),
    (r"\.lora_(B|up)\.bias$", "LoRA with a bias"),
    (r"\.lora_[ab]$", "GGUF names (llama.cpp)"),
    (r"^([\w-]+/)?base_model\.model\.", "whole modules or biases of a PEFT folder, not LoRA"),
)  # fmt: skip

# Every word of a module path of the SD UNet and the CLIP text model, in diffusers' and in the original (sgm) naming.
# kohya writes "." as "_", so the way back has to know which "_" belong to a word.
WORDS = frozenset(
    """
    down_blocks up_blocks mid_block attentions resnets downsamplers upsamplers transformer_blocks
    attn1 attn2 to_q to_k to_v to_out ff net proj proj_in proj_out norm norm1 norm2 norm3 dropout act nonlinearity
    conv conv1 conv2 conv_in conv_out conv_norm_out conv_act conv_shortcut
    time_proj time_embedding time_emb_proj add_time_proj add_embedding class_embedding linear_1 linear_2
    input_blocks middle_block output_blocks in_layers out_layers emb_layers skip_connection op time_embed label_emb out
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


def canonical(component: str, path: str) -> str:
    """The name a module has in adapter files: `text_encoder.text_model.encoder.layers.0.self_attn.q_proj`."""
    if component.startswith("text_encoder") and not path.startswith((TEXT_ROOT, "text_projection")):
        path = TEXT_ROOT + path
    return f"{component}.{path}"


def live_names(path: str) -> tuple[str, str]:
    """What a module may be called within a live model, by its canonical path without the component."""
    return path, path.removeprefix(TEXT_ROOT)


def text_only(paths: Iterable[str], format: str) -> str:
    """Why a format can't hold these modules: one is a language model's, for which it has no names; "" if it can."""
    what = f"a language model's adapter can't be written in {format}'s format, which has names for pictures' models"
    return what if any(path.startswith(f"{MODEL}.") for path in paths) else ""


def split_suffix(key: str, suffixes: Mapping[str, str]) -> tuple[str, str]:
    """(the key without its suffix, the suffix's role), or ("", "") for a key with none of them."""
    return next(((key.removesuffix(s), role) for s, role in suffixes.items() if key.endswith(s)), ("", ""))


def foreign_kind(key: str) -> str:
    """What a name that isn't read is known to be; "" for a stranger."""
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
