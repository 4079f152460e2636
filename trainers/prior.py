"""DreamBooth's prior preservation (Ruiz et al. 2022): pictures of the class, made once by the bare base and kept.

They are trained on beside the style's own pictures, so that the base keeps what it knew of the class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from trainers.dataset import Sample
from trainers.digests import digest_of
from trainers.errors import RunError
from trainers.events import Busy

AT_ONCE = 8  # pictures sampled as one batch


@dataclass(frozen=True)
class Wish:
    """Which class pictures are wanted; `size` is their side in pixels."""

    prompt: str
    count: int
    guidance: float
    steps: int
    size: int


def folder_for(cache: Path, wish: Wish, base_digest: str) -> Path:
    """Where the pictures lie: the same wish on the same base is the same folder, whatever the count."""
    key = digest_of(wish.prompt, f"{wish.guidance} {wish.steps} {wish.size}", base_digest)
    return cache / "class_pictures" / key[:32]


def pictures(folder: Path, wish: Wish, sample: Callable[..., Sequence[Image.Image]]) -> Iterator[Busy]:
    """Make those that are missing; picture k always comes from seed k."""
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    missing = [k for k in range(wish.count) if not path_of(folder, k).exists()]
    for first in range(0, len(missing), AT_ONCE):
        seeds = missing[first : first + AT_ONCE]
        made = sample(
            [wish.prompt] * len(seeds), seeds, steps=wish.steps, guidance=wish.guidance, size=(wish.size, wish.size)
        )
        for seed, picture in zip(seeds, made, strict=True):
            partial = path_of(folder, seed).with_suffix(".tmp")
            with _writing(folder):
                picture.save(partial, format="PNG")
                partial.replace(path_of(folder, seed))
        yield Busy("class pictures made", first + len(seeds), len(missing))


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(
            f"the class pictures can't be written into {folder}: {error}", next_step="name another --dataset.cache"
        ) from error


def path_of(folder: Path, k: int) -> Path:
    return folder / f"{k:05d}.png"


def samples(folder: Path, wish: Wish) -> list[Sample]:
    """The class pictures as samples."""
    size = (wish.size, wish.size)
    return [
        Sample(path_of(folder, k), caption=wish.prompt, repeats=1, size=size, caption_from="class prompt", prior=True)
        for k in range(wish.count)
    ]
