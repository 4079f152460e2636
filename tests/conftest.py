"""What all tests share: no network, no cache of the user's, few threads, and a base of SD 1.x in miniature."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

# Set before anything imports torch or huggingface_hub, and inherited by every child process.
THREADS = "1"  # the models here are small: a second thread costs more than it helps, most of all on a busy machine
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS=THREADS, MKL_NUM_THREADS=THREADS, TOKENIZERS_PARALLELISM="false")
CACHE = Path(tempfile.mkdtemp(prefix="stylora-test-cache-"))
os.environ["STYLORA_CACHE"] = str(CACHE)

THINGS = ("house", "boat", "tree", "cat")
COLOURS = ("red", "blue", "green", "gold", "purple")
WORDS = (*THINGS, *COLOURS, "a", "by", "the", "sea", "in", "meadow", "at", "night", "picture", "of", "style", "sks")

PictureFolder = Callable[..., Path]


def pytest_unconfigure() -> None:
    """Remove the session's cache."""
    shutil.rmtree(CACHE, ignore_errors=True)


def bpe_of(words: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges that know `words`, in CLIP's form: 256 bytes, 256 that end a word, merges, start, end."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merges[pieces[0], pieces[1]] = None
            pieces[:2] = [pieces[0] + pieces[1]]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *dict.fromkeys(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}, list(merges)


def write_tokenizer(folder: Path) -> Any:
    """Write the files of a CLIP tokenizer as SD 1.5 has them, and load it from there."""
    from transformers import CLIPTokenizer

    vocabulary, merges = bpe_of(WORDS)
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>", **marks}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return CLIPTokenizer.from_pretrained(folder)


def make_parts(tokenizer: Any) -> dict[str, Any]:
    """The components of SD 1.x with random weights (seed 0): pictures of 16 px, latents of (4, 8, 8)."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {
            "text_encoder": CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=32,
                    intermediate_size=64,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    bos_token_id=tokenizer.bos_token_id,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.pad_token_id,
                )
            ),
            "unet": UNet2DConditionModel(
                sample_size=8,
                block_out_channels=(32, 64),
                layers_per_block=1,
                cross_attention_dim=32,
                norm_num_groups=8,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            ),
            "vae": AutoencoderKL(
                sample_size=16,
                block_out_channels=(16, 16),
                latent_channels=4,
                norm_num_groups=8,
                down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
                up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            ),
            "scheduler": DDIMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
            ),
        }


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete diffusers folder with SD 1.5's classes and module paths, random weights; only to be read."""
    from diffusers import StableDiffusionPipeline

    folder = tmp_path_factory.mktemp("bases") / "tiny-base"
    tokenizer = write_tokenizer(folder / "tokenizer")
    extras = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline: Any = StableDiffusionPipeline(tokenizer=tokenizer, **make_parts(tokenizer), **extras)
    pipeline.save_pretrained(folder)
    return folder


def draw_picture(number: int, size: tuple[int, int]) -> Image.Image:
    """A coloured shape on a gradient: each number another picture, the same number always the same."""
    width, height = size
    picture = Image.linear_gradient("L").resize(size).rotate(90 * (number % 4)).resize(size).convert("RGB")
    pen = ImageDraw.Draw(picture)
    left, top = (number * 5) % (width // 2), (number * 3) % (height // 2)
    box = (left, top, left + width // 2, top + height // 2)
    (pen.rectangle if number % 2 else pen.ellipse)(box, fill=COLOURS[number % len(COLOURS)])
    return picture


@pytest.fixture
def picture_folder(tmp_path: Path) -> PictureFolder:
    """`picture_folder(n=4, sizes=[(16, 16)], captions=True, name="pictures")` draws n pictures; sizes take turns."""

    def make(
        n: int = 4,
        sizes: Sequence[tuple[int, int]] = ((16, 16),),
        captions: bool = True,
        name: str = "pictures",
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for number in range(n):
            draw_picture(number, sizes[number % len(sizes)]).save(folder / f"{number:02}.png")
            if captions:
                colour, thing = COLOURS[number % len(COLOURS)], THINGS[number % len(THINGS)]
                (folder / f"{number:02}.txt").write_text(f"a {colour} {thing} by the sea")
        return folder

    return make
