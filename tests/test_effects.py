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
from tests.lms import lm
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
    monkeypatch.setattr("studio.look.measure_pictures.PICTURE_STEPS", 2)


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


def test_a_folder_keeps_its_weight_too(files: list[Path], prompts: Path, tiny_base: Path, tmp_path: Path) -> None:
    folder = Adapter.load(files[1]).save(tmp_path / "neon.peft", "peft", torch.float32)
    words = ("strength", folder, "--base", tiny_base, "--weights", "0,1", "--prompts", prompts, "--write")
    run(*words, "--reference", "0.001")
    assert "weight" in Adapter.load(folder).info.metadata["stylora.equal_feel"]


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


# --- text ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lm("llama", tmp_path_factory.mktemp("lms") / "llama")


@pytest.fixture
def texts(tmp_path: Path) -> list[Path]:
    made = []
    for seed, name in enumerate(("pirate", "herald")):
        g = torch.Generator().manual_seed(seed)
        pair = LoraPair(torch.randn(4, 32, generator=g), torch.randn(32, 4, generator=g) * 0.2, 4.0)
        made.append(Adapter({"model.model.layers.0.self_attn.q_proj": pair}).save(tmp_path / name, "peft"))
    return made


def test_strength_of_text(texts: list[Path], tiny_lm: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "strength.png"
    words = ("strength", *texts, "--base", tiny_lm, "--weights", "0,0.5,1", "--prompts", prompts, "--reference", "0.01")
    output = run(*words, "--out", out, "--write").output
    for part in ("equal-feel weight", "KL divergence from the base", "equal feel: 0.", "a red house"):
        assert part in output, part
    assert "stylora.equal_feel" in Adapter.load(texts[0]).info.metadata
    with Image.open(out) as sheet:
        with_lines = sheet.height
    output = run(*words, "--no-pictures", "--out", out, "--overwrite").output
    assert "a red house" not in output
    with Image.open(out) as sheet:
        assert sheet.height < with_lines
    found = json.loads(run(*words, "--json").stdout)["adapters"]["pirate"]
    assert len(found["texts"]) == 4
    assert found["nats"][0] == 0 < found["nats"][2]


def test_conflict_of_text(texts: list[Path], tiny_lm: Path, prompts: Path, tmp_path: Path) -> None:
    words = ("conflict", texts[0], f"{texts[1]}:0.5", "--base", tiny_lm, "--prompts", prompts)
    output = run(*words, "--out", tmp_path / "conflict.png").output
    for part in ("L00", "pirate + herald: they ", "bare base", "both", "KL divergence from the base"):
        assert part in output, part
    found = json.loads(run(*words, "--json").stdout)["pairs"][0]
    assert len(found["texts"]) == 4
    assert len(found["measured"]["nats"]) == 3
    assert "has no use for block IN00" in run("conflict", f"{texts[0]}:blocks=IN00=0", texts[1], code=1).stderr


def test_pictures_and_text_are_told_apart(texts: list[Path], files: list[Path], tiny_lm: Path, tiny_base: Path) -> None:
    for command in ("conflict", "strength"):
        assert "for pictures and for text don't go together" in run(command, texts[0], files[0], code=1).stderr
    assert "pirate: is an adapter for text" in run("strength", texts[0], "--base", tiny_base, code=1).stderr
    assert "ink: is an adapter for pictures" in run("strength", files[0], "--base", tiny_lm, code=1).stderr
