"""Names and row orders are those of llama.cpp's converter, from a config or from a header; strangers are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gguf", reason="the extra `gguf` isn't installed")

from studio.gguf.layout import ARCHITECTURES, Layout, of_folder, of_reader
from studio.gguf.package import opened
from tests.ggufs import HEADS, KV_HEADS, MODULES, as_in_ggml, small
from trainers.errors import BaseError

BLOCK = Layout("llama", 1, HEADS, KV_HEADS, tied=False)


def config(folder: Path, **facts: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(facts))
    return folder


def test_a_header_says_what_the_config_says(tmp_path: Path) -> None:
    facts = {"num_hidden_layers": 1, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS}
    folder = config(tmp_path / "llama", model_type="llama", tie_word_embeddings=True, **facts)
    path = small(tmp_path / "a.gguf")
    assert of_folder(folder) == of_reader(path, opened(path)) == Layout("llama", 1, HEADS, KV_HEADS, tied=True)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_names(kind: str, tmp_path: Path) -> None:
    words = {"n_layer": 3, "n_head": 8} if kind == "gpt2" else {"num_hidden_layers": 3, "num_attention_heads": 8}
    layout = of_folder(config(tmp_path / kind, model_type=kind, tie_word_embeddings=False, **words))
    assert (layout.blocks, layout.heads, layout.kv_heads) == (3, 8, 8)
    names = {
        "gpt2": {"transformer.h.2.attn.c_attn": "blk.2.attn_qkv", "transformer.h.2.mlp.c_proj": "blk.2.ffn_down"},
        "phi3": {
            "model.layers.2.self_attn.qkv_proj": "blk.2.attn_qkv",
            "model.layers.2.mlp.gate_up_proj": "blk.2.ffn_up",
        },
    }.get(
        kind, {"model.layers.2.self_attn.o_proj": "blk.2.attn_output", "model.layers.2.mlp.gate_proj": "blk.2.ffn_gate"}
    )
    for path, name in names.items():
        assert layout.tensor(f"model.{path}") == f"{name}.weight"
        assert layout.tensor(f"model.{path.replace('.2.', '.3.')}") == layout.tensor(path + "x") == ""
    order = layout.order("blk.0.attn_k.weight", 32)
    assert (order is not None) == (kind in ("llama", "mistral", "granite", "smollm3"))


def test_an_output_that_is_the_embedding_has_no_name() -> None:
    assert BLOCK.tensor("model.lm_head") == "output.weight"
    assert Layout("llama", 1, 1, 1, tied=True).tensor("model.lm_head") == ""
    assert BLOCK.tensor("unet.conv_in") == BLOCK.tensor("text_encoder.model.layers.0.mlp.up_proj") == ""


def test_what_a_config_leaves_out(tmp_path: Path) -> None:
    facts = {"num_hidden_layers": 1, "num_attention_heads": 2}
    assert not of_folder(config(tmp_path / "a", model_type="llama", **facts)).tied
    assert of_folder(config(tmp_path / "a", model_type="gemma", **facts)).tied


def test_rows_are_permuted_as_the_converter_does() -> None:
    for path, (tensor, shape) in MODULES.items():
        matrix = torch.arange(float(shape[0] * shape[1])).reshape(shape)
        order = BLOCK.order(tensor, shape[0])
        assert torch.equal(matrix if order is None else matrix[order], as_in_ggml(path, matrix))
    with pytest.raises(BaseError, match="30 rows can't be 4 heads"):
        BLOCK.order("blk.0.attn_q.weight", 30)


def test_strangers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseError, match=r"of kind 'mamba'(.|\n)*llama, mistral"):
        of_folder(config(tmp_path / "a", model_type="mamba"))
    for facts in (
        {},
        {"model_type": "llama"},
        {"model_type": "llama", "num_hidden_layers": "x", "num_attention_heads": 1},
    ):
        with pytest.raises(BaseError, match="can't be read"):
            of_folder(config(tmp_path / "a", **facts))
    for arch, more, words in (("bert", {}, "of kind 'bert'"), ("llama", {"general_type": "adapter"}, "'adapter'")):
        path = small(tmp_path / "a.gguf", arch=arch, **more)
        with pytest.raises(BaseError, match=words):
            of_reader(path, opened(path))
