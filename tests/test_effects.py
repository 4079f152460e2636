"""`stylora conflict` and `stylora strength` as a person types them, on a tiny base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import studio.commands.effects  # noqa: F401
from trainers.cli import app
from trainers.lora.adapter import Adapter, AdapterInfo, content_digest
from trainers.lora.pair import LoraPair

PATHS = ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
         "text_encoder.text_model.encoder.layers.0.self_attn.q_proj")  # fmt: skip


def run(*words: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studio.look.measure.PICTURE_STEPS", 2)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    made = []
    for seed, name in enumerate(("ink", "neon", "wash")):
        g = torch.Generator().manual_seed(seed)
        pairs = {p: LoraPair(torch.randn(4, 32, generator=g), torch.randn(32, 4, generator=g), 4.0) for p in PATHS}
        info = AdapterInfo({"modelspec.trigger_phrase": "sks"} if name == "ink" else {})
        made.append(Adapter(pairs, info).save(tmp_path / f"{name}.safetensors"))
    return made


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a red house\n")
    return path


def test_conflict_without_a_base(files: list[Path]) -> None:
    output = run("conflict", *files).output
    assert "neon + wash" in output
    assert "measured on the base" not in output
    assert "--base" in output
    found = json.loads(run("conflict", *files[:2], "--json").stdout)
    assert found["pairs"][0]["measured"] is None
    assert 0 < found["pairs"][0]["blocks"][-1]["writes"] < 0.6


def test_conflict_on_a_base(files: list[Path], prompts: Path, tiny_base: Path, tmp_path: Path) -> None:
    options = ("--base", tiny_base, "--prompts", prompts, "--device", "cpu")
    out = tmp_path / "conflict.png"
    output = run("conflict", f"{files[0]}:0.5", *files[1:], *options, "--out", out).output
    assert "ink + neon: they " in output
    assert "trigger word: sks" in output
    with Image.open(out) as sheet:
        assert sheet.height > 600
    weak, strong = (
        json.loads(run("conflict", f"{files[0]}:{weight}", files[1], *options, "--json").stdout)["pairs"][0]["measured"]
        for weight in (0.1, 1)
    )
    assert 0 < weak["effects"][0] < strong["effects"][0]
    assert weak["effects"][1] == pytest.approx(strong["effects"][1], rel=1e-3)
    assert weak["verdict"]


def test_strength_of_several(files: list[Path], prompts: Path, tiny_base: Path, tmp_path: Path) -> None:
    out = tmp_path / "strength.png"
    words = ("strength", *files[:2], "--base", tiny_base, "--weights", "0..1/3", "--prompts", prompts)
    output = run(*words, "--reference", "0.001", "--out", out).output
    assert "equal-feel weight" in output
    assert "trigger word: sks" in output
    with Image.open(out) as sheet:
        with_pictures = sheet.height
    run(*words, "--no-pictures", "--out", out, "--overwrite")
    with Image.open(out) as sheet:
        assert sheet.height < with_pictures
    found = json.loads(run(*words, "--json").stdout)
    assert found["adapters"]["neon"]["weights"] == [0, 0.5, 1]
    assert found["adapters"]["neon"]["effects"][0] == 0


def test_the_equal_feel_weight_is_kept_in_the_file(files: list[Path], prompts: Path, tiny_base: Path) -> None:
    before = [Adapter.load(file) for file in files[:2]]
    words = ("strength", *files[:2], "--base", tiny_base, "--weights", "0,1", "--prompts", prompts, "--write")
    stderr = run(*words, "--reference", "5", code=1).stderr
    assert stderr.count("no weight has the effect 5") == 2
    assert [Adapter.load(file).info for file in files[:2]] == [adapter.info for adapter in before]
    run(*words, "--reference", "0.001")
    for file, old in zip(files, before, strict=False):
        new = Adapter.load(file)
        entry = json.loads(new.info.metadata["stylora.equal_feel"])
        assert content_digest(new) == content_digest(old)
        assert entry["effect"] == 0.001
        assert 0 < entry["weight"] < 1
        assert len(entry["base"]) == 64


def test_where_a_folder_is_among_them_no_weight_is_kept(
    files: list[Path], prompts: Path, tiny_base: Path, tmp_path: Path
) -> None:
    folder, before = Adapter.load(files[1]).save(tmp_path / "neon.peft", "peft", torch.float32), files[0].read_bytes()
    words = ("strength", files[0], folder, "--base", tiny_base, "--weights", "0,1", "--prompts", prompts, "--write")
    assert "neon.peft: is a PEFT folder" in run(*words, "--reference", "0.001", code=1).stderr
    assert files[0].read_bytes() == before


def test_one_adapter_and_the_same_one_twice(files: list[Path], tiny_base: Path) -> None:
    assert "a conflict needs 2 adapters" in run("conflict", files[0], code=1).stderr
    copy = files[0].with_name("copy.safetensors")
    copy.write_bytes(files[0].read_bytes())
    for command in (("conflict",), ("strength", "--base", tiny_base)):
        assert "ink and copy: equal in every number" in run(*command, files[0], copy, code=1).stderr


def test_all_faults_at_once(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "there.png").write_bytes(b"mine")
    wrong = ("--prompts", tmp_path / "none.txt", "--out", tmp_path / "there.png")
    stderr = run("conflict", files[0], f"{files[1]}:x", f"{files[2]}:schedule=0@0,1@1", *wrong, code=1).stderr
    for words in ("'x' is no weight", "without schedules", "none.txt", "there.png exists"):
        assert words in stderr, words
    stderr = run("strength", tmp_path / "gone", "--weights", "0..x/3", "--reference", "-1", *wrong, code=1).stderr
    for words in ("gone", "--weights 0..x/3", "--reference -1", "none.txt", "there.png exists"):
        assert words in stderr, words
    assert "two different weights" in run("strength", files[0], "--weights", "1", code=1).stderr


def test_another_base(files: list[Path], tiny_base: Path, tmp_path: Path) -> None:
    wide = Adapter({PATHS[0]: LoraPair(torch.ones(2, 64), torch.ones(64, 2), 1.0)}).save(tmp_path / "wide.safetensors")
    stderr = run("strength", files[0], wide, "--base", tiny_base, code=1).stderr
    assert "don't fit the base" in stderr
    assert "wide: unet" in stderr
    assert "different families" in run("conflict", files[0], wide, code=1).stderr
