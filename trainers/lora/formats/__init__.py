"""What adapter files call things: the names and scales of each format, as tables.

Data in, data out; nothing here opens a file. Module paths are canonical everywhere else: the component, then the path
that files keep ("unet.mid_block.attentions.0.proj_in", "text_encoder.text_model.encoder.layers.0.self_attn.q_proj").

Try it: python -c "from trainers.lora.formats import FORMATS, unflatten; print(*FORMATS, unflatten('mid_block_ff'))"
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.lora.formats import diffusers, kohya, peft
from trainers.lora.formats.diffusers import DIFFUSERS_HEADER, diffusers_path
from trainers.lora.formats.grouped import Grouped, Tensors
from trainers.lora.formats.kohya import kohya_path
from trainers.lora.formats.names import COMPONENTS, foreign_faults, foreign_kind, unflatten
from trainers.lora.pair import LoraPair

__all__ = [
    "COMPONENTS", "DIFFUSERS_HEADER", "FORMATS", "Format", "Grouped", "Tensors", "detect", "diffusers_path",
    "foreign_faults", "foreign_kind", "kohya_path", "unflatten",
]  # fmt: skip


@dataclass(frozen=True)
class Format:
    """A row of FORMATS. `write` also gives the header entries without which its tensors would be misread.

    A row of kind "folder" is written by `peft.write_folder` and read by `peft.group_folder`; its `group` is for a
    tensors' file that lost its folder, its `write` refuses.
    """

    about: str
    detect: Callable[[Iterable[str]], bool]
    group: Callable[[Mapping[str, Tensor], Mapping[str, str]], Grouped]
    write: Callable[[Mapping[str, LoraPair], torch.dtype], tuple[Tensors, dict[str, str]]]
    kind: str = "file"  # | "folder"


FORMATS = {
    "kohya": Format("what A1111, Forge, ComfyUI, InvokeAI and Civitai read", kohya.detect, kohya.group, kohya.write),
    "diffusers": Format("pytorch_lora_weights.safetensors", diffusers.detect, diffusers.group, diffusers.write),
    "peft": Format("a folder per component for PeftModel", peft.detect, peft.group, peft.write, "folder"),
}


def detect(keys: Iterable[str]) -> str | None:
    """The name of the format that names like `keys` are of; None for none of ours."""
    keys = list(keys)
    return next((name for name, row in FORMATS.items() if row.detect(keys)), None)
