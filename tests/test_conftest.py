"""The miniature base that other tests train on really is a Stable Diffusion base, and the drawn pictures differ."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

WORDS = 6  # of "a red house by the sea": each is one token


def test_tiny_base_loads_with_diffusers_and_makes_a_picture(tiny_base: Path) -> None:
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base)
    pipeline.set_progress_bar_config(disable=True)

    def draw(prompt: str) -> np.ndarray:
        generator = torch.Generator().manual_seed(1)
        result = pipeline(prompt, num_inference_steps=2, height=16, width=16, generator=generator, output_type="np")
        return np.asarray(result.images)

    picture = draw("a red house by the sea")
    assert picture.shape == (1, 16, 16, 3)
    assert np.isfinite(picture).all()
    assert not np.array_equal(picture, draw("a blue boat at night"))


def test_tiny_base_has_the_classes_of_sd15(tiny_base: Path) -> None:
    index = json.loads((tiny_base / "model_index.json").read_text())
    classes = {part: entry[1] for part, entry in index.items() if isinstance(entry, list) and entry[1]}
    assert classes == {
        "scheduler": "DDIMScheduler",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
    }


def test_tiny_tokenizer_knows_words_spells_others_and_pads(tiny_base: Path) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(tiny_base / "tokenizer")
    known = tokenizer("a red house by the sea").input_ids
    assert len(known) == WORDS + 2
    assert (known[0], known[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.eos_token_id == len(tokenizer) - 1  # as in CLIP, where pooling finds the end by the largest id
    assert len(tokenizer("zebra").input_ids) == len("zebra") + 2
    assert len(tokenizer("a", padding="max_length", truncation=True).input_ids) == 77
    assert tokenizer.decode(known, skip_special_tokens=True) == "a red house by the sea"


def test_pictures_differ_and_have_captions(picture_folder: Callable[..., Path]) -> None:
    folder = picture_folder(6, sizes=[(16, 16), (24, 16)])
    pictures = [Image.open(path) for path in sorted(folder.glob("*.png"))]
    assert [picture.size for picture in pictures] == [(16, 16), (24, 16)] * 3
    assert len({picture.tobytes() for picture in pictures}) == 6
    assert all((folder / f"{number:02}.txt").read_text().startswith("a ") for number in range(6))
    assert not list(picture_folder(2, captions=False, name="bare").glob("*.txt"))


def test_the_users_cache_and_the_network_are_out_of_reach() -> None:
    assert "stylora-test-cache" in os.environ["STYLORA_CACHE"]
    assert os.environ["HF_HUB_OFFLINE"] == "1"
