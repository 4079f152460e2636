"""merge, verify and extract as commands: the whole round, in fresh processes, and errors in plain words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import random_adapter, single_file
from lms import lm
from typer.testing import CliRunner

import studio.commands.merging
from trainers.cli import app
from trainers.lora.adapter import Adapter

assert studio.commands.merging


def run(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def adapter(tiny_base: Path, tmp_path: Path) -> Path:
    return random_adapter(tiny_base, 0).save(tmp_path / "wild.safetensors", dtype=torch.float32)


def test_the_whole_round(tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    one = single_file(tiny_base, tmp_path / "one.safetensors")
    out, back = tmp_path / "merged" / "wild.safetensors", tmp_path / "back" / "wild.safetensors"
    (tmp_path / "blend.toml").write_text(f'base = "./{one.name}"\n[[adapter]]\nfile = "{adapter.name}"\nweight = 0.5\n')
    told = run("merge", "--recipe", tmp_path / "blend.toml", "--config", tiny_base, "--out", out)
    assert f"{len(Adapter.load(adapter).pairs)} modules changed" in told
    assert "number by number" in told
    told = run("verify", out)
    assert "proved" in told
    assert "number by number" in told
    assert "wild at 0.5" in told
    told = run("extract", "--tuned", out, "--base", tiny_base, "--rank", 4, "--dtype", "fp32", "--out", back)
    assert "0.00% of their energy lost" in told
    assert Adapter.load(back).pairs.keys() == Adapter.load(adapter).pairs.keys()
    assert "exists" in run("extract", "--tuned", out, "--base", tiny_base, "--out", back, code=1)
    data = bytearray(out.read_bytes())
    data[-1] ^= 1
    out.write_bytes(data)
    assert "wild.safetensors has changed in" in run("verify", out, code=1)


def test_errors_are_told_at_once(tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    late = f"{adapter}:1:schedule=0@0,1@1"
    told = run("merge", "--base", tiny_base, "--adapter", late, "--out", tmp_path / "x", "--dtype", "int4", code=1)
    assert "has a schedule" in told
    assert "dtype: got int4" in told
    assert "--dtype" not in run("verify", tmp_path, code=1)
    assert "dtype: got int4" in run(
        "extract", "--tuned", tiny_base, "--base", tiny_base, "--out", tmp_path / "y", "--dtype", "int4", code=1
    )
    assert {path.name for path in tmp_path.iterdir()} == {adapter.name}


def test_a_recipes_promises_are_kept(tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "blend.toml", tmp_path / "out"
    pinned = f'base = "{tiny_base}"\n[digests]\nunet = "12"\n[[adapter]]\nfile = "{adapter.name}"\n'
    recipe.write_text(pinned)
    assert "not the base of the recipe" in run("merge", "--recipe", recipe, "--out", out, code=1)
    recipe.write_text(f'base = "{tiny_base}"\n[[adapter]]\nfile = "{adapter.name}"\nsha256 = "12"\n')
    assert "isn't the adapter of the recipe" in run("merge", "--recipe", recipe, "--out", out, code=1)


def test_partial_may_stand_in_the_recipe(tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    pairs = Adapter.load(adapter).pairs
    odd = {f"unet.down_blocks.9.resnets.{k}.conv1": pair for k, pair in enumerate(list(pairs.values())[:2])}
    Adapter({**pairs, **odd}).save(tmp_path / "odd.safetensors", "diffusers", torch.float32)
    recipe, table = (
        tmp_path / "odd.toml",
        f'base = "{tiny_base}"\n[[adapter]]\nfile = "odd.safetensors"\nweight = 0.0\n',
    )
    recipe.write_text(table)
    assert "only part" in run("merge", "--recipe", recipe, "--out", tmp_path / "out", code=1)
    recipe.write_text(f"partial = true\n{table}")
    assert "nothing would change" in run("merge", "--recipe", recipe, "--out", tmp_path / "out", code=1)


def test_the_whole_round_of_a_language_model(tmp_path: Path) -> None:
    base, out, back = lm("gpt2", tmp_path / "gpt2"), tmp_path / "merged", tmp_path / "back"
    wild = random_adapter(base, 0, kinds=("attn", "mlp")).save(tmp_path / "wild", "peft", torch.float32)
    (tmp_path / "blend.toml").write_text('base = "./gpt2"\nchat = true\n[[adapter]]\nfile = "wild"\nweight = 0.5\n')
    told = run("merge", "--recipe", tmp_path / "blend.toml", "--out", out)
    assert "KL in nats" in told
    assert "100.0%" in told
    assert f"stylora chat --base {out}" in told.replace("\n", "")
    told = run("extract", "--tuned", out, "--base", base, "--rank", 4, "--dtype", "fp32", "--out", back)
    assert "0.00% of their energy lost" in told
    found = Adapter.load(back)
    assert found.pairs.keys() == Adapter.load(wild).pairs.keys()
    assert found.info.metadata["stylora.kind"] == "text"


def test_what_goes_with_a_gguf_alone(tmp_path: Path) -> None:
    wanted = ("merge", "--out", tmp_path / "x.gguf", "--base")
    assert "--dtype: not with a .gguf base" in run(*wanted, tmp_path / "base.gguf", "--dtype", "bf16", code=1)
    assert "--modelfile: only with a .gguf base" in run(*wanted, "tiny-sd", "--modelfile", code=1)
