"""The file says every delta as llama.cpp's runtime applies it, alpha / rank * lora_b @ lora_a, or it isn't kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

pytest.importorskip("gguf", reason="the extra `gguf` isn't installed")

import gguf

from studio import cli
from studio.gguf import adapter as writing
from studio.gguf.adapter import DTYPES, export
from studio.gguf.package import value
from tests.ggufs import MODULES, SHAPES, K, Q, as_in_ggml, numbers, saved, small, uneven
from trainers.errors import AdapterError, RunError, StyloraError
from trainers.lora.adapter import Adapter, content_digest
from trainers.lora.pair import LoraPair

ROUNDED = {"fp32": 1e-6, "fp16": 1e-3, "bf16": 1e-2, "q8_0": 2e-2}


@pytest.fixture
def base(tmp_path: Path) -> str:
    return str(small(tmp_path / "base.gguf"))


def deltas(path: Path) -> dict[str, Tensor]:
    """{tensor of the base: what the runtime adds to it}, as llama-adapter.cpp has it: alpha 0 would be a scale of 1."""
    alpha, parts = value(gguf.GGUFReader(path), "adapter.lora.alpha"), numbers(path)
    assert {name.rpartition(".")[2] for name in parts} == {"lora_a", "lora_b"}
    made = {}
    for name in {name.rpartition(".")[0] for name in parts}:
        a, b = parts[f"{name}.lora_a"], parts[f"{name}.lora_b"]
        made[name] = (alpha / b.shape[1] if alpha else 1.0) * b @ a
    return made


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_runtime_adds_the_adapters_deltas(dtype: str, base: str, tmp_path: Path) -> None:
    adapter = uneven(SHAPES)
    made = export(saved(adapter, tmp_path / "pirate"), base, dtype=dtype)
    found = deltas(made.path)
    assert made.path == tmp_path / "pirate.gguf"
    assert found.keys() == {tensor for tensor, _ in MODULES.values()}
    worst = 0.0
    for path, (tensor, _) in MODULES.items():
        wanted = as_in_ggml(path, adapter.pairs[path].delta())
        worst = max(worst, float((found[tensor] - wanted).norm() / wanted.norm()))
    assert worst == pytest.approx(made.error, rel=0.05, abs=1e-7)
    assert worst < ROUNDED[dtype]


def test_the_header(base: str, tmp_path: Path) -> None:
    adapter = uneven(SHAPES)
    reader = gguf.GGUFReader(export(saved(adapter, tmp_path / "pirate"), base).path)
    facts = {
        "general.type": "adapter",
        "general.architecture": "llama",
        "general.name": "pirate",
        "adapter.type": "lora",
        "adapter.lora.alpha": 4.0,
        "stylora.trigger": "arr",
        "stylora.digest": content_digest(adapter),
    }
    assert {key: value(reader, key) for key in facts} == facts
    assert reader.get_field("adapter.lora.alpha").types == [gguf.GGUFValueType.FLOAT32]
    assert not any(key.startswith(("tokenizer", "llama.")) for key in reader.fields)
    assert {each.name: tuple(reversed(each.shape)) for each in reader.tensors}["blk.0.attn_k.weight.lora_b"] == (32, 2)


@pytest.mark.parametrize("alphas", [(0.0, 8.0), (-3.0, 0.0), (0.0, 0.0), (1e-3, 7.0)])
def test_odd_alphas(alphas: tuple[float, float], base: str, tmp_path: Path) -> None:
    pairs = uneven({Q: (64, 64), K: (32, 64)}).pairs
    odd = {path: replace(pair, alpha=alpha) for (path, pair), alpha in zip(sorted(pairs.items()), alphas, strict=True)}
    found = deltas(export(saved(Adapter(odd), tmp_path / "odd"), base).path)
    for path, pair in odd.items():
        torch.testing.assert_close(found[MODULES[path][0]], as_in_ggml(path, pair.delta()))


def test_narrow_rows_of_q8_0_are_said(base: str, tmp_path: Path) -> None:
    made = export(saved(uneven(SHAPES), tmp_path / "a"), base, dtype="q8_0")
    kinds = {each.name: each.tensor_type.name for each in gguf.GGUFReader(made.path).tensors}
    assert {kind for name, kind in kinds.items() if name.endswith("a")} == {"Q8_0"}
    assert {kind for name, kind in kinds.items() if name.endswith("b")} == {"F16"}
    assert made.notes == ("4 tensors are F16: their rows aren't multiples of 32, which Q8_0 wants",)


def test_the_adapters_own_kind_of_number_is_kept(base: str, tmp_path: Path) -> None:
    uneven(SHAPES).save(tmp_path / "half", "peft", torch.bfloat16)
    assert export(tmp_path / "half", base).dtype == "BF16"
    assert export(saved(uneven(SHAPES), tmp_path / "whole"), base).dtype == "F32"


def large(pairs: dict[str, LoraPair]) -> None:
    pairs[Q] = replace(pairs[Q], up=pairs[Q].up * 1e6)


def of_another_size(pairs: dict[str, LoraPair]) -> None:
    pairs[Q] = replace(pairs[Q], up=torch.ones(96, pairs[Q].rank))


def of_the_head(pairs: dict[str, LoraPair]) -> None:
    pairs["model.lm_head"] = LoraPair(torch.ones(1, 64), torch.ones(3, 1), 1.0)


def of_another_block(pairs: dict[str, LoraPair]) -> None:
    pairs[Q.replace(".0.", ".1.")] = pairs.pop(Q)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (large, r"attn_q.weight.lora_b: too large a number for F16(.|\n)*bf16 or fp32"),
        (of_another_size, r"q_proj: made for \(96, 64\), the base has \(64, 64\)"),
        (of_the_head, r"lm_head: the base has no such module(.|\n)*train without lm_head"),
        (of_another_block, r"layers.1.self_attn.q_proj: the base has no such module"),
    ],
)
def test_what_has_no_place_is_refused(
    spoil: Callable[[dict[str, LoraPair]], None], words: str, base: str, tmp_path: Path
) -> None:
    pairs = dict(uneven(SHAPES).pairs)
    spoil(pairs)
    with pytest.raises(AdapterError, match=words):
        export(saved(Adapter(pairs), tmp_path / "a"), base, dtype="fp16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "base.gguf"]


def test_a_file_that_is_something_else_is_not_kept(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = writing.encode
    monkeypatch.setattr(writing, "encode", lambda kind, part: right(kind, part * 1.001))
    with pytest.raises(RunError, match=r"isn't the adapter(.|\n)*q_proj: the delta in the file is off by"):
        export(saved(uneven(SHAPES), tmp_path / "a"), base)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "base.gguf"]


def test_nothing_is_written_over_unasked(base: str, tmp_path: Path) -> None:
    path = saved(uneven(SHAPES), tmp_path / "a")
    (tmp_path / "Modelfile").write_text("mine")
    with pytest.raises(AdapterError, match=r"Modelfile: exists"):
        export(path, base, origin="tiny-lm")
    assert not (tmp_path / "a.gguf").exists()
    export(path, base)
    with pytest.raises(AdapterError, match=r"a.gguf: exists"):
        export(path, base)
    made = export(path, base, origin="tiny-lm", overwrite=True)
    assert made.modelfile == tmp_path / "Modelfile"
    assert made.modelfile.read_text() == "FROM tiny-lm\nADAPTER ./a.gguf\n"
    with pytest.raises(AdapterError, match=r"name it ….gguf"):
        export(path, base, out=tmp_path / "a.bin")


def test_a_folder_is_a_base_too_and_the_command_tells(tmp_path: Path) -> None:
    def run(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli.app, ["export", str(path), "--to", "gguf", *words])
        if isinstance(result.exception, StyloraError):
            return 1, str(result.exception)
        return result.exit_code, result.output

    path = saved(uneven({f"model.model.layers.3.self_attn.{name}_proj": (64, 256) for name in "kv"}), tmp_path / "a")
    code, told = run("--base", "tiny-lm", "--modelfile", "tiny-lm")
    assert code == 0, told
    assert "2 modules, F32" in told
    assert "read back" in told
    assert "TEMPLATE" in (tmp_path / "Modelfile").read_text()
    assert "no --base" in run()[1]
    assert "wanted one of fp32" in run("--base", "tiny-lm", "--dtype", "int4")[1]
