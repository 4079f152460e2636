"""An adapter file gives the same picture in diffusers' own pipeline as in stylora, its text-encoder part included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from studio.draw import generate
from studio.draw.recipe import Recipe
from studio.draw.use import Use
from trainers import run
from trainers.config import TrainConfig
from trainers.lora.adapter import Adapter, AdapterInfo, components

PROMPT, SEED, STEPS = "a red house by the sea", 7, 6
ASKED = Recipe(PROMPT, "night", seed=SEED, steps=STEPS, guidance=4.0)
STRONGER = 15.0  # the few steps of a test change little; the files must differ from the base so that all can see it

VARIANTS = {
    "kohya": {"adapter.format": "kohya"},
    "diffusers": {"adapter.format": "diffusers"},
    "kohya, rsLoRA, feed-forward too": {"adapter.format": "kohya", "lora.rslora": True, "lora.targets": "attention+ff"},
    "diffusers, every layer": {
        "adapter.format": "diffusers",
        "lora.targets": "all-linear",
        "lora.text_targets": "all-linear",
    },
}


@pytest.fixture(params=VARIANTS, ids=lambda name: name.replace(" ", "-"))
def adapter(
    request: pytest.FixtureRequest, tiny_base: Path, tmp_path: Path, picture_folder: Callable[..., Path]
) -> Path:
    """Trained for a few steps, its `up` matrices then enlarged; rank, alpha and the text encoder's rank all differ."""
    values = {
        "base": str(tiny_base),
        "data": str(picture_folder(n=2)),
        "out": str(tmp_path / "run"),
        "lora.rank": 4,
        "lora.alpha": 10.0,
        "lora.text_rank": 3,
        "adapter.dtype": "fp32",
        "train.steps": 4,
        "train.batch": 2,
        "optim.lr": 1e-2,
        "optim.warmup": 1,
    }
    config = TrainConfig.build(values=values | VARIANTS[request.param])
    for _ in run.start(config):
        pass
    trained = Adapter.load(run.adapter_path(config))
    pairs = {path: replace(pair, up=pair.up * STRONGER) for path, pair in trained.pairs.items()}
    assert components(trained) == ("text_encoder", "unet")
    assert all(float(pair.up.abs().max()) > 0 for pair in pairs.values())
    return Adapter(pairs, trained.info).save(tmp_path / "strong.safetensors", config.adapter.format, torch.float32)


def theirs(base: Path, adapter: Path | None) -> np.ndarray[Any, Any]:
    """The picture as diffusers alone makes it."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(base)
    pipeline.set_progress_bar_config(disable=True)
    if adapter:
        pipeline.load_lora_weights(adapter.parent, weight_name=adapter.name)
    made = pipeline(
        prompt=PROMPT,
        negative_prompt="night",
        num_inference_steps=STEPS,
        guidance_scale=ASKED.guidance,
        height=16,
        width=16,
        generator=torch.Generator().manual_seed(SEED),
    )
    return pixels(made.images[0])


def ours(base: Path, adapter: Path | None) -> np.ndarray[Any, Any]:
    recipe = replace(ASKED, base=str(base), adapters=(Use(adapter),) if adapter else ())
    ((_, picture),) = generate.draw(generate.load(recipe, "cpu"), [recipe])
    return pixels(picture.image)


def pixels(picture: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(picture, dtype=int)


def largest(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> int:
    return int(np.abs(one - other).max())


def test_diffusers_makes_the_same_picture(adapter: Path, tiny_base: Path, tmp_path: Path) -> None:
    bare, here, there = ours(tiny_base, None), ours(tiny_base, adapter), theirs(tiny_base, adapter)
    assert largest(here, there) <= 1  # of 255
    assert largest(here, bare) > 20
    whole = Adapter.load(adapter)
    for part in components(whole):  # each part shows, so that neither could have been lost in both
        pairs = {path: pair for path, pair in whole.pairs.items() if path.startswith(f"{part}.")}
        alone = Adapter(pairs, AdapterInfo()).save(tmp_path / f"{part}.safetensors", dtype=torch.float32)
        assert largest(ours(tiny_base, alone), here) > 4


def test_the_bare_base_is_the_same_in_both(tiny_base: Path) -> None:
    assert largest(ours(tiny_base, None), theirs(tiny_base, None)) <= 1
