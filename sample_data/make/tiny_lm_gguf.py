"""An F16 GGUF of a small language model with a byte-level tokenizer: the base that llama.cpp is asked with.

`python sample_data/make/tiny_lm_gguf.py tiny-lm.gguf` takes a second; equal bytes every time. It is made when it is
wanted (by the tests, or here), so that the base doesn't travel twice. Other folders: `… FOLDER OUT.gguf`.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

BASE = Path(__file__).resolve().parents[1] / "bases" / "tiny-lm"
ARCHITECTURES = {"mistral": "llama", "gemma3_text": "gemma3"}  # model_type -> its name in GGUF, where they differ
PERMUTED = ("llama", "granite", "smollm3")  # whose rotary embedding pairs neighbouring rows in llama.cpp
SPLIT = "gpt-2"  # the pre-tokenizer: ByteLevel(use_regex=True) of the tokenizers library has GPT-2's pattern


def write(folder: Path, out: Path, kind: type[np.floating[Any]] = np.float16) -> Path:
    """Write config, tokenizer, chat template and weights of a transformers folder: matrices as `kind`, the rest F32."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    arch = ARCHITECTURES.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(out, arch)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(folder.name)
    files = gguf.LlamaFileType
    writer.add_file_type(files.MOSTLY_F16 if kind is np.float16 else files.ALL_F32)
    sizes(writer, arch, config)
    tokenizer(writer, folder, config)
    key_of = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(key_of[arch], config.get("num_hidden_layers", config.get("n_layer")))
    for key, tensor in sorted(load_file(folder / "model.safetensors").items()):
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise SystemExit(f"{key}: has no name in a GGUF of {arch}")
        writer.add_tensor(name, numbers(arch, config, name, tensor, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def sizes(writer: gguf.GGUFWriter, arch: str, config: dict[str, Any]) -> None:
    """Hyper-parameters, by the names that config.json has for them (GPT-2's are its own)."""
    width = config.get("hidden_size", config.get("n_embd"))
    heads = config.get("num_attention_heads", config.get("n_head"))
    writer.add_context_length(config.get("max_position_embeddings", config.get("n_positions")))
    writer.add_embedding_length(width)
    writer.add_block_count(config.get("num_hidden_layers", config.get("n_layer")))
    writer.add_feed_forward_length(config.get("intermediate_size") or 4 * width)
    writer.add_head_count(heads)
    writer.add_vocab_size(config["vocab_size"])
    if arch == "gpt2":
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
        return
    rope = config["rope_parameters"]
    head = config.get("head_dim") or width // heads
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    writer.add_rope_dimension_count(head)
    writer.add_key_length(head)
    writer.add_value_length(head)
    if arch in ("gemma2", "gemma3"):
        writer.add_sliding_window(config["sliding_window"])
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if arch == "granite":
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])


def tokenizer(writer: gguf.GGUFWriter, folder: Path, config: dict[str, Any]) -> None:
    """Tokens, their types, merges, special ids and the chat template, as llama.cpp wants a byte-level BPE."""
    made = json.loads((folder / "tokenizer.json").read_text())
    special = {token["id"] for token in made["added_tokens"] if token["special"]}
    ids = {token["content"]: token["id"] for token in made["added_tokens"]} | made["model"]["vocab"]
    tokens = sorted(ids, key=lambda token: int(ids[token]))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(SPLIT)
    writer.add_token_list(tokens)
    kinds = (gguf.TokenType.CONTROL if ids[token] in special else gguf.TokenType.NORMAL for token in tokens)
    writer.add_token_types(list(map(int, kinds)))
    merges = made["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    template = folder / "chat_template.jinja"
    if template.is_file():  # what trainers mark in it (`generation`) is unknown to llama.cpp, and renders nothing
        writer.add_chat_template(re.sub(r"\{%-? *(end)?generation *-?%\}", "", template.read_text()))


def numbers(arch: str, config: dict[str, Any], name: str, tensor: torch.Tensor, kind: type) -> np.ndarray:
    """A tensor as llama.cpp computes with it."""
    tensor = tensor.float()
    if arch == "gpt2" and tensor.ndim == 2 and not name.startswith(("token_embd", "position_embd", "output")):
        tensor = tensor.T  # Conv1D stores (in, out)
    if arch.startswith("gemma") and name.endswith("norm.weight"):
        tensor = tensor + 1
    if arch in PERMUTED and ".attn_q." in name:
        tensor = permuted(tensor, config["num_attention_heads"])
    if arch in PERMUTED and ".attn_k." in name:
        tensor = permuted(tensor, config["num_key_value_heads"])
    wide = tensor.ndim == 1 or name.startswith("position_embd")
    return np.ascontiguousarray(tensor.numpy().astype(np.float32 if wide else kind))


def permuted(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a query or key, (heads * head, …): transformers turns row i with i + head / 2, ggml 2 i with 2 i + 1."""
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)


if __name__ == "__main__":
    *where, there = sys.argv[1:]
    print(write(Path(where[0]) if where else BASE, Path(there)))
