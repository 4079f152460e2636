"""The commands blend and resize: what they print, write and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import studio.commands.combine  # noqa: F401
from studio.blend.certificate import KEY
from studio.blend.methods import METHODS
from trainers.cli import app
from trainers.lora.adapter import Adapter, LoraPair, digest

PATHS = ("unet.mid_block.attentions.0.proj_in", "unet.up_blocks.1.attentions.0.proj_in")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("ink", "neon")):
        numbers = torch.Generator().manual_seed(seed)
        pairs = {path: LoraPair(torch.randn(3, 8, generator=numbers), torch.randn(6, 3, generator=numbers), 3.0)
                 for path in PATHS}  # fmt: skip
        Adapter(pairs).save(tmp_path / f"{name}.safetensors")
    return tmp_path


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(words))
    return result.exit_code, result.stdout, result.stderr


def test_blend_writes_a_file_a_chart_and_a_table(folder: Path) -> None:
    code, out, _ = run("blend", "ink.safetensors:0.6", "neon.safetensors:0.4", "--rank", "2", "--plot", "kept.png",
                       "--out", "new/ab.safetensors")  # fmt: skip
    assert code == 0
    for part in ("svd of 0.6 ink + 0.4 neon", "MID", "OUT03", "all", "isn't said by ink, neon", "new/ab.safetensors",
                 digest("new/ab.safetensors")[:12], "kept.png"):  # fmt: skip
        assert part in out
    assert {pair.rank for pair in Adapter.load("new/ab.safetensors").pairs.values()} == {2}
    assert Path("kept.png").read_bytes().startswith(b"\x89PNG")


def test_json_is_the_certificate_of_the_file(folder: Path) -> None:
    code, out, _ = run("blend", "ink.safetensors", "neon.safetensors", "--method", "ties", "--density", "0.3", "--json",
                       "--out", "ab.safetensors")  # fmt: skip
    assert code == 0
    said = json.loads(out)
    assert (said.pop("out"), said.pop("sha256")) == ("ab.safetensors", digest("ab.safetensors"))
    assert len(said.pop("notes")) == 1
    assert said == json.loads(Adapter.load("ab.safetensors").info.metadata[KEY])
    assert (said["method"], said["density"], said["rank"]) == ("ties", 0.3, 3)


def test_resize_writes_beside_the_file_and_not_twice(folder: Path) -> None:
    assert run("resize", "ink.safetensors", "--energy", "0.9", "--dtype", "fp32")[0] == 0
    assert Path("ink-energy0.9.safetensors").is_file()
    code, _, err = run("resize", "ink.safetensors", "--energy", "0.9")
    assert (code, "add --overwrite" in err) == (1, True)
    assert run("resize", "ink.safetensors", "--energy", "0.9", "--overwrite")[0] == 0


def test_the_help_names_every_method() -> None:
    said = run("blend", "--help")[1]
    assert all(name in said for name in METHODS)


def test_faults_come_all_at_once_and_nothing_is_written(folder: Path) -> None:
    had = sorted(folder.iterdir())
    code, out, err = run("blend", "ink.safetensors:x", "gone", "--method", "mean", "--rank", "0", "--plot", "a.jpg",
                         "--out", "ab.safetensors")  # fmt: skip
    assert (code, out) == (1, "")
    for part in ("'x' is no weight", "gone", "'mean'", "rank: got 0", "a.jpg", "Next:"):
        assert part in err
    assert sorted(folder.iterdir()) == had


def test_the_same_adapter_twice_is_told_and_an_odd_name_refused(folder: Path) -> None:
    code, out, _ = run("blend", "ink.safetensors", "ink.safetensors:0.5", "--out", "twice.safetensors")
    assert code == 0
    assert "ink and ink are the same adapter: it goes in with the sum of their weights" in out
    code, _, said = run("blend", "ink.safetensors", "neon.safetensors", "--out", "ab.txt")
    assert (code, "ab.txt: an adapter is written as ….safetensors" in said) == (1, True)


def test_resize_without_a_rank_speaks_of_nothing_else(folder: Path) -> None:
    code, _, said = run("resize", "ink.safetensors")
    assert (code, "neither --rank nor --energy" in said, "overwrite" in said) == (1, True, False)


def test_text_adapters_are_blended_into_a_folder(folder: Path) -> None:
    for seed, name in enumerate(("pirate", "herald")):
        numbers = torch.Generator().manual_seed(seed)
        pairs = {f"model.model.layers.{k}.mlp.up_proj": LoraPair(torch.randn(3, 8, generator=numbers),
                                                               torch.randn(6, 3, generator=numbers), 3.0)
                 for k in range(2)}  # fmt: skip
        Adapter(pairs).save(folder / name, "peft", torch.float32)
    code, out, _ = run("blend", "pirate:0.6", "herald:0.4", "--method", "concat", "--out", "both", "--dtype", "fp32")
    assert (code, "concat of 0.6 pirate + 0.4 herald" in out, "L01" in out) == (0, True, True)
    for path, pair in Adapter.load("both").pairs.items():
        one, other = (Adapter.load(name).pairs[path].delta() for name in ("pirate", "herald"))
        assert torch.allclose(pair.delta(), 0.6 * one + 0.4 * other, atol=1e-5)
    assert run("resize", "both", "--rank", "2")[0] == 0
    assert Adapter.load("both-rank2").info.metadata["stylora.kind"] == "text"
    assert (run("resize", "both", "--rank", "2")[0], run("resize", "both", "--rank", "2", "--overwrite")[0]) == (1, 0)
    code, _, said = run("blend", "pirate", "herald:te=0.5", "--out", "x.safetensors", "--format", "kohya")
    assert code == 1
    for part in ("kohya has no names for a language model", "has no use for a text encoder's weight"):
        assert part in said, part
    assert "a PEFT adapter is a folder; name it x" in run("resize", "both", "--rank", "1", "--out", "x.safetensors")[2]
    assert "ink is for pictures" in run("blend", "pirate", "ink.safetensors", "--out", "x")[2]
