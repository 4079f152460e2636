"""A base is the same whether its folder or its GGUF is named: sizes, weights, template. The GGUF is the script's."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("gguf", reason="the extra `gguf` isn't installed")

from studio.gguf.base import File, Folder, opened_base
from studio.gguf.package import value
from tests.ggufs import script, small
from tests.lms import KINDS, VOCABULARY, lm
from trainers.errors import BaseError

TINY = Path(__file__).resolve().parents[1] / "sample_data" / "bases" / "tiny-lm"
PROBES = {
    "gpt2": ("model.transformer.h.1.attn.c_attn", "model.transformer.h.0.mlp.c_proj"),
    "": ("model.model.layers.1.self_attn.q_proj", "model.model.layers.0.self_attn.k_proj", "model.lm_head"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_folder_and_gguf_are_one_base(kind: str, tmp_path: Path) -> None:
    folder = lm(kind, tmp_path / kind)
    one, two = Folder(folder), File(script().write(folder, tmp_path / "a.gguf"))
    assert one.layout == two.layout
    probes = PROBES.get(kind, PROBES[""])
    assert one.shapes((*probes, "model.none")) == two.shapes((*probes, "model.none"))
    for path in one.shapes(probes):
        assert torch.equal(two.weight(path), one.weight(path).half().float())
    told, bos, eos = one.template()
    template, *marks = two.template()
    assert (bos, eos) == tuple(marks) == ("<s>", "</s>")
    assert "generation %}" in told
    assert template == told.replace("{% generation %}", "").replace("{% endgeneration %}", "")


def test_the_script_writes_equal_bytes_quickly(tmp_path: Path) -> None:
    make, start = script(), time.perf_counter()
    one = make.write(TINY, tmp_path / "a.gguf").read_bytes()
    assert time.perf_counter() - start < 5
    assert make.write(TINY, tmp_path / "b.gguf").read_bytes() == one
    assert len(one) < 8_000_000
    reader = File(tmp_path / "a.gguf").reader
    facts = {
        "llama.context_length": 512,
        "llama.embedding_length": 256,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 32,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.pre": "gpt-2",
    }
    assert {key: value(reader, key) for key in facts} == facts
    assert len(value(reader, "tokenizer.ggml.tokens")) == 4051 > VOCABULARY
    assert value(reader, "tokenizer.ggml.token_type")[:7] == [3, 3, 3, 3, 3, 3, 1]


def test_a_name_says_which_it_is(tmp_path: Path) -> None:
    assert isinstance(opened_base("tiny-lm"), Folder)
    assert isinstance(opened_base(str(small(tmp_path / "a.gguf"))), File)
    with pytest.raises(BaseError, match="wanted a language model"):
        opened_base("tiny-sd")


def test_weights_that_are_not_there_or_packed(tmp_path: Path) -> None:
    base = File(small(tmp_path / "a.gguf", "Q4_0"))
    with pytest.raises(BaseError, match=r"blk.0.attn_q.weight is Q4_0"):
        base.weight("model.model.layers.0.self_attn.q_proj")
    with pytest.raises(BaseError, match=r"model.lm_head is not there"):
        base.weight("model.lm_head")
    assert base.template() == ("", "", "")
