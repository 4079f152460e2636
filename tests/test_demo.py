"""The demo on the embedded base, in small: it trains, compares, measures, and says what to do next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from studio import demo
from studio.cli import app
from trainers import samples
from trainers.lora.adapter import Adapter, components

BASE = samples.sample_data() / "bases" / "tiny-sd"
PARTS = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")

needs_base = pytest.mark.skipif(
    not all((BASE / f"{part}.safetensors").is_file() for part in PARTS),
    reason=f"{BASE} is not whole: sample_data/make makes it",
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"COUNT": 3, "SHOWN": 2, "STEPS": 2}.items():
        monkeypatch.setattr(demo, name, value)
    # the picture in the file's header: its 25 steps are tested elsewhere
    monkeypatch.setattr(demo.run.pictures, "thumbnail", lambda *_: b"jpeg")


@needs_base
def test_the_demo(small: None, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = ["demo", "--out", str(out), "--steps", "2", "--set", "train.batch=2", "--set", "lora.rank=4"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""

    report = json.loads((out / "report.json").read_text())
    assert report["style"] == "ink"
    assert -5 < report["style_gain"] < 1
    for name in ("content_kept", "content_of_base"):
        assert report[name] in (0, 0.333, 0.667, 1)
    assert report["steps"] == 2
    assert 0 < report["seconds"] < report["seconds_whole_demo"]
    assert report["pictures_per_second"] == pytest.approx(4 / report["seconds"], rel=0.05)
    assert report["peak_memory_bytes"] > 1e8
    for trainable, total in report["parameters"].values():
        assert 0 < trainable < total
    trained = sum(trainable for trainable, _ in report["parameters"].values())
    assert set(report["parameters"]) == {"unet", "text_encoder"}
    assert 2 * trained <= report["optimizer_state_bytes"] < 3 * trained  # two moments of a byte each, and their scales

    adapter = Adapter.load(out / report["adapter"])
    assert components(adapter) == ("text_encoder", "unet")
    with Image.open(out / "before_after.png") as sheet:
        assert sheet.width > 2 * 160
        assert sheet.height > 2 * 160
        assert sheet.crop((sheet.width // 2, 100, sheet.width, sheet.height)).getcolors(4) is None  # pictures are in it

    shown = " ".join(result.stdout.split())
    assert f"Look at {out / 'before_after.png'}" in shown
    assert f"stylora generate --adapter {out / 'ink.safetensors'}" in shown
    assert "stylora train --data FOLDER" in shown
    for name in ("style_gain", "content_kept"):
        assert str(report[name]) in shown

    again = CliRunner().invoke(app, command)
    assert again.exit_code == 1
    assert f"{out} holds a finished run" in again.stderr
    assert json.loads((out / "report.json").read_text()) == report


def test_the_prompts_show_what_no_style_shows() -> None:
    asked = demo.prompts("ink")
    assert len(asked) == demo.COUNT == len({prompt.text for prompt in asked})
    assert {prompt.thing for prompt in asked} == set(demo.UNSEEN)
    captions = [file.read_text() for file in (samples.sample_data() / "styles").glob("*/*.txt")]
    assert captions
    assert not [c for c in captions for thing in demo.UNSEEN if thing in c.split()]
    for prompt in asked:
        assert prompt.thing in prompt.text.split()
        assert prompt.text.endswith(", ink style")
    assert any(prompt.text.startswith("an orange ") for prompt in asked)


def test_a_style_that_is_not_there(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["demo", "--style", "cubism", "--out", str(tmp_path / "demo")])
    assert result.exit_code == 1
    assert "no sample style called 'cubism'" in result.stderr
    assert "ink" in result.stderr
    assert not (tmp_path / "demo").exists()


def test_a_second_demo_takes_the_next_folder(tmp_path: Path) -> None:
    wish = tmp_path / "demo"
    assert demo.free_folder(wish) == wish
    wish.mkdir()
    (tmp_path / "demo-2").mkdir()
    assert demo.free_folder(wish) == tmp_path / "demo-3"
