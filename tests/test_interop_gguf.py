"""llama.cpp itself judges: base and GGUF adapter, and the merged GGUF, answer as transformers and PEFT do.

`make test-interop` installs llama-cpp-python (it is compiled: minutes) and runs this, `-s` shows the figures; else it
is skipped. The peer is PeftModel in float32 on the exported PEFT folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

if not os.environ.get("STYLORA_INTEROP"):
    pytest.skip("llama.cpp is asked by `make test-interop` alone", allow_module_level=True)

import llama_cpp
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig, AutoTokenizer
from transformers import AutoModelForCausalLM as AnyLM

from studio.draw.use import Use
from studio.export import export as export_file
from studio.gguf.adapter import export
from studio.gguf.merge import merge_gguf
from tests.ggufs import saved, script, uneven
from tests.lms import CONTEXT, VOCABULARY, WIDTHS, tokenizer
from trainers.lora.adapter import Adapter
from trainers.lora.fit import shapes
from trainers.lora.gains import Gain

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks for it

SAMPLES = Path(__file__).resolve().parents[1] / "sample_data"
TINY = SAMPLES / "bases" / "tiny-lm"
EXACT = 2e-3  # largest difference of a logit (they go to 20) where all is float32; measured 5e-4, the bare base 3e-4
TABLE = 2e-2  # … where llama.cpp looks GELU up in a table of F16 (Gemma, GPT-2; measured 4e-3 in the bare base)
HALF = 0.3  # … where the base's numbers are F16, and so are the activations they are multiplied by (measured 6e-2)
NARROW = {"fp32": EXACT, "fp16": 2e-2, "bf16": 0.1, "q8_0": 0.2}  # … by the adapter's numbers
KINDS: dict[str, dict[str, Any]] = {  # model_type -> what differs from WIDTHS in its config
    "llama": {"tie_word_embeddings": False},
    "mistral": {"sliding_window": None},
    "granite": {"attention_multiplier": 0.35, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "smollm3": {"no_rope_layer_interval": 100},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8},
    "phi3": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT},
}


@dataclass(frozen=True)
class Distance:
    """How far two tables of logits (T, V) are apart: largest difference, mean KL in nats, share of equal favourites."""

    largest: float
    kl: float
    greedy: float


def distance(got: Tensor, wanted: Tensor, name: str) -> Distance:
    one, two = got.double().log_softmax(-1), wanted.double().log_softmax(-1)
    kl = float((two.exp() * (two - one)).sum(-1).mean())
    made = Distance(float((got - wanted).abs().max()), kl, float((got.argmax(-1) == wanted.argmax(-1)).float().mean()))
    print(f"{name:36} largest {made.largest:.1e}  KL {made.kl:.1e}  greedy {made.greedy:.2%}")
    return made


def asked(path: Path, ids: list[int], adapter: Path | None = None, weight: float = 1.0) -> Tensor:
    """llama.cpp's logits (T, V) with keys and values in float32."""
    more: dict[str, Any] = {"lora_path": str(adapter), "lora_scale": weight} if adapter else {}
    wide = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    model = llama_cpp.Llama(
        str(path), n_ctx=512, logits_all=True, verbose=False, n_threads=2, flash_attn=False, **wide, **more
    )
    with closing(model):
        model.eval(ids)
        return torch.tensor(np.array(model.scores[: len(ids)]))


@torch.no_grad()
def answer(model: Any, ids: list[int]) -> Tensor:
    logits: Tensor = model(torch.tensor([ids])).logits[0]
    return logits


def weighted(model: PeftModel, weight: float) -> None:
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.set_scale("default", weight)


def micro(kind: str, folder: Path) -> Any:
    """A tiny model with loud random numbers, written as a transformers folder."""
    facts = {**({} if kind == "gpt2" else WIDTHS), **KINDS[kind]}
    config = AutoConfig.for_model(kind, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=1, pad_token_id=2, **facts)
    model, g = AnyLM.from_config(config), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in model.parameters():
            noise = torch.randn(tensor.shape, generator=g)
            tensor.copy_(tensor + 0.1 * noise if tensor.ndim == 1 else 0.25 * noise)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return model.eval()


def sizes(model: Any) -> Mapping[str, tuple[int, ...]]:
    """The shapes that an adapter may change: a tied output is none of them."""
    found = shapes({"model": model})
    return {
        path: shape for path, shape in found.items() if "lm_head" not in path or not model.config.tie_word_embeddings
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture(kind: str, tmp_path: Path) -> None:
    """Uneven ranks and alphas on every linear layer: names, permuted rows, scales."""
    model = micro(kind, tmp_path / "base")
    adapter = saved(uneven(sizes(model)), tmp_path / "pirate")
    base = script().write(tmp_path / "base", tmp_path / "base.gguf", np.float32)
    small = export(adapter, str(tmp_path / "base"), dtype="fp32").path
    merged = merge_gguf(base, [Use(adapter)], tmp_path / "merged.gguf").path
    ids = torch.randint(6, VOCABULARY, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    bare, tuned = answer(model, ids), answer(PeftModel.from_pretrained(model, adapter).eval(), ids)
    most = TABLE if kind.startswith(("gemma", "gpt")) else EXACT
    assert distance(tuned, bare, f"{kind}: what the adapter does").largest > 1
    assert distance(asked(base, ids), bare, f"{kind}: base").largest < most
    assert distance(asked(base, ids, small), tuned, f"{kind}: base + adapter").largest < most
    assert distance(asked(merged, ids), tuned, f"{kind}: merged").largest < most


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny-lm's GGUFs and an adapter of it, also exported."""
    folder = tmp_path_factory.mktemp("tiny")
    script().write(TINY, folder / "f16.gguf")
    script().write(TINY, folder / "f32.gguf", np.float32)
    model = AnyLM.from_pretrained(TINY, dtype=torch.float32)
    saved(uneven(sizes(model), size=0.05), folder / "pirate")
    return folder


@cache
def texts() -> list[str]:
    """Plain, styled and odd texts, and a conversation with its marks."""
    files = sorted((SAMPLES / "text").glob("*/heldout.jsonl"))
    styled = [json.loads(line)["text"] for file in files for line in file.read_text().splitlines()]
    odd = ["  two  spaces\n\n\tand\ttabs 12345 don't we'll I'M", "ünïcode ñ 漢字 🙂 é", "a\r\nb  \n", ""]
    return styled + odd + ["<|user|>\nHow are you?</s>\n<|assistant|>\nWell.</s>"]


def test_llama_cpp_reads_texts_as_the_tokenizer_does(tiny: Path) -> None:
    ours = AutoTokenizer.from_pretrained(TINY)
    assert len(texts()) > 160
    with closing(llama_cpp.Llama(str(tiny / "f16.gguf"), vocab_only=True, verbose=False)) as model:
        wrong = [text for text in texts() if model.tokenize(text.encode(), special=True) != ours(text)["input_ids"]]
    assert wrong == []


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_tiny_lm(weight: float, tiny: Path, tmp_path: Path) -> None:
    ours = AutoTokenizer.from_pretrained(TINY)
    small = export(tiny / "pirate", "tiny-lm", dtype="fp32", out=tmp_path / "pirate.gguf").path
    folder = export_file(tiny / "pirate", "peft", out=tmp_path / "pirate").path
    uses = [Use(folder, Gain(weight))]
    merged = {kind: merge_gguf(tiny / f"{kind}.gguf", uses, tmp_path / f"{kind}.gguf").path for kind in ("f32", "f16")}
    model = AnyLM.from_pretrained(TINY, dtype=torch.float32).eval()
    ids = [ours("\n\n".join(texts()[place:]))["input_ids"][:300] for place in (0, 50, 120)]
    bare = [answer(model, row) for row in ids]
    tuned = PeftModel.from_pretrained(model, folder).eval()
    weighted(tuned, weight)

    def apart(name: str, base: Path, wanted: list[Tensor], adapter: Path | None = None) -> Distance:
        got = torch.cat([asked(base, row, adapter, weight) for row in ids])
        return distance(got, torch.cat(wanted), f"tiny-lm at {weight}: {name}")

    wanted = [answer(tuned, row) for row in ids]
    assert distance(torch.cat(wanted), torch.cat(bare), f"tiny-lm at {weight}: what it does").largest > 0.5
    assert apart("base, F32", tiny / "f32.gguf", bare).largest < EXACT
    assert apart("base, F16", tiny / "f16.gguf", bare).largest < HALF
    for name, base, adapter, most in (
        ("base + adapter, F32", tiny / "f32.gguf", small, EXACT),
        ("base + adapter, F16", tiny / "f16.gguf", small, HALF),
        ("merged, F32", merged["f32"], None, EXACT),
        ("merged, F16", merged["f16"], None, HALF),
    ):
        found = apart(name, base, wanted, adapter)
        assert found.largest < most
        assert found.kl < 1e-5
        assert found.greedy > 0.99


@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_adapters(dtype: str, tiny: Path, tmp_path: Path) -> None:
    ids = AutoTokenizer.from_pretrained(TINY)(texts()[0])["input_ids"][:300]
    small = export(tiny / "pirate", "tiny-lm", dtype=dtype, out=tmp_path / "pirate.gguf").path
    model = PeftModel.from_pretrained(AnyLM.from_pretrained(TINY, dtype=torch.float32), tiny / "pirate").eval()
    found = distance(asked(tiny / "f32.gguf", ids, small), answer(model, ids), f"adapter in {dtype}")
    assert found.largest < NARROW[dtype]


def test_the_alpha_that_llama_cpp_would_read_as_none(tiny: Path, tmp_path: Path) -> None:
    """Every scale 0: the runtime takes an alpha of 0 for a scale of 1, so another one stands there."""
    adapter = Adapter.load(tiny / "pirate")
    nothing = {path: type(pair)(pair.down, pair.up, 0.0) for path, pair in adapter.pairs.items()}
    small = export(saved(Adapter(nothing), tmp_path / "nothing"), "tiny-lm").path
    ids = list(range(6, 60))
    assert torch.equal(asked(tiny / "f32.gguf", ids, small), asked(tiny / "f32.gguf", ids))
