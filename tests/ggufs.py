"""GGUF files to test with: a handful of tensors of one block, the script that makes whole ones, adapters for both."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import torch
from torch import Tensor

from trainers.lora.adapter import Adapter, AdapterInfo
from trainers.lora.pair import LoraPair

SCRIPT = Path(__file__).resolve().parents[1] / "sample_data" / "make" / "tiny_lm_gguf.py"
HEADS, KV_HEADS, WIDTH = 4, 2, 64
BLOCK = "model.model.layers.0."
MODULES = {  # canonical path -> (tensor of the GGUF, (out, in))
    f"{BLOCK}self_attn.q_proj": ("blk.0.attn_q.weight", (64, 64)),
    f"{BLOCK}self_attn.k_proj": ("blk.0.attn_k.weight", (32, 64)),
    f"{BLOCK}self_attn.v_proj": ("blk.0.attn_v.weight", (32, 64)),
    f"{BLOCK}mlp.down_proj": ("blk.0.ffn_down.weight", (64, 96)),
}
Q, K, V, DOWN = MODULES
SHAPES = {path: shape for path, (_, shape) in MODULES.items()}


def script() -> ModuleType:
    """sample_data/make/tiny_lm_gguf.py, which lies outside every package."""
    spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    assert spec
    assert spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def small(out: Path, kind: str = "F16", arch: str = "llama", **more: Any) -> Path:
    """A base of one block with an odd alignment and entries of several types; its matrices are of `kind`."""
    g, type_of = torch.Generator().manual_seed(3), gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(out, arch)
    writer.add_custom_alignment(64)
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_token_list(["<s>", "ä", "b" * 99])
    writer.add_float64("any.number", 0.1)
    for key, text in more.items():
        writer.add_string(key.replace("_", "."), text)
    writer.add_tensor("token_embd.weight", torch.randn(3, WIDTH, generator=g).half().numpy())
    for name, shape in MODULES.values():
        matrix = torch.randn(shape, generator=g) / 8
        writer.add_tensor(name, gguf.quants.quantize(matrix.numpy(), type_of), raw_dtype=type_of)
    writer.add_tensor("output_norm.weight", torch.ones(WIDTH).numpy())
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    return out


def uneven(shapes: Mapping[str, Sequence[int]], seed: int = 0, size: float = 0.2) -> Adapter:
    """Ranks 4, 2, 3 in turn; scales 1, rsLoRA's alpha / sqrt(rank), and one over the rank."""
    g, pairs = torch.Generator().manual_seed(seed), {}
    for i, (path, (rows, columns)) in enumerate(sorted(shapes.items())):
        rank, alpha = ((4, 4.0), (2, 4 * 2**0.5), (3, 1.0))[i % 3]
        down, up = torch.randn(rank, columns, generator=g), torch.randn(rows, rank, generator=g)
        pairs[path] = LoraPair(down * size, up * size, alpha)
    return Adapter(pairs, AdapterInfo({"ss_output_name": "pirate", "modelspec.trigger_phrase": "arr"}))


def saved(adapter: Adapter, path: Path) -> Path:
    """As a PEFT folder of float32."""
    return adapter.save(path, "peft", torch.float32)


def as_in_ggml(path: str, matrix: Tensor) -> Tensor:
    """Rows as llama.cpp's converter writes them for Llama, by its own reshape and swap."""
    heads = {Q: HEADS, K: KV_HEADS}.get(path)
    return matrix.reshape(heads, 2, -1, matrix.shape[1]).swapaxes(1, 2).reshape(matrix.shape) if heads else matrix


def numbers(path: Path) -> dict[str, Tensor]:
    """{tensor: its numbers in float32}."""
    tensors = gguf.GGUFReader(path).tensors
    return {each.name: torch.tensor(gguf.quants.dequantize(each.data, each.tensor_type)) for each in tensors}
