"""Encodings on disk, each computed once: the key is what went in (pixels as cut, encoder), not a file's name.

Edit one of N pictures and exactly one is encoded again; rename them all and none is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from trainers.buckets import Placement
from trainers.dataset import Sample, apply, open_picture
from trainers.digests import digest_of
from trainers.errors import RunError
from trainers.families.base import Encoding

FORMAT = "stylora encoding 1"


class Encoder(Protocol):
    """What the cache needs of a family."""

    def digest(self, part: str) -> str: ...
    def encode_picture(self, picture: Image.Image) -> Encoding: ...
    def encode_text(self, caption: str) -> Encoding: ...
    def encode_ids(self, caption: str) -> Encoding: ...


def default_folder() -> Path:
    """$STYLORA_CACHE, or ~/.cache/stylora."""
    return Path(os.environ.get("STYLORA_CACHE") or Path.home() / ".cache" / "stylora")


@dataclass
class Cache:
    """A folder of encodings and the counts of this run: `encoded` were computed, `reused` lay there."""

    folder: Path
    encoded: int = 0
    reused: int = 0
    _texts: dict[str, Encoding] = field(default_factory=dict)

    def get(self, key: str, compute: Callable[[], Encoding]) -> Encoding:
        """The encoding under a key; a file that can't be read counts as absent and is replaced."""
        path = self.folder / key[:2] / f"{key}.safetensors"
        if path.exists():
            try:
                stored = load_file(path)
                self.reused += 1
                return stored
            except (SafetensorError, OSError):
                path.unlink(missing_ok=True)
        made = compute()
        self.encoded += 1
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}.tmp")
            save_file(dict(made), partial)
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"the cache {self.folder} can't be written: {error}", next_step="name another with --dataset.cache"
            ) from error
        return made

    def text(self, family: Encoder, caption: str, *, trained: bool) -> Encoding:
        """Token ids where the text encoder is trained (not worth a file), else its finished states."""
        if trained:
            return family.encode_ids(caption)
        if caption not in self._texts:
            key = digest_of(FORMAT, caption, family.digest("text_encoder"), family.digest("tokenizer"))
            self._texts[caption] = self.get(key, lambda: family.encode_text(caption))
        return self._texts[caption]


def pixels_digest(picture: Image.Image) -> str:
    """sha256 of the decoded pixels, so that a re-saved file with the same pixels is the same picture."""
    return digest_of(f"{picture.mode} {picture.size}", picture.tobytes())


def fill(
    cache: Cache,
    family: Encoder,
    samples: Sequence[Sample],
    placements: Sequence[Placement],
    *,
    text_trained: bool,
    background: tuple[int, int, int] = (255, 255, 255),
    mirror: bool = False,
) -> Iterator[tuple[Encoding, str]]:
    """(encoding, pixels' digest) of each sample in turn: cut to its bucket, encoded or taken from disk.

    With `mirror`, an encoding also holds the mirrored picture's, under names that begin with `mirrored_`.
    """
    for sample, placement in zip(samples, placements, strict=True):
        picture = apply(open_picture(sample.path, background), placement)
        encoding = {**_encoded(cache, family, picture), **cache.text(family, sample.caption, trained=text_trained)}
        if mirror:
            twin = _encoded(cache, family, ImageOps.mirror(picture))
            encoding |= {f"mirrored_{name}": tensor for name, tensor in twin.items()}
        yield encoding, pixels_digest(picture)


def _encoded(cache: Cache, family: Encoder, picture: Image.Image) -> Encoding:
    return cache.get(
        digest_of(FORMAT, pixels_digest(picture), family.digest("vae")), lambda: family.encode_picture(picture)
    )
