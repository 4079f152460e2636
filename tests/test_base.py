"""tiny-sd is a whole base of SD 1.5's classes, small enough to travel, and it draws what it is asked for."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "sample_data" / "bases" / "tiny-sd"
MAKE = ROOT / "sample_data" / "make"
CLASSES = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "tokenizer": "CLIPTokenizer",
}


@pytest.fixture(scope="module")
def measure() -> Iterator[ModuleType]:
    """The script that measures the base; scripts find one another because they lie in one folder."""
    sys.path.insert(0, str(MAKE))
    import measure

    yield measure
    sys.path.remove(str(MAKE))


@pytest.fixture(scope="module")
def pipeline(measure: ModuleType) -> Any:
    return measure.opened(BASE)


def table() -> dict[str, tuple[float, str, float]]:
    """Bar -> (wanted, "≥" or "≤", measured), from the README."""
    text = (BASE / "README.md").read_text()
    rows = re.findall(r"^\| (.+?) \| ([≥≤]) ([\d.]+) \S+ \| ([\d.]+) ", text, re.MULTILINE)
    return {name: (float(wanted), sign, float(measured)) for name, sign, wanted, measured in rows}


def test_the_classes_are_those_of_sd15(pipeline: Any) -> None:
    assert type(pipeline).__name__ == "StableDiffusionPipeline"
    assert {name: type(getattr(pipeline, name)).__name__ for name in CLASSES} == CLASSES


def test_module_paths_are_those_of_sd15(pipeline: Any) -> None:
    """What files of adapters name: a cross-attention block on the way down, one in the middle, one on the way up."""
    paths = {path for path, _ in pipeline.unet.named_modules()}
    blocks = ("down_blocks.0.attentions.0", "mid_block.attentions.0", "up_blocks.1.attentions.0")
    assert {f"{block}.transformer_blocks.0.attn2.to_k" for block in blocks} <= paths
    assert any(path.endswith("layers.0.self_attn.q_proj") for path, _ in pipeline.text_encoder.named_modules())


def test_all_files_together_are_small() -> None:
    assert sum(path.stat().st_size for path in BASE.rglob("*") if path.is_file()) <= 32e6


def test_the_readme_tells_the_figures_and_none_is_missed() -> None:
    rows = table()
    wanted = {"VAE PSNR, plain: 64": 26, "VAE PSNR, ink: 64": 20, "object right: 200": 90, "colour right: 200": 90}
    for start, least in {**wanted, "all files": 32}.items():
        (row,) = [row for name, row in rows.items() if name.startswith(start)]
        assert row[0] == least
    missed = {name: row for name, row in rows.items() if (row[2] < row[0] if row[1] == "≥" else row[2] > row[0])}
    assert missed == {}
    assert {"samples.png", "loss.png"} <= {path.name for path in BASE.iterdir()}


def test_the_picture_encoder_gives_scenes_back(measure: ModuleType, pipeline: Any) -> None:
    assert measure.psnr(pipeline.vae, measure.held_out(None, 8)) >= 26 - 1


def test_it_draws_what_it_is_asked_for(measure: ModuleType, pipeline: Any) -> None:
    scenes = measure.prompts(8)
    judge = measure.SceneJudge.load(measure.DATA / "judge.safetensors")
    made = measure.generated(pipeline, [scene.caption for scene in scenes], measure.GUIDANCE)
    things, _ = measure.rights(judge, made, scenes)
    assert things >= 6
    assert measure.rights(judge, made, scenes[1:] + scenes[:1])[0] < 6  # the judge does tell pictures apart
