"""merge, verify and extract as commands: the whole round, in fresh processes, and errors in plain words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import random_adapter, single_file
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
    told = run("verify", out)
    assert "proved" in told
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
