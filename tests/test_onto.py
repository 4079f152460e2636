"""Adapters of quantised runs: both bases are measured against what was trained on, the nearer is merged onto."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import here, random_adapter
from lms import lm

from studio.draw.use import Use
from studio.merge.contents import FILE
from studio.merge.merge import merge
from studio.merge.onto import dequantised, settle
from studio.merge.receipt import story, verify
from studio.merge.weights import open_base
from trainers.errors import ConfigError
from trainers.families.causal_lm import CausalLM
from trainers.families.quantized import Quantization
from trainers.lora.adapter import Adapter, AdapterInfo
from trainers.lora.fit import modules

WIDE = {"hidden_size": 64, "intermediate_size": 128}  # bitsandbytes' CPU code needs rows of whole blocks of 64
LAYER = "model.model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lm("llama", tmp_path_factory.mktemp("lms") / "llama", **WIDE)


def use(base: Path, out: Path, kind: str, seed: int = 0) -> Use:
    """An adapter whose header says that it was trained on a base quantised so."""
    said = {"stylora.config": json.dumps({"train": {"quantization": kind}})}
    pairs = random_adapter(base, seed, kinds=("attn",)).pairs
    return Use(Adapter(pairs, AdapterInfo(said)).save(out, "peft", torch.float32))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_round_trip_is_what_the_live_layers_hold(base: Path, kind: Quantization) -> None:
    live: Any = modules(CausalLM(base, quantization=kind).parts())[LAYER]
    weights = open_base(base)
    found = dequantised(weights, [LAYER], kind).weight(LAYER)
    x = torch.eye(128)
    assert torch.allclose(live(x).T.float(), found, rtol=2**-7, atol=1e-3)  # NF4's products are in bf16
    error = float((found - weights.weight(LAYER)).norm() / found.norm())
    assert 0.08 < error < 0.1 if kind == "nf4" else 0.004 < error < 0.01


def test_live_models_are_settled(base: Path) -> None:
    gpt2 = lm("gpt2", base.parent / "gpt2", n_embd=64)
    for folder, layer in ((base, LAYER), (gpt2, "model.transformer.h.1.attn.c_attn")):
        through, family = dequantised(open_base(folder), [layer], "nf4"), CausalLM(folder)
        settle(family.parts(), through)
        there: Any = modules(family.parts())[layer].weight
        assert torch.equal(there.T if folder == gpt2 else there, through.weight(layer))


@pytest.mark.parametrize(("kind", "asked"), [("nf4", "auto"), ("nf4", "16bit"), ("int8", "dequantised")])
def test_the_nearer_base_is_merged_onto(base: Path, tmp_path: Path, kind: str, asked: str) -> None:
    done = merge(str(base), [use(base, tmp_path / "a", kind)], tmp_path / "out", onto=asked, dtype="bf16", ask=here)
    assert done.onto
    assert done.onto.chosen == ("16bit" if asked == "16bit" else "dequantised")
    like = done.onto.likeness
    assert like["dequantised"].kl_mean < (0.1 if kind == "nf4" else 1.0) * like["16bit"].kl_mean
    told = json.loads((tmp_path / "out" / FILE).read_text())["onto"]
    assert (told["trained_on"], told["chosen"], told["asked"]) == (kind, done.onto.chosen, asked)
    assert told["measured"]["16bit"]["kl_mean"] == like["16bit"].kl_mean
    assert f"merged onto the {done.onto.chosen} base" in str(done.onto)
    assert [row[0] for row in done.onto.rows()] == ["16bit", "dequantised"]
    before, after = open_base(base), open_base(tmp_path / "out")  # of a layer that no adapter changes
    wanted = before.weight(LAYER) if asked == "16bit" else dequantised(before, [LAYER], kind).weight(LAYER)
    assert torch.equal(after.weight(LAYER), wanted.bfloat16())
    record, _, _ = verify(tmp_path / "out", here)
    assert (f"(as {kind} left it)" in story(record)[0]) == (asked != "16bit")


def test_adapters_of_two_kinds_of_bases(base: Path, tmp_path: Path) -> None:
    uses = [use(base, tmp_path / kind, kind, seed) for seed, kind in enumerate(("nf4", "int8"))]
    with pytest.raises(ConfigError, match="can't be made") as caught:
        merge(str(base), uses, tmp_path / "out", ask=here)
    assert len(caught.value.faults) == 2
    plain = use(base, tmp_path / "none", "none")
    assert merge(str(base), [plain], tmp_path / "out", ask=here).onto is None
