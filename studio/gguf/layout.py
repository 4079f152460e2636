"""Where the modules of a transformers model lie in its GGUF: tensor names, and the order of query and key rows.

ggml's rotary embedding turns rows (2 i, 2 i + 1) of a head together for Llama and its kin, where transformers turns
(i, i + head / 2); llama.cpp's converter permutes the rows of q_proj and k_proj accordingly.

Try it: python -c "from studio.gguf.layout import *; print(of_folder(Path('sample_data/bases/tiny-lm')))"
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from studio.gguf.package import package, value
from trainers.errors import BaseError

# config.json's model_type -> general.architecture of its GGUF
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
    "gpt2": "gpt2",
    "granite": "granite",
    "smollm3": "smollm3",
}
PERMUTED = ("llama", "granite", "smollm3")
TIED = (
    "gemma",
    "gemma2",
    "gemma3",
    "gpt2",
    "smollm3",
)  # output and embedding are one tensor unless config.json says not
START = "model."  # the component of every module of a language model


@dataclass(frozen=True)
class Layout:
    """What a GGUF of the base is like, as far as adapters are concerned."""

    architecture: str  # as GGUF calls it
    blocks: int
    heads: int
    kv_heads: int
    tied: bool  # the output is the embedding's tensor: it has none of its own

    @cached_property
    def _names(self) -> Any:
        keys = {name: key for key, name in package().MODEL_ARCH_NAMES.items()}
        return package().get_tensor_name_map(keys[self.architecture], self.blocks)

    def tensor(self, path: str) -> str:
        """The name of a module's weight (canonical path: "model.model.layers.0.mlp.up_proj"); "" where it has none."""
        name = self._names.get_name(path.removeprefix(START)) if path.startswith(START) else None
        return f"{name}.weight" if name and not (self.tied and name == "output") else ""

    def order(self, tensor: str, rows: int) -> Tensor | None:
        """row i of the GGUF's tensor is row order[i] of the module's weight; None where the order is the same.

        Raises BaseError: so many rows can't be split into the base's heads.
        """
        heads = {"attn_q": self.heads, "attn_k": self.kv_heads}.get(tensor.split(".")[-2], 0)
        if not heads or self.architecture not in PERMUTED:
            return None
        if rows % (2 * heads):
            raise BaseError(f"{tensor}: {rows} rows can't be {heads} heads", next_step="name the base it was made for")
        return torch.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).flatten()


def of_folder(folder: Path) -> Layout:
    """By config.json alone: what llama.cpp's converter makes of the folder. Raises BaseError: it isn't known here."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text())
        kind = config["model_type"]
        if kind not in ARCHITECTURES:
            raise _unknown(file, str(kind), ARCHITECTURES)
        name = ARCHITECTURES[kind]
        heads = config.get("num_attention_heads") or config["n_head"]
        blocks = config.get("num_hidden_layers") or config["n_layer"]
        tied = config.get("tie_word_embeddings", name in TIED)
        return Layout(name, int(blocks), int(heads), int(config.get("num_key_value_heads") or heads), bool(tied))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BaseError(f"{file}: can't be read", [f"{type(error).__name__}: {error}"], "get the model anew") from None


def of_reader(path: Path, reader: Any) -> Layout:
    """By the header and tensor names of a GGUF. Raises BaseError: an adapter, or of another architecture."""
    name, kind = value(reader, "general.architecture", ""), value(reader, "general.type", "model")
    if kind != "model":
        raise BaseError(f"{path}: its general.type is {kind!r}, wanted 'model'", next_step="name the base's own GGUF")
    if name not in ARCHITECTURES.values():
        raise _unknown(path, name, dict.fromkeys(ARCHITECTURES.values()))
    heads, blocks = value(reader, f"{name}.attention.head_count"), value(reader, f"{name}.block_count")
    kv_heads = value(reader, f"{name}.attention.head_count_kv", heads)
    if not all(isinstance(number, int) and number > 0 for number in (heads, blocks, kv_heads)):
        raise BaseError(f"{path}: heads {heads}, of keys {kv_heads}, blocks {blocks}: wanted one number of each")
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    return Layout(name, blocks, heads, kv_heads, tied)


def _unknown(path: Path, name: str, known: dict[str, Any]) -> BaseError:
    step = f"stylora knows where the modules of {', '.join(known)} lie; for others merge into the folder, then convert"
    return BaseError(f"{path}: a model of kind {name!r}, whose GGUF isn't known here", next_step=step)
